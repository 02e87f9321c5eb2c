use super::input::Input32;
use super::{Block, IntegerBlock, half};
use crate::simd::{Lanes, eight};

/// 32 quants of 5 bits around 16: `w = d * (q - 16)`. Byte i holds the low bits of elements i and
/// i + 16; bit e of `high` is the fifth bit of element e.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(non_camel_case_types)] // The format's own name.
pub(crate) struct Q5_0 {
    d: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}

/// 32 quants of 5 bits above a minimum: `w = d * q + m`; bits as in [`Q5_0`].
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(non_camel_case_types)] // The format's own name.
pub(crate) struct Q5_1 {
    d: [u8; 2],
    m: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}

/// The 32 quants, 0 to 31.
fn quants(high: [u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    std::array::from_fn(|e| {
        let low = if e < 16 { low[e] & 15 } else { low[e - 16] >> 4 };
        low | ((high >> e & 1) << 4) as u8
    })
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q5_0 {
    const ELEMS: usize = 32;

    fn dequantise(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (out, q) in out.iter_mut().zip(quants(self.high, &self.q)) {
            *out = (f32::from(q) - 16.0) * d;
        }
    }
}

impl IntegerBlock for Q5_0 {
    type Input = Input32;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input32; N],
        acc: &mut [L::Floats; N],
    ) {
        let d = l.halves(eight!(r => rows[r].d));
        let w = eight!(r => l.or(l.nibbles(&rows[r].q), l.fifth_bits(u32::from_le_bytes(rows[r].high))));
        for n in 0..N {
            let (a, b) = l.dots(&w, &inputs[n].q);
            let sum = l.sub(l.add(a, b), l.ints(16 * inputs[n].sum));
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), l.to_floats(sum), acc[n]);
        }
    }
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q5_1 {
    const ELEMS: usize = 32;

    fn dequantise(&self, out: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        for (out, q) in out.iter_mut().zip(quants(self.high, &self.q)) {
            *out = f32::from(q).mul_add(d, m);
        }
    }
}

impl IntegerBlock for Q5_1 {
    type Input = Input32;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input32; N],
        acc: &mut [L::Floats; N],
    ) {
        let d = l.halves(eight!(r => rows[r].d));
        let m = l.halves(eight!(r => rows[r].m));
        let w = eight!(r => l.or(l.nibbles(&rows[r].q), l.fifth_bits(u32::from_le_bytes(rows[r].high))));
        for n in 0..N {
            let (a, b) = l.dots(&w, &inputs[n].q);
            let sum = l.to_floats(l.add(a, b));
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), sum, acc[n]);
            acc[n] = l.fma(m, l.floats(inputs[n].scaled_sum), acc[n]);
        }
    }
}
