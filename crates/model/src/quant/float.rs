//! Unquantised weights, and the dot product in f32 that attention and norms share.

use super::{Block, half};
use crate::simd::Lanes;

/// Elements that one step of [`dot`] takes: its number of accumulators.
pub(crate) const SPLIT: usize = 16;

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

    fn eight<L: Lanes>(l: L, from: &[Self; 8]) -> L::Floats;
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
    fn eight<L: Lanes>(l: L, from: &[Self; 8]) -> L::Floats {
        l.load_f32(from)
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
    fn eight<L: Lanes>(l: L, from: &[Self; 8]) -> L::Floats {
        l.load_f16(from)
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
    fn eight<L: Lanes>(l: L, from: &[Self; 8]) -> L::Floats {
        l.load_bf16(&crate::simd::eight!(i => from[i].0))
    }
}

impl FloatWeight for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn eight<L: Lanes>(l: L, from: &[Self; 8]) -> L::Floats {
        l.load(from)
    }
}

/// The product of `w` and `x` (equally long) in the fixed split and order of the contract.
#[inline(always)]
pub(crate) fn dot<L: Lanes, W: FloatWeight>(l: L, w: &[W], x: &[f32]) -> f32 {
    let (w, w_tail) = w.as_chunks::<SPLIT>();
    let (x, x_tail) = x.as_chunks::<SPLIT>();
    let (mut a, mut b) = (l.floats(0.0), l.floats(0.0));
    for (w, x) in w.iter().zip(x) {
        (a, b) = step(l, w, x, a, b);
    }
    if !w_tail.is_empty() {
        let (mut w, mut x) = ([W::ZERO; SPLIT], [0.0; SPLIT]);
        for ((w, x), (from_w, from_x)) in w.iter_mut().zip(&mut x).zip(w_tail.iter().zip(x_tail)) {
            (*w, *x) = (*from_w, *from_x);
        }
        (a, b) = step(l, &w, &x, a, b);
    }
    let mut sums = [0.0; SPLIT];
    if let [low, high] = sums.as_chunks_mut::<8>().0 {
        l.store(a, low);
        l.store(b, high);
    }
    tree(&sums)
}

#[inline(always)]
fn step<L: Lanes, W: FloatWeight>(
    l: L,
    w: &[W; SPLIT],
    x: &[f32; SPLIT],
    a: L::Floats,
    b: L::Floats,
) -> (L::Floats, L::Floats) {
    // Halves of a 16-array; the chunking cannot fail, so nothing is lost in the empty case.
    let ([w0, w1], [x0, x1]) = (w.as_chunks::<8>().0, x.as_chunks::<8>().0) else { return (a, b) };
    (l.fma(W::eight(l, w0), l.load(x0), a), l.fma(W::eight(l, w1), l.load(x1), b))
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
