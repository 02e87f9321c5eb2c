//! Quantised weight formats: their layout, their meaning, their product.
//!
//! # Arithmetic contract
//!
//! The logits of a row are a function of the weights and of the tokens before it: not of the batch
//! it ran in, of how a prompt was cut into chunks, of the number of threads or of the processor.
//! Speculative decoding rests on this: a verification row must give the bits that a plain decode
//! step would have given. A faster kernel must keep, for y = W x, one output at a time:
//!
//! * **Inputs.** x is quantised once per row, independent of the weights ([`input`]): blocks of 32
//!   (formats of 32) or of 256 (K formats) along K. `a` = largest magnitude; scale `s = a / 127`;
//!   `q_i = round_even(x_i * (127 / a))`, an i8 in -127..=127. A block with `a` below 2^-119 is zero. A
//!   block with NaN or infinity gets `s = NaN`: broken values surface in the logits.
//! * **Integers are exact.** All sums of `weight * q`, sub-block scales included, are exact in i32 and
//!   converted to f32 once, to nearest even.
//! * **Floats are strictly ordered.** `acc = 0`; for each block in K order, with `d`, `m` the block's
//!   f32 scales:
//!   - Q8_0, Q4_0, Q5_0: `acc = fma(d * s, I, acc)`, `I = sum w_i q_i` (w_i the signed quant).
//!   - Q4_1, Q5_1: the same with the unsigned quant, then `acc = fma(m, s * Q, acc)`, `Q = sum q_i`.
//!   - Q4_K, Q5_K: `acc = fma(d * s, I, acc)`, `I = sum_j sc_j sum_i w_i q_i`, then
//!     `acc = fma(-(dmin * s), M, acc)`, `M = sum_j m_j sum_i q_i`.
//!   - Q6_K: `acc = fma(d * s, I, acc)`, `I = sum_j sc_j sum_i w_i q_i`, w_i in -32..=31.
//!
//!   Nothing depends on other outputs: sixteen outputs side by side, one per lane, give these bits, and
//!   that is how the CPU back end packs them (`cpu/packed`).
//! * **F32, F16, BF16** multiply the unquantised x: 16 accumulators, accumulator l takes the elements
//!   k = l mod 16 in order by fma; missing elements at the end count as 0 * 0. Then accumulators l and
//!   l + 8 are added, then l and l + 4, l + 2, l + 1.
//! * **One thread** computes an output from start to end.
//! * exp, sine, cosine and powers are ours or `libm`'s, never the platform's.
//!
//! Changing any of this changes [`ARITHMETIC_VERSION`](crate::ARITHMETIC_VERSION).

#[cfg(test)]
pub(crate) mod emulation;
pub(crate) mod float;
pub(crate) mod input;
mod k;
mod q4;
mod q5;
mod q8;

pub(crate) use float::{Bf16, F16, F32, FloatWeight};
#[cfg(feature = "cuda")]
pub(crate) use k::scales_and_minima;
pub(crate) use k::{Q4K, Q5K, Q6K};
pub(crate) use q4::{Q4_0, Q4_1};
pub(crate) use q5::{Q5_0, Q5_1};
pub(crate) use q8::Q8_0;

use gguf::TensorKind;
use input::Input;

use crate::simd::{Halves, Lanes, Line};

/// Weight formats that have kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // The formats' own names.
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// How a format wants its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputKind {
    Float,
    Blocks32,
    Blocks256,
}

impl Format {
    /// Names of all formats, for messages.
    pub(crate) const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

    pub(crate) fn of(kind: TensorKind) -> Option<Self> {
        Some(match kind {
            TensorKind::F32 => Self::F32,
            TensorKind::F16 => Self::F16,
            TensorKind::BF16 => Self::BF16,
            TensorKind::Q8_0 => Self::Q8_0,
            TensorKind::Q4_0 => Self::Q4_0,
            TensorKind::Q4_1 => Self::Q4_1,
            TensorKind::Q5_0 => Self::Q5_0,
            TensorKind::Q5_1 => Self::Q5_1,
            TensorKind::Q4_K => Self::Q4_K,
            TensorKind::Q5_K => Self::Q5_K,
            TensorKind::Q6_K => Self::Q6_K,
            _ => return None,
        })
    }

