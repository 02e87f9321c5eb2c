//! What products read: the rows of a step, normed, gated or attended, then quantised once for all
//! matrices that take them.

use super::elementwise::{gate, rms_norm};
use super::packed::Weight;
use super::pool::{Parts, Pool};
use crate::quant::InputKind;
use crate::quant::input::{Input, Input32, Input256};
use crate::simd::{Kernel, Lanes, Level};

/// The inputs of products, one row after the other, in every form a format needs.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) rows: usize,
    float: Vec<f32>,
    blocks32: Vec<Input32>,
    blocks256: Vec<Input256>,
}

/// Where the values of a row come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// RMS norm of the rows of `x`: `x / sqrt(mean(x^2) + epsilon) * weight`.
    Norm { x: &'a [f32], weight: &'a [f32], epsilon: f32 },
    /// `silu(gate) * up`.
    Gate { gate: &'a [f32], up: &'a [f32] },
    /// They are in [`Inputs::float_mut`] already.
    There,
}

impl Inputs {
    pub(super) fn float(&self) -> &[f32] {
        &self.float
    }

    pub(super) fn blocks32(&self) -> &[Input32] {
        &self.blocks32
    }

    pub(super) fn blocks256(&self) -> &[Input256] {
        &self.blocks256
    }

    /// Room for `rows` rows of `width` values, to be written before `Source::There`.
    pub(super) fn float_mut(&mut self, rows: usize, width: usize) -> &mut [f32] {
        self.float.resize(rows * width, 0.0);
        &mut self.float
    }

    /// Takes `rows` rows of `width` values and quantises them as `weights` need.
    pub(super) fn set<const M: usize>(
        &mut self,
        pool: &mut Pool,
        level: Level,
        (rows, width): (usize, usize),
        source: Source<'_>,
        weights: [&Weight; M],
    ) {
        let wants = |kind| weights.iter().any(|w| w.format.input() == kind);
        let of32 = if wants(InputKind::Blocks32) { width / Input32::ELEMS } else { 0 };
        let of256 = if wants(InputKind::Blocks256) { width / Input256::ELEMS } else { 0 };
        self.rows = rows;
        // All of them are written below.
        self.float.resize(rows * width, 0.0);
        self.blocks32.resize(rows * of32, Input32::ZERO);
        self.blocks256.resize(rows * of256, Input256::ZERO);
        let (float, b32, b256) =
            (Parts::new(&mut self.float), Parts::new(&mut self.blocks32), Parts::new(&mut self.blocks256));
        pool.each(rows, |row| {
            // SAFETY: each row is one task's.
            let (float, b32, b256) = unsafe {
                (float.get(row * width, width), b32.get(row * of32, of32), b256.get(row * of256, of256))
            };
            level.run(Row { row, source, float, b32, b256 });
        });
    }
}

struct Row<'a> {
    row: usize,
    source: Source<'a>,
    float: &'a mut [f32],
    b32: &'a mut [Input32],
    b256: &'a mut [Input256],
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.float.len();
        let part = self.row * width..(self.row + 1) * width;
        match self.source {
            Source::Norm { x, weight, epsilon } => rms_norm(l, &x[part], weight, epsilon, self.float),
            Source::Gate { gate: g, up } => gate(&g[part.clone()], &up[part], self.float),
            Source::There => {}
        }
        for (to, x) in self.b32.iter_mut().zip(self.float.as_chunks::<32>().0) {
            *to = Input32::quantise(x);
        }
        for (to, x) in self.b256.iter_mut().zip(self.float.as_chunks::<256>().0) {
            *to = Input256::quantise(x);
        }
    }
}
