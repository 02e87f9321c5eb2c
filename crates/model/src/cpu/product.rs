//! Matrix products: weights from the file, inputs of all rows of a step.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::quant::float::dot;
use crate::quant::input::{Input, Input32, Input256};
use crate::quant::{
    Bf16, Block, F16, F32, FloatWeight, Format, InputKind, IntegerBlock, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K,
    Q6K, Q8_0, blocks,
};
use crate::simd::{Kernel, Lanes, Level, eight};
use crate::weights::Matrix;

/// Outputs side by side in a register.
const LANES: usize = 8;
/// Weights of one task, at most about: small enough to share the work evenly.
const TASK_BYTES: usize = 256 * 1024;
/// What a prefetch fetches.
const CACHE_LINE: usize = 64;

/// The inputs of products, one row after the other, in every form a format needs.
#[derive(Default)]
pub(super) struct Inputs {
    rows: usize,
    float: Vec<f32>,
    blocks32: Vec<Input32>,
    blocks256: Vec<Input256>,
}

impl Inputs {
    /// Takes `rows` rows of `x` and quantises them as `matrices` need.
    pub(super) fn set(&mut self, level: Level, x: &[f32], rows: usize, matrices: &[&Matrix]) {
        self.rows = rows;
        let wants = |kind| matrices.iter().any(|m| m.format.input() == kind);
        self.float.clear();
        self.blocks32.clear();
        self.blocks256.clear();
        if wants(InputKind::Float) {
            self.float.extend_from_slice(x);
        }
        if wants(InputKind::Blocks32) {
            quantise(level, x, &mut self.blocks32);
        }
        if wants(InputKind::Blocks256) {
            quantise(level, x, &mut self.blocks256);
        }
    }
}

fn quantise<I: Input>(level: Level, x: &[f32], out: &mut Vec<I>) {
    const TASK: usize = 16;
    x.par_chunks_exact(I::ELEMS)
        .with_min_len(TASK)
        .map(|x| level.run(Quantise::<I>(x, std::marker::PhantomData)))
        .collect_into_vec(out);
}

struct Quantise<'a, I>(&'a [f32], std::marker::PhantomData<I>);

impl<I: Input> Kernel for Quantise<'_, I> {
    type Output = I;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> I {
        I::quantise(self.0)
    }
}

/// Results of a product, kept between steps to spare allocations.
#[derive(Default)]
pub(super) struct Outputs {
    /// Groups of 8 outputs: group, row, lane.
    tiles: Vec<f32>,
    values: Vec<f32>,
}

impl Outputs {
    /// All rows, one after the other.
    pub(super) fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Computes `matrix` times each row of `inputs`.
    pub(super) fn multiply(&mut self, level: Level, matrix: &Matrix, inputs: &Inputs) {
        let groups = matrix.outputs.div_ceil(LANES);
        let group = LANES * inputs.rows;
        // Every tile is written below; what an earlier product left need not be cleared.
        self.tiles.resize(groups * group, 0.0);
        let (elems, bytes) = matrix.format.block();
        let row_bytes = matrix.inputs / elems * bytes;
        let fair = groups.div_ceil(2 * rayon::current_num_threads());
        let task = (TASK_BYTES / (LANES * row_bytes).max(1)).clamp(1, fair.max(1));
        self.tiles.par_chunks_mut((task * group).max(1)).enumerate().for_each(|(i, tiles)| {
            run(level, matrix, inputs, i * task, tiles);
        });
        if inputs.rows == 1 {
            // Tiles of one row are that row already, but for the padding of the last group.
            std::mem::swap(&mut self.tiles, &mut self.values);
            self.values.truncate(matrix.outputs);
            return;
        }
        self.values.resize(inputs.rows * matrix.outputs, 0.0);
        let tiles = &self.tiles;
        self.values.par_chunks_exact_mut(matrix.outputs).enumerate().for_each(|(n, row)| {
            for (out, group) in row.chunks_mut(LANES).zip(tiles.chunks_exact(group)) {
                for (out, from) in out.iter_mut().zip(group.iter().skip(n * LANES)) {
                    *out = *from;
                }
            }
        });
    }
}

/// Groups of outputs from `first` on, as many as `tiles` has room for.
fn run(level: Level, matrix: &Matrix, inputs: &Inputs, first: usize, tiles: &mut [f32]) {
    fn integer<B: IntegerBlock>(
        level: Level,
        matrix: &Matrix,
        inputs: &[B::Input],
        rows: usize,
        first: usize,
        tiles: &mut [f32],
    ) {
        level.run(IntegerProduct::<B> { rows: Rows::of(matrix), inputs, count: rows, first, tiles });
    }
    fn float<W: Block + FloatWeight>(
        level: Level,
        matrix: &Matrix,
        inputs: &[f32],
        first: usize,
        tiles: &mut [f32],
    ) {
        level.run(FloatProduct::<W> { rows: Rows::of(matrix), inputs, first, tiles });
    }
    let (rows, x32, x256) = (inputs.rows, &inputs.blocks32[..], &inputs.blocks256[..]);
    match matrix.format {
        Format::F32 => float::<F32>(level, matrix, &inputs.float, first, tiles),
        Format::F16 => float::<F16>(level, matrix, &inputs.float, first, tiles),
        Format::BF16 => float::<Bf16>(level, matrix, &inputs.float, first, tiles),
        Format::Q8_0 => integer::<Q8_0>(level, matrix, x32, rows, first, tiles),
        Format::Q4_0 => integer::<Q4_0>(level, matrix, x32, rows, first, tiles),
        Format::Q4_1 => integer::<Q4_1>(level, matrix, x32, rows, first, tiles),
        Format::Q5_0 => integer::<Q5_0>(level, matrix, x32, rows, first, tiles),
        Format::Q5_1 => integer::<Q5_1>(level, matrix, x32, rows, first, tiles),
        Format::Q4_K => integer::<Q4K>(level, matrix, x256, rows, first, tiles),
        Format::Q5_K => integer::<Q5K>(level, matrix, x256, rows, first, tiles),
        Format::Q6_K => integer::<Q6K>(level, matrix, x256, rows, first, tiles),
    }
}

