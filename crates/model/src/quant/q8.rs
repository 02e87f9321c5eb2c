use super::input::Input32;
use super::{Block, IntegerBlock, half, quad};
use crate::simd::{Halves, Lanes, Line};

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

    const WORDS: usize = 8;
    const HALVES: usize = 1;

    /// The quants as `q + 128`, without a sign.
    fn words(&self, to: &mut [[u8; 4]]) {
        to.copy_from_slice(self.q.map(|q| q ^ 0x80).as_chunks().0);
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
        let (Some(q), [d]) = (lines.first_chunk::<8>(), halves) else { return };
        let d = l.halves(d);
        let mut sums = [l.ints(0); N];
        for n in 0..N {
            sums[n] = l.start_offset(x[n].minus128);
        }
        for (i, w) in q.iter().enumerate() {
            let w = l.bytes(w);
            for n in 0..N {
                sums[n] = l.dot4_offset(sums[n], w, quad(&x[n].q, i));
            }
        }
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), l.to_floats(sums[n]), acc[n]);
        }
    }
}
