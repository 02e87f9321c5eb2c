//! AVX-512 with the VNNI byte products: a lane's sixteen in one register.

use std::arch::x86_64::*;

use super::{AHEAD, Halves, Kernel, LANES, Lanes, Line};

/// # Safety
/// The processor must have AVX2, FMA, F16C and AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Built only by `run`, whose caller has detected the instructions: that is what the SAFETY note below
/// calls "the token".
#[derive(Clone, Copy)]
struct Avx512(());

/// One intrinsic expression, justified by the token.
macro_rules! by_token {
    ($e:expr) => {
        // SAFETY: a token exists only where these instructions were detected; loads and stores go
        // through references to arrays of exactly the register's size; a prefetch touches nothing.
        unsafe { $e }
    };
}

impl Lanes for Avx512 {
    const ROWS: usize = 8;

    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn ahead(self, line: &Line) {
        by_token!({
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(AHEAD[0]).cast());
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD[1]).cast());
        })
    }

    #[inline(always)]
    fn bytes(self, from: &Line) -> __m512i {
        self.ahead(from);
        by_token!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn low_nibbles(self, b: __m512i) -> __m512i {
        by_token!(_mm512_and_si512(b, _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn high_nibbles(self, b: __m512i) -> __m512i {
        by_token!(_mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn with_bit(self, low: __m512i, planes: __m512i, i: u32) -> __m512i {
        by_token!({
            let to_four = if i < 4 {
                _mm512_sll_epi16(planes, _mm_cvtsi32_si128(4 - i as i32))
            } else {
                _mm512_srl_epi16(planes, _mm_cvtsi32_si128(i as i32 - 4))
            };
            _mm512_or_si512(_mm512_and_si512(to_four, _mm512_set1_epi8(16)), low)
        })
    }

    #[inline(always)]
    fn with_pair(self, low: __m512i, planes: __m512i, i: u32) -> __m512i {
        by_token!({
            let to_four = if i < 2 {
                _mm512_sll_epi16(planes, _mm_cvtsi32_si128(4 - 2 * i as i32))
            } else {
                _mm512_srl_epi16(planes, _mm_cvtsi32_si128(2 * i as i32 - 4))
            };
            _mm512_or_si512(_mm512_and_si512(to_four, _mm512_set1_epi8(48)), low)
        })
    }

    #[inline(always)]
    fn dot4(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
        by_token!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(word(x))))
    }

    #[inline(always)]
    fn start_offset(self, offset: i32) -> __m512i {
        self.ints(offset)
    }

    #[inline(always)]
    fn dot4_offset(self, acc: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
        self.dot4(acc, w, x)
    }

    #[inline(always)]
    fn dot2(self, acc: __m512i, w: __m512i, x: [i16; 2]) -> __m512i {
        let x = i32::from(x[0]) & 0xffff | i32::from(x[1]) << 16;
        by_token!(_mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(x)))
    }

    #[inline(always)]
    fn ints(self, value: i32) -> __m512i {
        by_token!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn words(self, from: &Line) -> __m512i {
        self.bytes(from)
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        by_token!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512i, b: __m512i) -> __m512i {
        by_token!(_mm512_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512i, mask: u32) -> __m512i {
        by_token!(_mm512_and_si512(a, _mm512_set1_epi32(mask as i32)))
    }

    #[inline(always)]
    fn either(self, a: __m512i, b: __m512i) -> __m512i {
        by_token!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn shr(self, a: __m512i, n: u32) -> __m512i {
        by_token!(_mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }

    #[inline(always)]
    fn byte(self, a: __m512i, i: u32) -> __m512i {
        self.and(self.shr(a, 8 * i), 255)
    }

    #[inline(always)]
    fn signed_byte(self, a: __m512i, i: u32) -> __m512i {
        by_token!({
            let up = _mm512_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * i as i32));
            _mm512_srai_epi32::<24>(up)
        })
    }

    #[inline(always)]
    fn floats(self, value: f32) -> __m512 {
        by_token!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        by_token!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, a: __m512, to: &mut [f32; LANES]) {
        by_token!(_mm512_storeu_ps(to.as_mut_ptr(), a))
    }

    #[inline(always)]
    fn halves(self, from: &Halves) -> __m512 {
        by_token!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn bfloats(self, from: &Halves) -> __m512 {
        by_token!({
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    fn store_halves(self, a: __m512, to: &mut Halves) {
        by_token!({
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        })
    }

    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        by_token!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn plus(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn times(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        by_token!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_max_ps(a, b))
    }
}

#[inline(always)]
fn word(x: [i8; 4]) -> i32 {
    i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8])
}