/// A matrix as rows of blocks.
struct Rows<'a, B> {
    blocks: &'a [B],
    /// Blocks in a row.
    width: usize,
    last: usize,
}

impl<'a, B: Block> Rows<'a, B> {
    fn of(matrix: &'a Matrix) -> Self {
        Self { blocks: blocks(matrix.bytes()), width: matrix.inputs / B::ELEMS, last: matrix.outputs - 1 }
    }

    /// Where the weights of `group` begin (or would).
    #[inline(always)]
    fn start(&self, group: usize) -> *const u8 {
        self.blocks.as_ptr().wrapping_add(group * LANES * self.width).cast()
    }

    /// Rows 8 `group` to 8 `group` + 7; past the end the last row again, whose results go unread.
    #[inline(always)]
    fn group(&self, group: usize) -> [&'a [B]; LANES] {
        eight!(r => {
            let row = (group * LANES + r).min(self.last);
            &self.blocks[row * self.width..(row + 1) * self.width]
        })
    }
}

struct IntegerProduct<'a, B: IntegerBlock> {
    rows: Rows<'a, B>,
    inputs: &'a [B::Input],
    /// Rows of inputs.
    count: usize,
    first: usize,
    tiles: &'a mut [f32],
}

impl<B: IntegerBlock> Kernel for IntegerProduct<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.rows.width;
        for (i, tile) in self.tiles.chunks_exact_mut(LANES * self.count).enumerate() {
            let w = self.rows.group(self.first + i);
            let mut tile = tile.as_chunks_mut::<LANES>().0;
            let mut inputs = self.inputs;
            // Eight interleaved short rows are no stream that the processor would foresee.
            let mut ahead = Some(self.rows.start(self.first + i + 1));
            while let Some(n) = [4, 2, 1].into_iter().find(|n| *n <= tile.len()) {
                let (now, later) = tile.split_at_mut(n);
                match n {
                    4 => tile_of::<L, B, 4>(l, &w, inputs, ahead, now),
                    2 => tile_of::<L, B, 2>(l, &w, inputs, ahead, now),
                    _ => tile_of::<L, B, 1>(l, &w, inputs, ahead, now),
                }
                ahead = None;
                tile = later;
                inputs = &inputs[n * width..];
            }
        }
    }
}

/// 8 outputs of N rows of inputs, from the first block to the last. `ahead` is where as many weights
/// begin that are needed next.
#[inline(always)]
fn tile_of<L: Lanes, B: IntegerBlock, const N: usize>(
    l: L,
    w: &[&[B]; LANES],
    inputs: &[B::Input],
    ahead: Option<*const u8>,
    out: &mut [[f32; LANES]],
) {
    let width = w[0].len();
    let w = eight!(r => &w[r][..width]);
    let mut x: [&[B::Input]; N] = [&[]; N];
    for (n, x) in x.iter_mut().enumerate() {
        *x = &inputs[n * width..(n + 1) * width];
    }
    let mut acc = [l.floats(0.0); N];
    for k in 0..width {
        if let Some(ahead) = ahead {
            let mut at = k * LANES * size_of::<B>();
            while at < (k + 1) * LANES * size_of::<B>() {
                l.prefetch(ahead.wrapping_add(at));
                at += CACHE_LINE;
            }
        }
        let mut now: [&B::Input; N] = [&x[0][k]; N];
        for n in 1..N {
            now[n] = &x[n][k];
        }
        B::accumulate(l, &eight!(r => &w[r][k]), &now, &mut acc);
    }
    for (acc, out) in acc.iter().zip(out) {
        l.store(*acc, out);
    }
}

struct FloatProduct<'a, W> {
    rows: Rows<'a, W>,
    inputs: &'a [f32],
    first: usize,
    tiles: &'a mut [f32],
}

impl<W: Block + FloatWeight> Kernel for FloatProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.rows.width;
        let count = self.inputs.len() / width;
        for (i, tile) in self.tiles.chunks_exact_mut(LANES * count).enumerate() {
            let w = self.rows.group(self.first + i);
            for (x, out) in self.inputs.chunks_exact(width).zip(tile.as_chunks_mut::<LANES>().0) {
                *out = eight!(r => dot(l, w[r], x));
            }
        }
    }
}
