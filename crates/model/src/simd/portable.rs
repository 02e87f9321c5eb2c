use half::f16;

use super::Lanes;

/// Plain Rust; the meaning that the other levels must equal.
#[derive(Clone, Copy)]
pub(super) struct Portable;

macro_rules! zip {
    ($a:ident, $b:ident, |$x:ident, $y:ident| $e:expr) => {{
        let mut out = $a;
        for (o, y) in out.iter_mut().zip($b) {
            let ($x, $y) = (*o, y);
            *o = $e;
        }
        out
    }};
}

macro_rules! each {
    ($a:ident, |$x:ident| $e:expr) => {{
        let mut out = $a;
        for o in &mut out {
            let $x = *o;
            *o = $e;
        }
        out
    }};
}

impl Lanes for Portable {
    type Bytes = [u8; 32];
    type Ints = [i32; 8];
    type Floats = [f32; 8];

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn bytes(self, from: &[u8; 32]) -> [u8; 32] {
        *from
    }

    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> [u8; 32] {
        let mut out = [0; 32];
        for (i, b) in from.iter().enumerate() {
            out[i] = b & 15;
            out[i + 16] = b >> 4;
        }
        out
    }

    #[inline(always)]
    fn fifth_bits(self, mask: u32) -> [u8; 32] {
        let mut out = [0; 32];
        for (i, o) in out.iter_mut().enumerate() {
            *o = ((mask >> i & 1) << 4) as u8;
        }
        out
    }

    #[inline(always)]
    fn low_nibbles(self, b: [u8; 32]) -> [u8; 32] {
        each!(b, |x| x & 15)
    }

    #[inline(always)]
    fn high_nibbles(self, b: [u8; 32]) -> [u8; 32] {
        each!(b, |x| x >> 4)
    }

    #[inline(always)]
    fn plane<const SHIFT: i32, const MASK: i8>(self, b: [u8; 32]) -> [u8; 32] {
        each!(b, |x| ((x >> SHIFT) & MASK as u8) << 4)
    }

    #[inline(always)]
    fn or(self, a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        zip!(a, b, |x, y| x | y)
    }

    #[inline(always)]
    fn dots(self, rows: &[[u8; 32]; 8], x: &[i8; 32]) -> ([i32; 8], [i32; 8]) {
        let (mut first, mut second) = ([0; 8], [0; 8]);
        for r in 0..8 {
            for i in 0..16 {
                first[r] += i32::from(rows[r][i]) * i32::from(x[i]);
                second[r] += i32::from(rows[r][i + 16]) * i32::from(x[i + 16]);
            }
        }
        (first, second)
    }

    #[inline(always)]
    fn dots_signed(self, rows: &[[u8; 32]; 8], x: &[i8; 32]) -> [i32; 8] {
        let mut sums = [0; 8];
        for r in 0..8 {
            for i in 0..32 {
                sums[r] += i32::from(rows[r][i] as i8) * i32::from(x[i]);
            }
        }
        sums
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [i32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn words(self, from: [[u8; 4]; 8]) -> [i32; 8] {
        from.map(i32::from_le_bytes)
    }

    #[inline(always)]
    fn add(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip!(a, b, |x, y| x + y)
    }

    #[inline(always)]
    fn sub(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip!(a, b, |x, y| x - y)
    }

    #[inline(always)]
    fn mul(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip!(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn and(self, a: [i32; 8], mask: u32) -> [i32; 8] {
        each!(a, |x| x & mask as i32)
    }

    #[inline(always)]
    fn either(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip!(a, b, |x, y| x | y)
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: [i32; 8]) -> [i32; 8] {
        each!(a, |x| (x as u32 >> N) as i32)
    }

    #[inline(always)]
    fn byte(self, a: [i32; 8], i: u32) -> [i32; 8] {
        each!(a, |x| i32::from((x as u32 >> (8 * i)) as u8))
    }

    #[inline(always)]
    fn signed_byte(self, a: [i32; 8], i: u32) -> [i32; 8] {
        each!(a, |x| i32::from((x as u32 >> (8 * i)) as u8 as i8))
    }

    #[inline(always)]
    fn floats(self, value: f32) -> [f32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> [f32; 8] {
        *from
    }

    #[inline(always)]
    fn store(self, a: [f32; 8], to: &mut [f32; 8]) {
        *to = a;
    }

    #[inline(always)]
    fn halves(self, from: [[u8; 2]; 8]) -> [f32; 8] {
        from.map(|h| f16::from_le_bytes(h).to_f32())
    }

    #[inline(always)]
    fn load_f32(self, from: &[[u8; 4]; 8]) -> [f32; 8] {
        from.map(f32::from_le_bytes)
    }

    #[inline(always)]
    fn load_f16(self, from: &[[u8; 2]; 8]) -> [f32; 8] {
        self.halves(*from)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[[u8; 2]; 8]) -> [f32; 8] {
        from.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
    }

    #[inline(always)]
    fn to_floats(self, a: [i32; 8]) -> [f32; 8] {
        a.map(|x| x as f32)
    }

    #[inline(always)]
    fn times(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip!(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        let mut out = c;
        for i in 0..8 {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
}
