//! The K formats: blocks of 256 with integer scales for sub-blocks of 16 or 32.

use super::input::Input256;
use super::{Block, IntegerBlock, half, quad};
use crate::simd::{Halves, Lanes, Line};

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

/// The same for 16 outputs at once: four scales of 8 bits a lane.
struct Scales<I> {
    scales: [I; 2],
    minima: [I; 2],
}

impl<I: Copy> Scales<I> {
    #[inline(always)]
    fn unpack<L: Lanes<Ints = I>>(l: L, packed: &[Line; 3]) -> Self {
        let [first, second, third] = [l.words(&packed[0]), l.words(&packed[1]), l.words(&packed[2])];
        let upper = |a| l.and(l.shr(a, 2), 0x3030_3030);
        Self {
            scales: [l.and(first, 0x3f3f_3f3f), l.either(l.and(third, 0x0f0f_0f0f), upper(first))],
            minima: [
                l.and(second, 0x3f3f_3f3f),
                l.either(l.and(l.shr(third, 4), 0x0f0f_0f0f), upper(second)),
            ],
        }
    }

    /// Scale of sub-block `j`.
    #[inline(always)]
    fn scale<L: Lanes<Ints = I>>(&self, l: L, j: usize) -> I {
        l.byte(self.scales[j / 4], j as u32 % 4)
    }

    /// `sum_j m_j sum_i q_i`.
    #[inline(always)]
    fn minima<L: Lanes<Ints = I>>(&self, l: L, x: &Input256) -> I {
        let mut sum = l.ints(0);
        for (i, four) in self.minima.iter().enumerate() {
            // Bytes 0 and 2, then bytes 1 and 3, as halves of 16 bits.
            sum = l.dot2(sum, l.and(*four, 0x00ff_00ff), x.pairs[2 * i]);
            sum = l.dot2(sum, l.and(l.shr(*four, 8), 0x00ff_00ff), x.pairs[2 * i + 1]);
        }
        sum
    }
}

