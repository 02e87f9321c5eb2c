use super::input::Input32;
use super::{Block, IntegerBlock, half};
use crate::simd::{Lanes, eight};

/// 32 quants of 4 bits around 8: `w = d * (q - 8)`. Byte i holds elements i and i + 16.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(non_camel_case_types)] // The format's own name.
pub(crate) struct Q4_0 {
    d: [u8; 2],
    q: [u8; 16],
}

/// 32 quants of 4 bits above a minimum: `w = d * q + m`. Byte i holds elements i and i + 16.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(non_camel_case_types)] // The format's own name.
pub(crate) struct Q4_1 {
    d: [u8; 2],
    m: [u8; 2],
    q: [u8; 16],
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q4_0 {
    const ELEMS: usize = 32;

    fn dequantise(&self, out: &mut [f32]) {
        let d = half(self.d);
        let (first, second) = out.split_at_mut(16);
        for ((q, first), second) in self.q.iter().zip(first).zip(second) {
            *first = (f32::from(q & 15) - 8.0) * d;
            *second = (f32::from(q >> 4) - 8.0) * d;
        }
    }
}

impl IntegerBlock for Q4_0 {
    type Input = Input32;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input32; N],
        acc: &mut [L::Floats; N],
    ) {
        let d = l.halves(eight!(r => rows[r].d));
        let w = eight!(r => l.nibbles(&rows[r].q));
        for n in 0..N {
            let (a, b) = l.dots(&w, &inputs[n].q);
            let sum = l.sub(l.add(a, b), l.ints(8 * inputs[n].sum));
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), l.to_floats(sum), acc[n]);
        }
    }
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q4_1 {
    const ELEMS: usize = 32;

    fn dequantise(&self, out: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        let (first, second) = out.split_at_mut(16);
        for ((q, first), second) in self.q.iter().zip(first).zip(second) {
            *first = f32::from(q & 15).mul_add(d, m);
            *second = f32::from(q >> 4).mul_add(d, m);
        }
    }
}

impl IntegerBlock for Q4_1 {
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
        let w = eight!(r => l.nibbles(&rows[r].q));
        for n in 0..N {
            let (a, b) = l.dots(&w, &inputs[n].q);
            let sum = l.to_floats(l.add(a, b));
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), sum, acc[n]);
            acc[n] = l.fma(m, l.floats(inputs[n].scaled_sum), acc[n]);
        }
    }
}
