//! The K formats: blocks of 256 with integer scales for sub-blocks of 16 or 32.

use super::input::Input256;
use super::{Block, IntegerBlock, half};
use crate::simd::{Lanes, eight};

/// 8 sub-blocks of 32 quants of 4 bits: `w = d * sc * q - dmin * m`. In 32 bytes of `q`, the low
/// halves are one sub-block and the high halves the next.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Q4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [[u8; 4]; 3],
    q: [[u8; 32]; 4],
}

/// As [`Q4K`] with a fifth bit: bit j of byte e of `high` belongs to element e of sub-block j.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Q5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [[u8; 4]; 3],
    high: [u8; 32],
    q: [[u8; 32]; 4],
}

/// 16 sub-blocks of 16 quants of 6 bits around 32: `w = d * sc * (q - 32)`. Of each half (128
/// elements), quarters 0 and 1 are the low halves of 64 bytes of `low`, quarters 2 and 3 their high
/// halves; bits 2k and 2k + 1 of byte e of `high` belong to element e of quarter k.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Q6K {
    low: [[u8; 32]; 4],
    high: [[u8; 32]; 2],
    scales: [[u8; 4]; 4],
    d: [u8; 2],
}

/// Scales and minima (6 bits each) of the 8 sub-blocks, unpacked from 12 bytes.
pub(crate) fn scales_and_minima(packed: &[[u8; 4]; 3]) -> ([u8; 8], [u8; 8]) {
    let p = packed.as_flattened();
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = p[j] & 63;
        minima[j] = p[j + 4] & 63;
        scales[j + 4] = (p[j + 8] & 15) | (p[j] >> 6) << 4;
        minima[j + 4] = (p[j + 8] >> 4) | (p[j + 4] >> 6) << 4;
    }
    (scales, minima)
}

/// The same for 8 rows at once: each lane holds four scales as bytes.
struct PackedScales<I> {
    scales: [I; 2],
    minima: [I; 2],
}

#[inline(always)]
fn packed_scales<L: Lanes>(l: L, rows: [&[[u8; 4]; 3]; 8]) -> PackedScales<L::Ints> {
    let first = l.words(eight!(r => rows[r][0]));
    let second = l.words(eight!(r => rows[r][1]));
    let third = l.words(eight!(r => rows[r][2]));
    PackedScales {
        scales: [
            l.and(first, 0x3f3f_3f3f),
            l.either(l.and(third, 0x0f0f_0f0f), l.and(l.shr::<2>(first), 0x3030_3030)),
        ],
        minima: [
            l.and(second, 0x3f3f_3f3f),
            l.either(l.and(l.shr::<4>(third), 0x0f0f_0f0f), l.and(l.shr::<2>(second), 0x3030_3030)),
        ],
    }
}

/// Running integer sums of one block of 8 rows and N inputs: products and minima.
struct Sums<I, const N: usize> {
    products: [I; N],
    minima: [I; N],
}

impl<I: Copy, const N: usize> Sums<I, N> {
    #[inline(always)]
    fn zero<L: Lanes<Ints = I>>(l: L) -> Self {
        Self { products: [l.ints(0); N], minima: [l.ints(0); N] }
    }

    /// Adds sub-block `j` (0 to 7), whose quants are `w`.
    #[inline(always)]
    fn add<L: Lanes<Ints = I>>(
        &mut self,
        l: L,
        j: usize,
        w: &[L::Bytes; 8],
        packed: &PackedScales<I>,
        inputs: &[&Input256; N],
    ) {
        let scale = l.byte(packed.scales[j / 4], j as u32 % 4);
        let minimum = l.byte(packed.minima[j / 4], j as u32 % 4);
        for (n, input) in inputs.iter().enumerate() {
            let (a, b) = l.dots(w, &input.q[j]);
            self.products[n] = l.add(self.products[n], l.mul(scale, l.add(a, b)));
            let sum = l.ints(input.sums[2 * j] + input.sums[2 * j + 1]);
            self.minima[n] = l.add(self.minima[n], l.mul(minimum, sum));
        }
    }

    /// The block's two multiply-adds.
    #[inline(always)]
    fn finish<L: Lanes<Ints = I>>(
        self,
        l: L,
        d: L::Floats,
        dmin: L::Floats,
        inputs: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        for n in 0..N {
            let products = l.to_floats(self.products[n]);
            let minima = l.to_floats(self.minima[n]);
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), products, acc[n]);
            // -(dmin * s) == dmin * -s: a sign never rounds.
            acc[n] = l.fma(l.times(dmin, l.floats(-inputs[n].scale)), minima, acc[n]);
        }
    }
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q4K {
    const ELEMS: usize = 256;

    fn dequantise(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        let (scales, minima) = scales_and_minima(&self.scales);
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (d, m) = (d * f32::from(scales[j]), dmin * f32::from(minima[j]));
            for (out, q) in out.iter_mut().zip(self.q[j / 2]) {
                let q = if j % 2 == 0 { q & 15 } else { q >> 4 };
                *out = f32::from(q).mul_add(d, -m);
            }
        }
    }
}

