//! Dispatch levels: the same arithmetic compiled for the machine at hand.
//!
//! A kernel is written once against [`Lanes`] (eight outputs side by side) and run at the best
//! [`Level`] the processor has. Integer operations are exact and every float operation is one IEEE
//! operation named in the source, so the levels give the same bits (`quant`, *Arithmetic contract*).

#[cfg(target_arch = "x86_64")]
mod avx;
mod portable;

use portable::Portable;

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
            Set::Avx2 => unsafe { avx::run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx::run_avx512(kernel) },
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

/// Eight 32-bit lanes and 32 bytes: the operations that kernels are written in.
///
/// A value of an implementing type is the proof that its instructions exist here.
pub(crate) trait Lanes: Copy {
    /// 32 bytes.
    type Bytes: Copy;
    /// 8 x i32.
    type Ints: Copy;
    /// 8 x f32.
    type Floats: Copy;

    /// Hints that the bytes at `at` will be read soon; any address is allowed.
    fn prefetch(self, at: *const u8);

    fn bytes(self, from: &[u8; 32]) -> Self::Bytes;
    /// The low halves of 16 bytes, then their high halves.
    fn nibbles(self, from: &[u8; 16]) -> Self::Bytes;
    /// Byte i is 16 where bit i of `mask` is set, else 0.
    fn fifth_bits(self, mask: u32) -> Self::Bytes;
    fn low_nibbles(self, b: Self::Bytes) -> Self::Bytes;
    fn high_nibbles(self, b: Self::Bytes) -> Self::Bytes;
    /// `((byte >> SHIFT) & MASK) << 4`: the upper bits of 5- and 6-bit formats.
    fn plane<const SHIFT: i32, const MASK: i8>(self, b: Self::Bytes) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// For each of 8 rows of unsigned bytes (at most 127): its product with `x`, bytes 0 to 15 and
    /// bytes 16 to 31 apart. Lane r of both results belongs to row r.
    fn dots(self, rows: &[Self::Bytes; 8], x: &[i8; 32]) -> (Self::Ints, Self::Ints);
    /// As `dots` for signed bytes, both halves together; `x` is at least -127.
    fn dots_signed(self, rows: &[Self::Bytes; 8], x: &[i8; 32]) -> Self::Ints;

    fn ints(self, value: i32) -> Self::Ints;
    /// Eight little-endian words.
    fn words(self, from: [[u8; 4]; 8]) -> Self::Ints;
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn sub(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn mul(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn and(self, a: Self::Ints, mask: u32) -> Self::Ints;
    fn either(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn shr<const N: u32>(self, a: Self::Ints) -> Self::Ints;
    /// Byte `i` of each lane, zero-extended.
    fn byte(self, a: Self::Ints, i: u32) -> Self::Ints;
    /// Byte `i` of each lane, sign-extended.
    fn signed_byte(self, a: Self::Ints, i: u32) -> Self::Ints;

    fn floats(self, value: f32) -> Self::Floats;
    fn load(self, from: &[f32; 8]) -> Self::Floats;
    fn store(self, a: Self::Floats, to: &mut [f32; 8]);
    /// Eight little-endian half floats from different places, exactly.
    fn halves(self, from: [[u8; 2]; 8]) -> Self::Floats;
    /// Eight little-endian floats, half floats or bfloat16s side by side, exactly.
    fn load_f32(self, from: &[[u8; 4]; 8]) -> Self::Floats;
    fn load_f16(self, from: &[[u8; 2]; 8]) -> Self::Floats;
    fn load_bf16(self, from: &[[u8; 2]; 8]) -> Self::Floats;
    /// Rounded to nearest even, as every i32 to f32 conversion.
    fn to_floats(self, a: Self::Ints) -> Self::Floats;
    fn times(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}

/// `[e(0), .., e(7)]` without a closure: a closure is a function of its own, and one that is not
/// inlined would lose the level's target features.
macro_rules! eight {
    ($r:ident => $e:expr) => {
        [
            { let $r = 0usize; $e },
            { let $r = 1usize; $e },
            { let $r = 2usize; $e },
            { let $r = 3usize; $e },
            { let $r = 4usize; $e },
            { let $r = 5usize; $e },
            { let $r = 6usize; $e },
            { let $r = 7usize; $e },
        ]
    };
}
pub(crate) use eight;
