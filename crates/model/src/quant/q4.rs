use super::input::Input32;
use super::{Block, IntegerBlock, half, quad};
use crate::simd::{Halves, Lanes, Line};

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

    const WORDS: usize = 4;
    const HALVES: usize = 1;

    fn words(&self, to: &mut [[u8; 4]]) {
        to.copy_from_slice(self.q.as_chunks().0);
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
        let (Some(q), [d]) = (lines.first_chunk::<4>(), halves) else { return };
        let d = l.halves(d);
        let mut sums = [l.ints(0); N];
        for n in 0..N {
            sums[n] = l.ints(x[n].minus8);
        }
        nibbles(l, q, x, &mut sums);
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), l.to_floats(sums[n]), acc[n]);
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

    const WORDS: usize = 4;
    const HALVES: usize = 2;

    fn words(&self, to: &mut [[u8; 4]]) {
        to.copy_from_slice(self.q.as_chunks().0);
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
        let (Some(q), [d, m]) = (lines.first_chunk::<4>(), halves) else { return };
        let (d, m) = (l.halves(d), l.halves(m));
        let mut sums = [l.ints(0); N];
        nibbles(l, q, x, &mut sums);
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), l.to_floats(sums[n]), acc[n]);
            acc[n] = l.fma(m, l.floats(x[n].scaled_sum), acc[n]);
        }
    }
}

/// Adds the products of 32 nibbles: low halves of line i are quad i, high halves quad i + 4.
#[inline(always)]
fn nibbles<L: Lanes, const N: usize>(l: L, q: &[Line; 4], x: &[&Input32; N], sums: &mut [L::Ints; N]) {
    for (i, both) in q.iter().enumerate() {
        let both = l.bytes(both);
        let (low, high) = (l.low_nibbles(both), l.high_nibbles(both));
        for n in 0..N {
            sums[n] = l.dot4(sums[n], low, quad(&x[n].q, i));
            sums[n] = l.dot4(sums[n], high, quad(&x[n].q, i + 4));
        }
    }
}
