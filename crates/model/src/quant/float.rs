//! Unquantised weights, and the dot product in f32 that they and norms share.

use super::{Block, half};
use crate::simd::{Halves, LANES, Lanes};

/// Elements that one step of [`dot`] takes: its number of accumulators.
pub(crate) const SPLIT: usize = LANES;

/// A little-endian IEEE single float.
pub(crate) type F32 = [u8; 4];

/// A little-endian IEEE half float.
pub(crate) type F16 = [u8; 2];

/// The upper half of an IEEE single float, little-endian.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Bf16([u8; 2]);

/// An element that converts to f32 exactly.
pub(crate) trait FloatWeight: Copy {
    const ZERO: Self;

    fn load<L: Lanes>(l: L, from: &[Self; SPLIT]) -> L::Floats;
}

// SAFETY: a byte array.
unsafe impl Block for F32 {
    const ELEMS: usize = 1;

    fn dequantise(&self, out: &mut [f32]) {
        out.fill(f32::from_le_bytes(*self));
    }
}

impl FloatWeight for F32 {
    const ZERO: Self = [0; 4];

    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[Self; SPLIT]) -> L::Floats {
        // Compiles to one load.
        let mut floats = [0.0; SPLIT];
        for (float, bytes) in floats.iter_mut().zip(from) {
            *float = f32::from_le_bytes(*bytes);
        }
        l.load(&floats)
    }
}

// SAFETY: a byte array.
unsafe impl Block for F16 {
    const ELEMS: usize = 1;

    fn dequantise(&self, out: &mut [f32]) {
        out.fill(half(*self));
    }
}

impl FloatWeight for F16 {
    const ZERO: Self = [0; 2];

    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[Self; SPLIT]) -> L::Floats {
        l.halves(halves(from))
    }
}

// SAFETY: repr(C), a byte array only.
unsafe impl Block for Bf16 {
    const ELEMS: usize = 1;

    fn dequantise(&self, out: &mut [f32]) {
        out.fill(half::bf16::from_le_bytes(self.0).to_f32());
    }
}

impl FloatWeight for Bf16 {
    const ZERO: Self = Self([0; 2]);

    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[Self; SPLIT]) -> L::Floats {
        let mut bytes = [[0; 2]; SPLIT];
        for (bytes, from) in bytes.iter_mut().zip(from) {
            *bytes = from.0;
        }
        l.bfloats(halves(&bytes))
    }
}

impl FloatWeight for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[Self; SPLIT]) -> L::Floats {
        l.load(from)
    }
}

/// The same bytes, not in pairs.
#[inline(always)]
pub(crate) fn halves(from: &[[u8; 2]; SPLIT]) -> &Halves {
    from.as_flattened().first_chunk().unwrap_or(&[0; 2 * SPLIT])
}

/// The product of `w` and `x` (equally long) in the fixed split and order of the contract.
#[inline(always)]
pub(crate) fn dot<L: Lanes, W: FloatWeight>(l: L, w: &[W], x: &[f32]) -> f32 {
    let (w, w_tail) = w.as_chunks::<SPLIT>();
    let (x, x_tail) = x.as_chunks::<SPLIT>();
    let mut acc = l.floats(0.0);
    for (w, x) in w.iter().zip(x) {
        acc = l.fma(W::load(l, w), l.load(x), acc);
    }
    if !w_tail.is_empty() {
        let (mut w, mut x) = ([W::ZERO; SPLIT], [0.0; SPLIT]);
        for ((w, x), (from_w, from_x)) in w.iter_mut().zip(&mut x).zip(w_tail.iter().zip(x_tail)) {
            (*w, *x) = (*from_w, *from_x);
        }
        acc = l.fma(W::load(l, &w), l.load(&x), acc);
    }
    let mut sums = [0.0; SPLIT];
    l.store(acc, &mut sums);
    tree(&sums)
}

/// Accumulators l and l + 8, then l + 4, l + 2, l + 1.
#[inline(always)]
pub(crate) fn tree(sums: &[f32; SPLIT]) -> f32 {
    let mut s = *sums;
    for distance in [8, 4, 2, 1] {
        for i in 0..distance {
            s[i] += s[i + distance];
        }
    }
    s[0]
}
