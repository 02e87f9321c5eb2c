//! Norm, RoPE, the gate and sums: everything between products and attention.

use half::f16;

use super::exp::exp;
use super::pool::{Parts, Pool};
use crate::arch::{Rope, RopeStyle};
use crate::quant::float::dot;
use crate::simd::{Kernel, LANES, Lanes};

/// RMS norm of `x` into `out`.
#[inline(always)]
pub(super) fn rms_norm<L: Lanes>(l: L, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let inverse = inverse_rms(l, x, epsilon);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * w;
    }
}

#[inline(always)]
fn inverse_rms<L: Lanes>(l: L, x: &[f32], epsilon: f32) -> f32 {
    let mean = dot(l, x, x) / x.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}

/// `silu(gate) * up`, silu(x) = x / (1 + e^-x).
#[inline(always)]
pub(super) fn gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `x += y`.
pub(super) fn add(pool: &mut Pool, x: &mut [f32], y: &[f32]) {
    /// Worth a task.
    const PIECE: usize = 16 * 1024;
    pool.pieces(x, PIECE, |i, x| add_to(x, &y[i * PIECE..]));
}

/// `x += y`, as long as `x` is.
#[inline(always)]
pub(super) fn add_to(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// What happens to the queries or keys of one row between product and attention, in place.
pub(super) struct Heads<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) head_dim: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// Weights of an RMS norm over each head, and its epsilon.
    pub(super) norm: Option<(&'a [f32], f32)>,
    pub(super) angles: &'a Angles,
    /// Of the step's piece.
    pub(super) row: usize,
}

impl Kernel for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        if let Some(bias) = self.bias {
            add_to(self.x, bias);
        }
        for head in self.x.chunks_exact_mut(self.head_dim) {
            if let Some((weight, epsilon)) = self.norm {
                let inverse = inverse_rms(l, head, epsilon);
                for (x, w) in head.iter_mut().zip(weight) {
                    *x = *x * inverse * w;
                }
            }
            self.angles.turn(self.row, head);
        }
    }
}

/// Cosine and sine of each row's angles: `dims / 2` pairs a row.
pub(super) struct Angles {
    style: RopeStyle,
    frequencies: Vec<f64>,
    /// What sines and cosines are multiplied by.
    amplitude: f64,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Angles {
    pub(super) fn new(rope: &Rope) -> Self {
        let (frequencies, amplitude) = (rope.frequencies(), rope.amplitude());
        Self { style: rope.style, frequencies, amplitude, cosines: Vec::new(), sines: Vec::new() }
    }

    /// Takes the rows' positions.
    pub(super) fn set(&mut self, pool: &mut Pool, positions: impl Fn(usize) -> u32 + Sync, rows: usize) {
        let pairs = self.frequencies.len();
        self.cosines.resize(rows * pairs, 0.0);
        self.sines.resize(rows * pairs, 0.0);
        let sines = Parts::new(&mut self.sines);
        let (frequencies, amplitude) = (&self.frequencies, self.amplitude);
        pool.pieces(&mut self.cosines, pairs.max(1), |row, cosines| {
            // SAFETY: each row is one task's.
            let sines = unsafe { sines.get(row * pairs, pairs) };
            for ((cosine, sine), f) in cosines.iter_mut().zip(sines).zip(frequencies) {
                let (s, c) = libm::sincos(f64::from(positions(row)) * f);
                (*cosine, *sine) = ((c * amplitude) as f32, (s * amplitude) as f32);
            }
        });
    }

    /// Turns one head of a row.
    #[inline(always)]
    fn turn(&self, row: usize, head: &mut [f32]) {
        /// Elements of all heads but unheard-of ones.
        const COPY: usize = 512;
        let pairs = self.frequencies.len();
        let cosines = &self.cosines[row * pairs..(row + 1) * pairs];
        let turns = cosines.iter().zip(&self.sines[row * pairs..(row + 1) * pairs]);
        match self.style {
            RopeStyle::Adjacent => {
                for (pair, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    (pair[0], pair[1]) = turned(pair[0], pair[1], turn);
                }
            }
            RopeStyle::HalvesToAdjacent => {
                // Read from here while the head itself is written in another order.
                let (mut small, mut large) = ([0.0; COPY], Vec::new());
                let copy = if 2 * pairs <= COPY {
                    &mut small[..2 * pairs]
                } else {
                    large.resize(2 * pairs, 0.0);
                    &mut large[..]
                };
                copy.copy_from_slice(&head[..2 * pairs]);
                let (first, second) = copy.split_at(pairs);
                let both = first.iter().zip(second).zip(turns);
                for (pair, ((a, b), turn)) in head.as_chunks_mut::<2>().0.iter_mut().zip(both) {
                    (pair[0], pair[1]) = turned(*a, *b, turn);
                }
            }
            RopeStyle::Halves => {
                let (first, second) = head.split_at_mut(pairs);
                for ((a, b), turn) in first.iter_mut().zip(second).zip(turns) {
                    (*a, *b) = turned(*a, *b, turn);
                }
            }
        }
    }
}

#[inline(always)]
fn turned(a: f32, b: f32, (cosine, sine): (&f32, &f32)) -> (f32, f32) {
    (a.mul_add(*cosine, -(b * sine)), a.mul_add(*sine, b * cosine))
}

/// `silu(gate) * up`.
pub(super) struct Gated<'a> {
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        gate(self.gate, self.up, self.out);
    }
}

/// Keys or values to half floats.
pub(super) struct Round<'a>(pub(super) &'a [f32], pub(super) &'a mut [[u8; 2]]);

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (from, rest) = self.0.as_chunks::<LANES>();
        let (to, to_rest) = self.1.split_at_mut(from.len() * LANES);
        let to = to.as_flattened_mut().as_chunks_mut().0;
        for (to, from) in to.iter_mut().zip(from) {
            l.store_halves(l.load(from), to);
        }
        for (to, from) in to_rest.iter_mut().zip(rest) {
            *to = f16::from_f32(*from).to_le_bytes();
        }
    }
}
