//! Norm, RoPE and the gate: everything between products and attention.

use rayon::prelude::*;

use super::exp::exp;
use crate::arch::{Rope, RopeStyle};
use crate::quant::float::dot;
use crate::simd::{Kernel, Lanes, Level};

/// Rows that are worth a task of their own.
const ROWS_PER_TASK: usize = 8;

/// RMS norm of each row of `x` (`weight.len()` wide) into `out`: `x / sqrt(mean(x^2) + epsilon) * w`.
pub(super) fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    out.par_chunks_mut(width * ROWS_PER_TASK)
        .zip(x.par_chunks(width * ROWS_PER_TASK))
        .for_each(|(out, x)| level.run(RmsNorm { x, weight, epsilon, out }));
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let inverse = inverse_rms(l, x, self.epsilon);
            for ((out, x), w) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * inverse * w;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms<L: Lanes>(l: L, x: &[f32], epsilon: f32) -> f32 {
    let mean = dot(l, x, x) / x.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}

/// RMS norm of each head (`weight.len()` values) of `x`, in place.
pub(super) fn head_norm(level: Level, weight: &[f32], epsilon: f32, x: &mut [f32]) {
    const HEADS_PER_TASK: usize = 64;
    x.par_chunks_mut(weight.len() * HEADS_PER_TASK).for_each(|x| level.run(HeadNorm { weight, epsilon, x }));
}

struct HeadNorm<'a> {
    weight: &'a [f32],
    epsilon: f32,
    x: &'a mut [f32],
}

impl Kernel for HeadNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for head in self.x.chunks_exact_mut(self.weight.len()) {
            let inverse = inverse_rms(l, head, self.epsilon);
            for (x, w) in head.iter_mut().zip(self.weight) {
                *x = *x * inverse * w;
            }
        }
    }
}

/// Cosine and sine of each row's angles: `dims / 2` pairs a row.
pub(super) struct Angles {
    style: RopeStyle,
    frequencies: Vec<f64>,
    /// What sines and cosines are multiplied by.
    amplitude: f64,
    /// (cosine, sine), row after row.
    turns: Vec<(f32, f32)>,
}

impl Angles {
    pub(super) fn new(rope: &Rope) -> Self {
        let (frequencies, amplitude) = (rope.frequencies(), rope.amplitude());
        Self { style: rope.style, frequencies, amplitude, turns: Vec::new() }
    }

    pub(super) fn set(&mut self, positions: impl Iterator<Item = u32>) {
        self.turns.clear();
        for position in positions {
            self.turns.extend(self.frequencies.iter().map(|f| {
                let (sine, cosine) = libm::sincos(f64::from(position) * f);
                ((cosine * self.amplitude) as f32, (sine * self.amplitude) as f32)
            }));
        }
    }

    /// Turns every head (`head_dim` values each) of every row of `x`.
    pub(super) fn turn(&self, level: Level, head_dim: usize, x: &mut [f32]) {
        let (style, pairs) = (self.style, self.frequencies.len());
        let rows = self.turns.len() / pairs.max(1);
        let width = x.len() / rows.max(1);
        x.par_chunks_mut((width * ROWS_PER_TASK).max(1))
            .zip(self.turns.par_chunks((pairs * ROWS_PER_TASK).max(1)))
            .for_each(|(x, turns)| level.run(Turn { x, width, head_dim, style, turns, pairs }));
    }
}

struct Turn<'a> {
    x: &'a mut [f32],
    width: usize,
    head_dim: usize,
    style: RopeStyle,
    turns: &'a [(f32, f32)],
    pairs: usize,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        // Read from here while the head itself is written in another order.
        let mut copy = match self.style {
            RopeStyle::HalvesToAdjacent => vec![0.0; 2 * self.pairs],
            RopeStyle::Adjacent | RopeStyle::Halves => Vec::new(),
        };
        for (row, turns) in self.x.chunks_exact_mut(self.width).zip(self.turns.chunks_exact(self.pairs)) {
            for head in row.chunks_exact_mut(self.head_dim) {
                match self.style {
                    RopeStyle::Adjacent => {
                        for (pair, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                            (pair[0], pair[1]) = turned(pair[0], pair[1], *turn);
                        }
                    }
                    RopeStyle::HalvesToAdjacent => {
                        copy.copy_from_slice(&head[..2 * self.pairs]);
                        let (first, second) = copy.split_at(self.pairs);
                        let pairs = head.as_chunks_mut::<2>().0.iter_mut();
                        for (((pair, a), b), turn) in pairs.zip(first).zip(second).zip(turns) {
                            (pair[0], pair[1]) = turned(*a, *b, *turn);
                        }
                    }
                    RopeStyle::Halves => {
                        let (first, second) = head.split_at_mut(self.pairs);
                        for ((a, b), turn) in first.iter_mut().zip(second).zip(turns) {
                            (*a, *b) = turned(*a, *b, *turn);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turned(a: f32, b: f32, (cosine, sine): (f32, f32)) -> (f32, f32) {
    (a.mul_add(cosine, -(b * sine)), a.mul_add(sine, b * cosine))
}

/// `gate = silu(gate) * up`, silu(x) = x / (1 + e^-x).
pub(super) fn gate(level: Level, gate: &mut [f32], up: &[f32]) {
    const CHUNK: usize = 4096;
    gate.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK)).for_each(|(gate, up)| level.run(Gate { gate, up }));
}

struct Gate<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

/// `x += y`, row by row of equal width.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