impl IntegerBlock for Q4K {
    type Input = Input256;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        let packed = packed_scales(l, eight!(r => &rows[r].scales));
        let mut sums = Sums::zero(l);
        for c in 0..4 {
            let q = eight!(r => l.bytes(&rows[r].q[c]));
            sums.add(l, 2 * c, &eight!(r => l.low_nibbles(q[r])), &packed, inputs);
            sums.add(l, 2 * c + 1, &eight!(r => l.high_nibbles(q[r])), &packed, inputs);
        }
        let d = l.halves(eight!(r => rows[r].d));
        let dmin = l.halves(eight!(r => rows[r].dmin));
        sums.finish(l, d, dmin, inputs, acc);
    }
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q5K {
    const ELEMS: usize = 256;

    fn dequantise(&self, out: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        let (scales, minima) = scales_and_minima(&self.scales);
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (d, m) = (d * f32::from(scales[j]), dmin * f32::from(minima[j]));
            for ((out, q), high) in out.iter_mut().zip(self.q[j / 2]).zip(self.high) {
                let low = if j % 2 == 0 { q & 15 } else { q >> 4 };
                *out = f32::from(low | (high >> j & 1) << 4).mul_add(d, -m);
            }
        }
    }
}

impl IntegerBlock for Q5K {
    type Input = Input256;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        let packed = packed_scales(l, eight!(r => &rows[r].scales));
        let mut sums = Sums::zero(l);
        macro_rules! pair {
            ($c:literal, $even:literal, $odd:literal) => {{
                let q = eight!(r => l.bytes(&rows[r].q[$c]));
                let high = eight!(r => l.bytes(&rows[r].high));
                let even = eight!(r => l.or(l.low_nibbles(q[r]), l.plane::<$even, 1>(high[r])));
                sums.add(l, $even, &even, &packed, inputs);
                let odd = eight!(r => l.or(l.high_nibbles(q[r]), l.plane::<$odd, 1>(high[r])));
                sums.add(l, $odd, &odd, &packed, inputs);
            }};
        }
        pair!(0, 0, 1);
        pair!(1, 2, 3);
        pair!(2, 4, 5);
        pair!(3, 6, 7);
        let d = l.halves(eight!(r => rows[r].d));
        let dmin = l.halves(eight!(r => rows[r].dmin));
        sums.finish(l, d, dmin, inputs, acc);
    }
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Block for Q6K {
    const ELEMS: usize = 256;

    fn dequantise(&self, out: &mut [f32]) {
        let d = half(self.d);
        let scales = self.scales.as_flattened();
        for (i, out) in out.chunks_exact_mut(32).enumerate() {
            let (half, quarter) = (i / 4, i % 4);
            let low = &self.low[2 * half + quarter % 2];
            for (e, out) in out.iter_mut().enumerate() {
                let low = if quarter < 2 { low[e] & 15 } else { low[e] >> 4 };
                let q = low | (self.high[half][e] >> (2 * quarter) & 3) << 4;
                let scale = scales[2 * i + e / 16] as i8;
                *out = d * f32::from(scale) * (f32::from(q) - 32.0);
            }
        }
    }
}

impl IntegerBlock for Q6K {
    type Input = Input256;

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        rows: &[&Self; 8],
        inputs: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        let scales = [
            l.words(eight!(r => rows[r].scales[0])),
            l.words(eight!(r => rows[r].scales[1])),
            l.words(eight!(r => rows[r].scales[2])),
            l.words(eight!(r => rows[r].scales[3])),
        ];
        let mut sums = [l.ints(0); N];
        macro_rules! quarter {
            ($half:literal, $quarter:literal, $bits:literal, $part:ident) => {{
                let j = 4 * $half + $quarter;
                let w = eight!(r => {
                    let low = l.$part(l.bytes(&rows[r].low[2 * $half + $quarter % 2]));
                    l.or(low, l.plane::<$bits, 3>(l.bytes(&rows[r].high[$half])))
                });
                let first = l.signed_byte(scales[j / 2], 2 * (j as u32 % 2));
                let second = l.signed_byte(scales[j / 2], 2 * (j as u32 % 2) + 1);
                for n in 0..N {
                    let (a, b) = l.dots(&w, &inputs[n].q[j]);
                    let a = l.sub(a, l.ints(32 * inputs[n].sums[2 * j]));
                    let b = l.sub(b, l.ints(32 * inputs[n].sums[2 * j + 1]));
                    sums[n] = l.add(sums[n], l.add(l.mul(first, a), l.mul(second, b)));
                }
            }};
        }
        quarter!(0, 0, 0, low_nibbles);
        quarter!(0, 1, 2, low_nibbles);
        quarter!(0, 2, 4, high_nibbles);
        quarter!(0, 3, 6, high_nibbles);
        quarter!(1, 0, 0, low_nibbles);
        quarter!(1, 1, 2, low_nibbles);
        quarter!(1, 2, 4, high_nibbles);
        quarter!(1, 3, 6, high_nibbles);
        let d = l.halves(eight!(r => rows[r].d));
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(inputs[n].scale)), l.to_floats(sums[n]), acc[n]);
        }
    }
}
