//! AVX2 with FMA and F16C, and the same with the AVX-512 VNNI byte products on 256-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, Lanes, eight};

/// # Safety
/// The processor must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx::<false>(()))
}

/// # Safety
/// The processor must have AVX2, FMA, F16C and AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx::<true>(()))
}

/// Built only by `run_avx2` and `run_avx512`, whose callers have detected the instructions: that is
/// what the SAFETY notes below call "the token".
#[derive(Clone, Copy)]
struct Avx<const VNNI: bool>(());

impl<const VNNI: bool> Avx<VNNI> {
    /// Sums of four byte products in each 32-bit lane; `u` unsigned.
    ///
    /// # Safety
    /// As the token says. Without VNNI pairs are summed in 16 bits: `u` must be at most 128.
    #[inline(always)]
    unsafe fn quads(self, u: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's token.
        unsafe {
            if VNNI {
                _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, x)
            } else {
                _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1))
            }
        }
    }

    /// Lane sums of 8 registers, low and high 128 bits apart, as two registers of 8 rows.
    ///
    /// # Safety
    /// As the token says.
    #[inline(always)]
    unsafe fn across(self, p: [__m256i; 8]) -> (__m256i, __m256i) {
        // SAFETY: the caller's token.
        unsafe {
            let a = _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]));
            let b = _mm256_hadd_epi32(_mm256_hadd_epi32(p[4], p[5]), _mm256_hadd_epi32(p[6], p[7]));
            (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
        }
    }
}

/// One intrinsic expression, justified by the token.
macro_rules! by_token {
    ($e:expr) => {
        // SAFETY: a token exists only where these instructions were detected; loads and stores go
        // through references to arrays of exactly the register's size; a prefetch touches nothing.
        unsafe { $e }
    };
}

impl<const VNNI: bool> Lanes for Avx<VNNI> {
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        by_token!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }

    #[inline(always)]
    fn bytes(self, from: &[u8; 32]) -> __m256i {
        by_token!(_mm256_loadu_si256(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> __m256i {
        by_token!({
            let q = _mm_loadu_si128(from.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(q), q);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        })
    }

    #[inline(always)]
    fn fifth_bits(self, mask: u32) -> __m256i {
        by_token!({
            // Byte i of the mask to bytes 8i..8i+8, then one bit of it to each.
            let spread = _mm256_shuffle_epi8(
                _mm256_set1_epi32(mask as i32),
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303),
            );
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
            _mm256_and_si256(set, _mm256_set1_epi8(16))
        })
    }

    #[inline(always)]
    fn low_nibbles(self, b: __m256i) -> __m256i {
        by_token!(_mm256_and_si256(b, _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn high_nibbles(self, b: __m256i) -> __m256i {
        by_token!(_mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn plane<const SHIFT: i32, const MASK: i8>(self, b: __m256i) -> __m256i {
        by_token!({
            let bits = _mm256_and_si256(_mm256_srli_epi16::<SHIFT>(b), _mm256_set1_epi8(MASK));
            _mm256_slli_epi16::<4>(bits)
        })
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        by_token!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn dots(self, rows: &[__m256i; 8], x: &[i8; 32]) -> (__m256i, __m256i) {
        by_token!({
            let x = _mm256_loadu_si256(x.as_ptr().cast());
            self.across(eight!(r => self.quads(rows[r], x)))
        })
    }

    #[inline(always)]
    fn dots_signed(self, rows: &[__m256i; 8], x: &[i8; 32]) -> __m256i {
        by_token!({
            let x = _mm256_loadu_si256(x.as_ptr().cast());
            // |w| * (x with w's sign): |-128| is 128 as an unsigned byte, and 2 * 128 * 127 fits 16 bits.
            let (a, b) =
                self.across(eight!(r => self.quads(_mm256_abs_epi8(rows[r]), _mm256_sign_epi8(x, rows[r]))));
            _mm256_add_epi32(a, b)
        })
    }

    #[inline(always)]
    fn ints(self, value: i32) -> __m256i {
        by_token!(_mm256_set1_epi32(value))
    }

    #[inline(always)]
    fn words(self, from: [[u8; 4]; 8]) -> __m256i {
        let w = eight!(r => i32::from_le_bytes(from[r]));
        by_token!(_mm256_setr_epi32(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]))
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        by_token!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256i, b: __m256i) -> __m256i {
        by_token!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256i, b: __m256i) -> __m256i {
        by_token!(_mm256_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m256i, mask: u32) -> __m256i {
        by_token!(_mm256_and_si256(a, _mm256_set1_epi32(mask as i32)))
    }

    #[inline(always)]
    fn either(self, a: __m256i, b: __m256i) -> __m256i {
        by_token!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: __m256i) -> __m256i {
        by_token!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)))
    }

    #[inline(always)]
    fn byte(self, a: __m256i, i: u32) -> __m256i {
        by_token!({
            let down = _mm256_srl_epi32(a, _mm_cvtsi32_si128(8 * i as i32));
            _mm256_and_si256(down, _mm256_set1_epi32(255))
        })
    }

    #[inline(always)]
    fn signed_byte(self, a: __m256i, i: u32) -> __m256i {
        by_token!({
            let up = _mm256_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * i as i32));
            _mm256_srai_epi32::<24>(up)
        })
    }

    #[inline(always)]
    fn floats(self, value: f32) -> __m256 {
        by_token!(_mm256_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> __m256 {
        by_token!(_mm256_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, a: __m256, to: &mut [f32; 8]) {
        by_token!(_mm256_storeu_ps(to.as_mut_ptr(), a))
    }

    #[inline(always)]
    fn halves(self, from: [[u8; 2]; 8]) -> __m256 {
        // Inserted one by one: narrow stores and a wide load of them would stall.
        let h = eight!(r => i16::from_le_bytes(from[r]));
        by_token!(_mm256_cvtph_ps(_mm_setr_epi16(h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7])))
    }

    #[inline(always)]
    fn load_f32(self, from: &[[u8; 4]; 8]) -> __m256 {
        by_token!(_mm256_loadu_ps(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn load_f16(self, from: &[[u8; 2]; 8]) -> __m256 {
        by_token!(_mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[[u8; 2]; 8]) -> __m256 {
        by_token!({
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    fn to_floats(self, a: __m256i) -> __m256 {
        by_token!(_mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn times(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        by_token!(_mm256_fmadd_ps(a, b, c))
    }
}
