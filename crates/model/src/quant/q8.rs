use super::input::Input32;
use super::{Block, IntegerBlock, half};
use crate::simd::{Lanes, eight};

/// 32 signed bytes and a scale: `w = d * q`.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(non_camel_case_types)] // The format's own name.
pub(crate) struct Q8_0 {
    d: [u8; 2],
    q: [u8; 32],
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q8_0 {
    const ELEMS: usize = 32;

    fn dequantise(&self, out: &mut [f32]) {
        let d = half(self.d);
        for (out, q) in out.iter_mut().zip(self.q) {
            *out = f32::from(q as i8) * d;
        }
    }
}

impl IntegerBlock for Q8_0 {
    type Input = Input32;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input32; N],
        acc: &mut [L::Floats; N],
    ) {
        let d = l.halves(eight!(r => rows[r].d));
        let w = eight!(r => l.bytes(&rows[r].q));
        for n in 0..N {
            let sum = l.to_floats(l.dots_signed(&w, &inputs[n].q));
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), sum, acc[n]);
        }
    }
}
