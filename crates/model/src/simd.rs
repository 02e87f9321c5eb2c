//! Dispatch levels: the same arithmetic compiled for the machine at hand.
//!
//! A kernel is written once against [`Lanes`] (sixteen outputs side by side) and run at the best
//! [`Level`] the processor has. Integer operations are exact and every float operation is one IEEE
//! operation named in the source, so the levels give the same bits (`quant`, *Arithmetic contract*).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use portable::Portable;

/// Outputs side by side.
pub(crate) const LANES: usize = 16;

/// What a 64-byte register holds: four bytes of each lane.
pub(crate) type Line = [u8; 4 * LANES];

/// A half float of each lane, little-endian.
pub(crate) type Halves = [u8; 2 * LANES];

/// Bytes between a load from a stream of weights and what is fetched meanwhile into the second cache, and from there
/// into the first. On streams of a gigabyte one hint
/// alone, 2 KiB ahead, was 1 to 14 % slower.
#[cfg(target_arch = "x86_64")]
const AHEAD: [usize; 2] = [8192, 2048];

/// Instruction sets a kernel can be run with. A value exists only for what this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// Everything this processor can run, slowest first; never empty.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self(Set::Avx2));
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    levels.push(Self(Set::Avx512));
                }
            }
        }
        levels
    }

    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self(Set::Portable))
    }

    /// Runs `kernel` compiled for this level.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Set::Portable => kernel.run(Portable),
            // SAFETY: a `Level` with this set is built only in `available`, after detection.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512::run(kernel) },
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512-vnni",
        })
    }
}

/// Work that is compiled once per level. `run` must be `#[inline(always)]`: only then does its body
/// end up inside the function that carries the level's target features.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Sixteen 32-bit lanes, each also seen as four bytes or two 16-bit halves: the operations that kernels
/// are written in.
///
/// A value of an implementing type is the proof that its instructions exist here.
pub(crate) trait Lanes: Copy {
    /// Most rows of inputs that a product keeps in registers at once: 1, 2 or 8.
    const ROWS: usize;

    /// 16 x 4 bytes.
    type Bytes: Copy;
    /// 16 x i32.
    type Ints: Copy;
    /// 16 x f32.
    type Floats: Copy;

    /// Hints that what lies `AHEAD` of this line in a stream of weights will be read soon. With every line, not many
    /// at once: they would fill the buffers that the loads themselves need.
    fn ahead(self, line: &Line);

    /// A line of a stream of weights, with a hint.
    fn bytes(self, from: &Line) -> Self::Bytes;
    fn low_nibbles(self, b: Self::Bytes) -> Self::Bytes;
    fn high_nibbles(self, b: Self::Bytes) -> Self::Bytes;
    /// Bit `i` (0 to 7) of each byte of `planes` as bit 4 of the nibble in `low`.
    fn with_bit(self, low: Self::Bytes, planes: Self::Bytes, i: u32) -> Self::Bytes;
    /// Bits 2 `i` and 2 `i` + 1 (i from 0 to 3) of each byte of `planes` as bits 4 and 5 over `low`.
    fn with_pair(self, low: Self::Bytes, planes: Self::Bytes, i: u32) -> Self::Bytes;

    /// `acc` and the products of each lane's four bytes (unsigned, at most 127) with `x` (not below -127).
    fn dot4(self, acc: Self::Ints, w: Self::Bytes, x: [i8; 4]) -> Self::Ints;
    /// Where `dot4_offset` begins; `offset` is -128 times the sum of all `x` that will follow.
    fn start_offset(self, offset: i32) -> Self::Ints;
    /// As `dot4` for weights `w - 128`, `w` any byte, after `start_offset`.
    fn dot4_offset(self, acc: Self::Ints, w: Self::Bytes, x: [i8; 4]) -> Self::Ints;
    /// `acc` and the products of each lane's two i16 with `x`.
    fn dot2(self, acc: Self::Ints, w: Self::Ints, x: [i16; 2]) -> Self::Ints;

    fn ints(self, value: i32) -> Self::Ints;
    /// A little-endian word a lane; a line of a stream of weights, with a hint.
    fn words(self, from: &Line) -> Self::Ints;
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn mul(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn and(self, a: Self::Ints, mask: u32) -> Self::Ints;
    fn either(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn shr(self, a: Self::Ints, n: u32) -> Self::Ints;
    /// Byte `i` of each lane, zero-extended.
    fn byte(self, a: Self::Ints, i: u32) -> Self::Ints;
    /// Byte `i` of each lane, sign-extended.
    fn signed_byte(self, a: Self::Ints, i: u32) -> Self::Ints;

    fn floats(self, value: f32) -> Self::Floats;
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    fn store(self, a: Self::Floats, to: &mut [f32; LANES]);
    /// Half floats, exactly.
    fn halves(self, from: &Halves) -> Self::Floats;
    /// bfloat16s, exactly.
    fn bfloats(self, from: &Halves) -> Self::Floats;
    /// To half floats, rounded to nearest even.
    fn store_halves(self, a: Self::Floats, to: &mut Halves);
    /// Rounded to nearest even, as every i32 to f32 conversion.
    fn to_floats(self, a: Self::Ints) -> Self::Floats;
    fn plus(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn times(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `a` where it is larger, else `b`; so `b` where `a` is NaN.
    fn larger(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
}