/// A block's two multiply-adds.
#[inline(always)]
fn finish<L: Lanes, const N: usize>(
    l: L,
    [d, dmin]: &[Halves; 2],
    products: &[L::Floats; N],
    scales: &Scales<L::Ints>,
    x: &[&Input256; N],
    acc: &mut [L::Floats; N],
) {
    let (d, dmin) = (l.halves(d), l.halves(dmin));
    for n in 0..N {
        acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), products[n], acc[n]);
        // -(dmin * s) == dmin * -s: a sign never rounds.
        let minima = l.to_floats(scales.minima(l, x[n]));
        acc[n] = l.fma(l.times(dmin, l.floats(-x[n].scale)), minima, acc[n]);
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

    const WORDS: usize = 35;
    const HALVES: usize = 2;

    /// The quants, then the packed scales.
    fn words(&self, to: &mut [[u8; 4]]) {
        let (q, scales) = to.split_at_mut(32);
        q.copy_from_slice(self.q.as_flattened().as_chunks().0);
        scales.copy_from_slice(&self.scales);
    }

    fn halves(&self, to: &mut [[u8; 2]]) {
        to.copy_from_slice(&[self.d, self.dmin]);
    }

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        lines: &[Line],
        halves: &[Halves],
        x: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        let Some((q, packed)) = lines.split_first_chunk::<32>() else { return };
        let (Some(packed), Some(halves)) = (packed.first_chunk(), halves.first_chunk()) else { return };
        let scales = Scales::unpack(l, packed);
        // Four sub-blocks are at most 4 * 63 * 32 * 15 * 127 < 2^24: floats hold them exactly, and their
        // one sum is rounded as the integer would be. That is cheaper than integer products.
        let mut products = [l.floats(0.0); N];
        // Written out: what is indexed by a loop would lie in memory instead of registers.
        macro_rules! pair {
            ($four:ident, $c:literal) => {{
                let (mut even, mut odd) = ([l.ints(0); N], [l.ints(0); N]);
                for i in 0..8 {
                    let both = l.bytes(&q[8 * $c + i]);
                    let (low, high) = (l.low_nibbles(both), l.high_nibbles(both));
                    for n in 0..N {
                        even[n] = l.dot4(even[n], low, quad(&x[n].q, 16 * $c + i));
                        odd[n] = l.dot4(odd[n], high, quad(&x[n].q, 16 * $c + 8 + i));
                    }
                }
                let of_even = l.to_floats(scales.scale(l, 2 * $c));
                let of_odd = l.to_floats(scales.scale(l, 2 * $c + 1));
                for n in 0..N {
                    $four[n] = l.fma(of_even, l.to_floats(even[n]), $four[n]);
                    $four[n] = l.fma(of_odd, l.to_floats(odd[n]), $four[n]);
                }
            }};
        }
        let mut four = products;
        pair!(products, 0);
        pair!(products, 1);
        pair!(four, 2);
        pair!(four, 3);
        for n in 0..N {
            products[n] = l.plus(products[n], four[n]);
        }
        finish(l, halves, &products, &scales, x, acc);
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

    const WORDS: usize = 43;
    const HALVES: usize = 2;

    /// The low bits, the fifth bits, the packed scales.
    fn words(&self, to: &mut [[u8; 4]]) {
        let (q, rest) = to.split_at_mut(32);
        let (high, scales) = rest.split_at_mut(8);
        q.copy_from_slice(self.q.as_flattened().as_chunks().0);
        high.copy_from_slice(self.high.as_chunks().0);
        scales.copy_from_slice(&self.scales);
    }

    fn halves(&self, to: &mut [[u8; 2]]) {
        to.copy_from_slice(&[self.d, self.dmin]);
    }

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        lines: &[Line],
        halves: &[Halves],
        x: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        let Some((q, rest)) = lines.split_first_chunk::<32>() else { return };
        let Some((planes, packed)) = rest.split_first_chunk::<8>() else { return };
        let (Some(packed), Some(halves)) = (packed.first_chunk(), halves.first_chunk()) else { return };
        let scales = Scales::unpack(l, packed);
        let mut products = [l.ints(0); N];
        macro_rules! pair {
            ($c:literal) => {{
                let (mut even, mut odd) = ([l.ints(0); N], [l.ints(0); N]);
                for i in 0..8 {
                    let (both, planes) = (l.bytes(&q[8 * $c + i]), l.bytes(&planes[i]));
                    let low = l.with_bit(l.low_nibbles(both), planes, 2 * $c);
                    let high = l.with_bit(l.high_nibbles(both), planes, 2 * $c + 1);
                    for n in 0..N {
                        even[n] = l.dot4(even[n], low, quad(&x[n].q, 16 * $c + i));
                        odd[n] = l.dot4(odd[n], high, quad(&x[n].q, 16 * $c + 8 + i));
                    }
                }
                let (of_even, of_odd) = (scales.scale(l, 2 * $c), scales.scale(l, 2 * $c + 1));
                for n in 0..N {
                    let both = l.add(l.mul(of_even, even[n]), l.mul(of_odd, odd[n]));
                    products[n] = l.add(products[n], both);
                }
            }};
        }
        pair!(0);
        pair!(1);
        pair!(2);
        pair!(3);
        let mut floats = [l.floats(0.0); N];
        for n in 0..N {
            floats[n] = l.to_floats(products[n]);
        }
        finish(l, halves, &floats, &scales, x, acc);
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

    const WORDS: usize = 52;
    const HALVES: usize = 1;

    /// The low bits, the high bits, the scales.
    fn words(&self, to: &mut [[u8; 4]]) {
        let (low, rest) = to.split_at_mut(32);
        let (high, scales) = rest.split_at_mut(16);
        low.copy_from_slice(self.low.as_flattened().as_chunks().0);
        high.copy_from_slice(self.high.as_flattened().as_chunks().0);
        scales.copy_from_slice(&self.scales);
    }

    fn halves(&self, to: &mut [[u8; 2]]) {
        to.copy_from_slice(&[self.d]);
    }

    #[inline(always)]
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        lines: &[Line],
        halves: &[Halves],
        x: &[&Input256; N],
        acc: &mut [L::Floats; N],
    ) {
        let Some((low, rest)) = lines.split_first_chunk::<32>() else { return };
        let Some((high, scales)) = rest.split_first_chunk::<16>() else { return };
        let (Some(scales), [d]) = (scales.first_chunk::<4>(), halves) else { return };
        let mut products = [l.ints(0); N];
        // 32 bytes of `low` hold quarters k and k + 2 of a half; 16 elements, a part, share a scale.
        macro_rules! part {
            ($half:literal, $k:literal, $part:literal) => {{
                const A: usize = 2 * (4 * $half + $k) + $part;
                const B: usize = A + 4;
                let (mut a, mut b) = ([l.ints(0); N], [l.ints(0); N]);
                for n in 0..N {
                    (a[n], b[n]) = (l.ints(x[n].minus32[A]), l.ints(x[n].minus32[B]));
                }
                for i in 0..4 {
                    let both = l.bytes(&low[8 * (2 * $half + $k) + 4 * $part + i]);
                    let planes = l.bytes(&high[8 * $half + 4 * $part + i]);
                    let w = l.with_pair(l.low_nibbles(both), planes, $k);
                    let v = l.with_pair(l.high_nibbles(both), planes, $k + 2);
                    for n in 0..N {
                        a[n] = l.dot4(a[n], w, quad(&x[n].q, 4 * A + i));
                        b[n] = l.dot4(b[n], v, quad(&x[n].q, 4 * B + i));
                    }
                }
                let of_a = l.signed_byte(l.words(&scales[A / 4]), A as u32 % 4);
                let of_b = l.signed_byte(l.words(&scales[B / 4]), B as u32 % 4);
                for n in 0..N {
                    let both = l.add(l.mul(of_a, a[n]), l.mul(of_b, b[n]));
                    products[n] = l.add(products[n], both);
                }
            }};
        }
        part!(0, 0, 0);
        part!(0, 0, 1);
        part!(0, 1, 0);
        part!(0, 1, 1);
        part!(1, 0, 0);
        part!(1, 0, 1);
        part!(1, 1, 0);
        part!(1, 1, 1);
        let d = l.halves(d);
        for n in 0..N {
            acc[n] = l.fma(l.times(d, l.floats(x[n].scale)), l.to_floats(products[n]), acc[n]);
        }
    }
}