    pub(crate) fn input(self) -> InputKind {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => InputKind::Float,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => InputKind::Blocks32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => InputKind::Blocks256,
        }
    }

    /// Weights in a block and bytes of a block.
    pub(crate) fn block(self) -> (usize, usize) {
        fn sizes<B: Block>() -> (usize, usize) {
            (B::ELEMS, size_of::<B>())
        }
        match self {
            Self::F32 => sizes::<F32>(),
            Self::F16 => sizes::<F16>(),
            Self::BF16 => sizes::<Bf16>(),
            Self::Q8_0 => sizes::<Q8_0>(),
            Self::Q4_0 => sizes::<Q4_0>(),
            Self::Q4_1 => sizes::<Q4_1>(),
            Self::Q5_0 => sizes::<Q5_0>(),
            Self::Q5_1 => sizes::<Q5_1>(),
            Self::Q4_K => sizes::<Q4K>(),
            Self::Q5_K => sizes::<Q5K>(),
            Self::Q6_K => sizes::<Q6K>(),
        }
    }

    /// The weights that `bytes` (whole blocks) mean, written to `out` (as many as the blocks hold).
    pub(crate) fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        fn all<B: Block>(bytes: &[u8], out: &mut [f32]) {
            for (block, out) in blocks::<B>(bytes).iter().zip(out.chunks_exact_mut(B::ELEMS)) {
                block.dequantise(out);
            }
        }
        match self {
            Self::F32 => all::<F32>(bytes, out),
            Self::F16 => all::<F16>(bytes, out),
            Self::BF16 => all::<Bf16>(bytes, out),
            Self::Q8_0 => all::<Q8_0>(bytes, out),
            Self::Q4_0 => all::<Q4_0>(bytes, out),
            Self::Q4_1 => all::<Q4_1>(bytes, out),
            Self::Q5_0 => all::<Q5_0>(bytes, out),
            Self::Q5_1 => all::<Q5_1>(bytes, out),
            Self::Q4_K => all::<Q4K>(bytes, out),
            Self::Q5_K => all::<Q5K>(bytes, out),
            Self::Q6_K => all::<Q6K>(bytes, out),
        }
    }
}

/// The bytes of one block as they lie in the file.
///
/// # Safety
/// The type must be `repr(C)` and consist of byte arrays only: alignment 1, no padding, every bit
/// pattern a value. [`blocks`] relies on it.
pub(crate) unsafe trait Block: Copy + Send + Sync + 'static {
    /// Weights in a block.
    const ELEMS: usize;

    /// The weights this block means; `out` holds `ELEMS`.
    fn dequantise(&self, out: &mut [f32]);
}

/// A block whose product with quantised inputs is an integer.
///
/// Kernels do not read it as the file has it but *packed*: sixteen outputs side by side. A block is then
/// `WORDS` lines, line i holding word i of each of the 16 outputs' blocks, and `HALVES` lines of half floats.
pub(crate) trait IntegerBlock: Block {
    type Input: Input;

    /// Words of 4 bytes: all of the block but its float scales.
    const WORDS: usize;
    /// Its float scales.
    const HALVES: usize;

    /// The words to pack; `to` holds `WORDS`.
    fn words(&self, to: &mut [[u8; 4]]);

    /// The float scales to pack; `to` holds `HALVES`.
    fn halves(&self, to: &mut [[u8; 2]]);

    /// Adds the products of one packed block with N rows' blocks of inputs to `acc`; lane r belongs to
    /// output r.
    fn accumulate<L: Lanes, const N: usize>(
        l: L,
        lines: &[Line],
        halves: &[Halves],
        x: &[&Self::Input; N],
        acc: &mut [L::Floats; N],
    );
}

/// Inputs 4 `i` to 4 `i` + 3 of a block.
#[inline(always)]
pub(crate) fn quad<const K: usize>(q: &[i8; K], i: usize) -> [i8; 4] {
    [q[4 * i], q[4 * i + 1], q[4 * i + 2], q[4 * i + 3]]
}

/// `bytes` seen as blocks; a remainder shorter than a block is left out.
pub(crate) fn blocks<B: Block>(bytes: &[u8]) -> &[B] {
    // SAFETY: `Block` promises alignment 1 and that every bit pattern is a value; the length is
    // rounded down to whole blocks inside `bytes`, and the lifetime is that of `bytes`.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<B>(), bytes.len() / size_of::<B>()) }
}

/// A half float of a block's header.
#[inline(always)]
pub(crate) fn half(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}
