//! AVX2 with FMA and F16C: sixteen lanes are two registers.

use std::arch::x86_64::*;

use super::{AHEAD, Halves, Kernel, LANES, Lanes, Line};

/// # Safety
/// The processor must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Built only by `run`, whose caller has detected the instructions: that is what the SAFETY note below
/// calls "the token".
#[derive(Clone, Copy)]
struct Avx2(());

/// One intrinsic expression, justified by the token.
macro_rules! by_token {
    ($e:expr) => {
        // SAFETY: a token exists only where these instructions were detected; loads and stores go
        // through references to arrays of exactly two registers' size; a prefetch touches nothing.
        unsafe { $e }
    };
}

/// The same for both registers.
macro_rules! both {
    ($a:ident, $b:ident, |$x:ident, $y:ident| $e:expr) => {{
        [
            {
                let ($x, $y) = ($a[0], $b[0]);
                by_token!($e)
            },
            {
                let ($x, $y) = ($a[1], $b[1]);
                by_token!($e)
            },
        ]
    }};
}

/// The same for both registers of one operand.
macro_rules! each {
    ($a:ident, |$x:ident| $e:expr) => {{
        [
            {
                let $x = $a[0];
                by_token!($e)
            },
            {
                let $x = $a[1];
                by_token!($e)
            },
        ]
    }};
}

impl Avx2 {
    /// Sums of four products of unsigned with signed bytes a lane; no pair may leave 16 bits.
    #[inline(always)]
    fn quads(self, u: __m256i, x: __m256i) -> __m256i {
        by_token!(_mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1)))
    }
}

impl Lanes for Avx2 {
    const ROWS: usize = 2;

    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    fn ahead(self, line: &Line) {
        by_token!({
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(AHEAD[0]).cast());
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD[1]).cast());
        })
    }

    #[inline(always)]
    fn bytes(self, from: &Line) -> [__m256i; 2] {
        self.ahead(from);
        let at: *const __m256i = from.as_ptr().cast();
        by_token!([_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))])
    }

    #[inline(always)]
    fn low_nibbles(self, b: [__m256i; 2]) -> [__m256i; 2] {
        each!(b, |x| _mm256_and_si256(x, _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn high_nibbles(self, b: [__m256i; 2]) -> [__m256i; 2] {
        each!(b, |x| _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn with_bit(self, low: [__m256i; 2], planes: [__m256i; 2], i: u32) -> [__m256i; 2] {
        both!(low, planes, |low, p| {
            let to_four = if i < 4 {
                _mm256_sll_epi16(p, _mm_cvtsi32_si128(4 - i as i32))
            } else {
                _mm256_srl_epi16(p, _mm_cvtsi32_si128(i as i32 - 4))
            };
            _mm256_or_si256(_mm256_and_si256(to_four, _mm256_set1_epi8(16)), low)
        })
    }

    #[inline(always)]
    fn with_pair(self, low: [__m256i; 2], planes: [__m256i; 2], i: u32) -> [__m256i; 2] {
        both!(low, planes, |low, p| {
            let to_four = if i < 2 {
                _mm256_sll_epi16(p, _mm_cvtsi32_si128(4 - 2 * i as i32))
            } else {
                _mm256_srl_epi16(p, _mm_cvtsi32_si128(2 * i as i32 - 4))
            };
            _mm256_or_si256(_mm256_and_si256(to_four, _mm256_set1_epi8(48)), low)
        })
    }

    #[inline(always)]
    fn dot4(self, acc: [__m256i; 2], w: [__m256i; 2], x: [i8; 4]) -> [__m256i; 2] {
        let x = by_token!(_mm256_set1_epi32(word(x)));
        // 2 * 127 * 127 fits 16 bits.
        both!(acc, w, |acc, w| _mm256_add_epi32(acc, self.quads(w, x)))
    }

    #[inline(always)]
    fn start_offset(self, _: i32) -> [__m256i; 2] {
        self.ints(0)
    }

    #[inline(always)]
    fn dot4_offset(self, acc: [__m256i; 2], w: [__m256i; 2], x: [i8; 4]) -> [__m256i; 2] {
        let x = by_token!(_mm256_set1_epi32(word(x)));
        both!(acc, w, |acc, w| {
            // |w| * (x with w's sign): |-128| is 128 as an unsigned byte, and 2 * 128 * 127 fits 16 bits.
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            _mm256_add_epi32(acc, self.quads(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)))
        })
    }

    #[inline(always)]
    fn dot2(self, acc: [__m256i; 2], w: [__m256i; 2], x: [i16; 2]) -> [__m256i; 2] {
        let x = i32::from(x[0]) & 0xffff | i32::from(x[1]) << 16;
        both!(acc, w, |acc, w| _mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_set1_epi32(x))))
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [__m256i; 2] {
        by_token!([_mm256_set1_epi32(value); 2])
    }

    #[inline(always)]
    fn words(self, from: &Line) -> [__m256i; 2] {
        self.bytes(from)
    }

    #[inline(always)]
    fn add(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both!(a, b, |a, b| _mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both!(a, b, |a, b| _mm256_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: [__m256i; 2], mask: u32) -> [__m256i; 2] {
        each!(a, |a| _mm256_and_si256(a, _mm256_set1_epi32(mask as i32)))
    }

    #[inline(always)]
    fn either(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both!(a, b, |a, b| _mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn shr(self, a: [__m256i; 2], n: u32) -> [__m256i; 2] {
        each!(a, |a| _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }

    #[inline(always)]
    fn byte(self, a: [__m256i; 2], i: u32) -> [__m256i; 2] {
        self.and(self.shr(a, 8 * i), 255)
    }

    #[inline(always)]
    fn signed_byte(self, a: [__m256i; 2], i: u32) -> [__m256i; 2] {
        each!(a, |a| {
            let up = _mm256_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * i as i32));
            _mm256_srai_epi32::<24>(up)
        })
    }

    #[inline(always)]
    fn floats(self, value: f32) -> [__m256; 2] {
        by_token!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [__m256; 2] {
        by_token!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))])
    }

    #[inline(always)]
    fn store(self, a: [__m256; 2], to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        by_token!({
            _mm256_storeu_ps(at, a[0]);
            _mm256_storeu_ps(at.add(8), a[1]);
        })
    }

    #[inline(always)]
    fn halves(self, from: &Halves) -> [__m256; 2] {
        let at: *const __m128i = from.as_ptr().cast();
        by_token!([_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))])
    }

    #[inline(always)]
    fn bfloats(self, from: &Halves) -> [__m256; 2] {
        let at: *const __m128i = from.as_ptr().cast();
        let bits = by_token!([_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))]);
        each!(bits, |b| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(b))))
    }

    #[inline(always)]
    fn store_halves(self, a: [__m256; 2], to: &mut Halves) {
        let at: *mut __m128i = to.as_mut_ptr().cast();
        by_token!({
            _mm_storeu_si128(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[0]));
            _mm_storeu_si128(at.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[1]));
        })
    }

    #[inline(always)]
    fn to_floats(self, a: [__m256i; 2]) -> [__m256; 2] {
        each!(a, |a| _mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn plus(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b, |a, b| _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn times(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b, |a, b| _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        by_token!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn larger(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(a, b, |a, b| _mm256_max_ps(a, b))
    }
}

#[inline(always)]
fn word(x: [i8; 4]) -> i32 {
    i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8])
}
