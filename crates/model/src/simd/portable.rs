use half::{bf16, f16};

use super::{Halves, LANES, Lanes, Line, Small};

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
    const ROWS: usize = 1;

    type Bytes = Line;
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];

    #[inline(always)]
    fn ahead(self, _: &Line) {}

    #[inline(always)]
    fn bytes(self, from: &Line) -> Line {
        *from
    }

    #[inline(always)]
    fn low_nibbles(self, b: Line) -> Line {
        each!(b, |x| x & 15)
    }

    #[inline(always)]
    fn high_nibbles(self, b: Line) -> Line {
        each!(b, |x| x >> 4)
    }

    #[inline(always)]
    fn with_bit(self, low: Line, planes: Line, i: u32) -> Line {
        zip!(low, planes, |x, p| x | (p >> i & 1) << 4)
    }

    #[inline(always)]
    fn with_pair(self, low: Line, planes: Line, i: u32) -> Line {
        zip!(low, planes, |x, p| x | (p >> (2 * i) & 3) << 4)
    }

    #[inline(always)]
    fn dot4(self, acc: [i32; LANES], w: Line, x: [i8; 4]) -> [i32; LANES] {
        let w = w.as_chunks::<4>().0;
        zip!(acc, w, |acc, w| {
            let mut sum = acc;
            for (w, x) in w.iter().zip(x) {
                sum += i32::from(*w) * i32::from(x);
            }
            sum
        })
    }

    #[inline(always)]
    fn start_offset(self, offset: i32) -> [i32; LANES] {
        self.ints(offset)
    }

    #[inline(always)]
    fn dot4_offset(self, acc: [i32; LANES], w: Line, x: [i8; 4]) -> [i32; LANES] {
        self.dot4(acc, w, x)
    }

    #[inline(always)]
    fn dot2(self, acc: [i32; LANES], w: [i32; LANES], x: [i16; 2]) -> [i32; LANES] {
        zip!(acc, w, |acc, w| acc + i32::from(w as i16) * i32::from(x[0]) + (w >> 16) * i32::from(x[1]))
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [i32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn words(self, from: &Line) -> [i32; LANES] {
        let mut out = [0; LANES];
        for (out, from) in out.iter_mut().zip(from.as_chunks::<4>().0) {
            *out = i32::from_le_bytes(*from);
        }
        out
    }

    #[inline(always)]
    fn add(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        zip!(a, b, |x, y| x + y)
    }

    #[inline(always)]
    fn mul(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        zip!(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn and(self, a: [i32; LANES], mask: u32) -> [i32; LANES] {
        each!(a, |x| x & mask as i32)
    }

    #[inline(always)]
    fn either(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        zip!(a, b, |x, y| x | y)
    }

    #[inline(always)]
    fn shr(self, a: [i32; LANES], n: u32) -> [i32; LANES] {
        each!(a, |x| (x as u32 >> n) as i32)
    }

    #[inline(always)]
    fn byte(self, a: [i32; LANES], i: u32) -> [i32; LANES] {
        each!(a, |x| i32::from((x as u32 >> (8 * i)) as u8))
    }

    #[inline(always)]
    fn signed_byte(self, a: [i32; LANES], i: u32) -> [i32; LANES] {
        each!(a, |x| i32::from((x as u32 >> (8 * i)) as u8 as i8))
    }

    #[inline(always)]
    fn floats(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    #[inline(always)]
    fn store(self, a: [f32; LANES], to: &mut [f32; LANES]) {
        *to = a;
    }

    #[inline(always)]
    fn halves(self, from: &Halves) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, from) in out.iter_mut().zip(from.as_chunks::<2>().0) {
            *out = f16::from_le_bytes(*from).to_f32();
        }
        out
    }

    #[inline(always)]
    fn small(self, from: &Small) -> [f32; LANES] {
        from.map(|byte| f32::from(byte as i8))
    }

    #[inline(always)]
    fn bfloats(self, from: &Halves) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, from) in out.iter_mut().zip(from.as_chunks::<2>().0) {
            *out = bf16::from_le_bytes(*from).to_f32();
        }
        out
    }

    #[inline(always)]
    fn store_halves(self, a: [f32; LANES], to: &mut Halves) {
        for (to, a) in to.as_chunks_mut::<2>().0.iter_mut().zip(a) {
            *to = f16::from_f32(a).to_le_bytes();
        }
    }

    #[inline(always)]
    fn to_floats(self, a: [i32; LANES]) -> [f32; LANES] {
        a.map(|x| x as f32)
    }

    #[inline(always)]
    fn plus(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip!(a, b, |x, y| x + y)
    }

    #[inline(always)]
    fn times(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip!(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn fma(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }

    #[inline(always)]
    fn larger(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip!(a, b, |x, y| if x > y { x } else { y })
    }
}
