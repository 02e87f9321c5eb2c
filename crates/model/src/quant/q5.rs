use super::input::Input32;
use super::{Block, IntegerBlock, half, quad};
use crate::simd::{Halves, Lanes, Line};

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

    const WORDS: usize = 5;
    const HALVES: usize = 1;

    fn words(&self, to: &mut [[u8; 4]]) {
        pack(self.high, &self.q, to);
    }

    fn halves(&self, to: &mut [[u8; 2]]) {
        to.copy_from_slice(&[self.d]);
    }

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        lines: &[Line],
        halves: &[Halves],
        x: &[&Input32; N],
        acc: &mut [L::Floats; N],
    ) {
        let (Some(q), [d]) = (lines.first_chunk::<5>(), halves) else { return };
        let d = l.halves(d);
        let mut sums = [l.ints(0); N];
        for n in 0..N {
            sums[n] = l.ints(x[n].minus16);
        }
        fives(l, q, x, &mut sums);
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), l.to_floats(sums[n]), acc[n]);
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

    const WORDS: usize = 5;
    const HALVES: usize = 2;

    fn words(&self, to: &mut [[u8; 4]]) {
        pack(self.high, &self.q, to);
    }

    fn halves(&self, to: &mut [[u8; 2]]) {
        to.copy_from_slice(&[self.d, self.m]);
    }

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        lines: &[Line],
        halves: &[Halves],
        x: &[&Input32; N],
        acc: &mut [L::Floats; N],
    ) {
        let (Some(q), [d, m]) = (lines.first_chunk::<5>(), halves) else { return };
        let (d, m) = (l.halves(d), l.halves(m));
        let mut sums = [l.ints(0); N];
        fives(l, q, x, &mut sums);
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), l.to_floats(sums[n]), acc[n]);
            acc[n] = l.fma(m, l.floats(x[n].scaled_sum), acc[n]);
        }
    }
}

/// The words of the low bits, then one with the fifth bits: bit i of its byte t is that of element 4i + t.
fn pack(high: [u8; 4], low: &[u8; 16], to: &mut [[u8; 4]]) {
    let high = u32::from_le_bytes(high);
    let mut planes = [0; 4];
    for e in 0..32 {
        planes[e % 4] |= ((high >> e & 1) << (e / 4)) as u8;
    }
    if let Some((last, words)) = to.split_last_mut() {
        words.copy_from_slice(low.as_chunks().0);
        *last = planes;
    }
}

/// Adds the products of 32 quants of 5 bits, as [`pack`] laid them out.
#[inline(always)]
fn fives<L: Lanes, const N: usize>(l: L, q: &[Line; 5], x: &[&Input32; N], sums: &mut [L::Ints; N]) {
    let [low @ .., planes] = q;
    let planes = l.bytes(planes);
    for (i, both) in low.iter().enumerate() {
        let both = l.bytes(both);
        let low = l.with_bit(l.low_nibbles(both), planes, i as u32);
        let high = l.with_bit(l.high_nibbles(both), planes, i as u32 + 4);
        for n in 0..N {
            sums[n] = l.dot4(sums[n], low, quad(&x[n].q, i));
            sums[n] = l.dot4(sums[n], high, quad(&x[n].q, i + 4));
        }
    }
}
