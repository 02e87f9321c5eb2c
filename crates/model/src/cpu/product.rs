//! Matrix products: packed weights, inputs of all rows of a step.

#[cfg(test)]
mod tests;

use super::inputs::Inputs;
use super::packed::{Weight, spans};
use super::pool::{Parts, Pool};
use crate::quant::float::dot;
use crate::quant::{
    Bf16, Block, F16, F32, FloatWeight, Format, IntegerBlock, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
};
use crate::simd::{Kernel, LANES, Lanes, Level};

/// Weights of one task, at most about: small enough to share the work evenly, large enough to be a stream.
const TASK_BYTES: usize = 256 * 1024;

/// Computes each matrix times each row of `inputs`; a matrix's results are `rows` rows of its outputs.
/// The matrices share one round of the pool: they take the same inputs.
pub(super) fn multiply<const M: usize>(
    pool: &mut Pool,
    level: Level,
    inputs: &Inputs,
    products: [(&Weight, &mut Vec<f32>); M],
) {
    let sized = products.map(|(weight, out)| {
        // Every value is written below; what an earlier product left need not be cleared.
        out.resize(inputs.rows * weight.outputs, 0.0);
        (weight, &mut out[..])
    });
    multiply_into(pool, level, inputs, sized);
}

/// As [`multiply`], into slices of that size.
pub(super) fn multiply_into<const M: usize>(
    pool: &mut Pool,
    level: Level,
    inputs: &Inputs,
    products: [(&Weight, &mut [f32]); M],
) {
    let mut tasks = 0;
    let jobs = products.map(|(weight, out)| {
        let groups = weight.groups();
        let fair = groups.div_ceil(4 * pool.threads());
        let size = (TASK_BYTES / weight.group_bytes().max(1)).clamp(1, fair.max(1));
        let first = tasks;
        tasks += groups.div_ceil(size);
        Job { weight, out: Parts::new(out), size, first }
    });
    pool.each(tasks, |i| {
        let Some(job) = jobs.iter().rev().find(|job| job.first <= i) else { return };
        let first = (i - job.first) * job.size;
        let groups = first..(first + job.size).min(job.weight.groups());
        run(level, Task { weight: job.weight, inputs, groups, out: &job.out });
    });
}

/// A matrix cut into tasks.
struct Job<'a> {
    weight: &'a Weight,
    out: Parts<f32>,
    /// Groups of a task.
    size: usize,
    /// Its first task.
    first: usize,
}

/// Some groups of outputs, all rows.
struct Task<'a> {
    weight: &'a Weight,
    inputs: &'a Inputs,
    groups: std::ops::Range<usize>,
    out: &'a Parts<f32>,
}

impl Task<'_> {
    /// Writes the results of `group` for `row`.
    #[inline(always)]
    fn write(&self, group: usize, row: usize, results: &[f32; LANES]) {
        let outputs = self.weight.outputs;
        let from = group * LANES;
        // SAFETY: each group is part of one task, and this is the only part it has at a time.
        let to = unsafe { self.out.get(row * outputs + from, LANES.min(outputs - from)) };
        to.copy_from_slice(&results[..to.len()]);
    }
}

fn run(level: Level, task: Task<'_>) {
    fn integer<B: IntegerBlock>(level: Level, task: Task<'_>, inputs: &[B::Input]) {
        level.run(IntegerProduct::<B> { task, inputs });
    }
    fn float<W: Block + FloatWeight>(level: Level, task: Task<'_>) {
        level.run(FloatProduct::<W> { weights: task.weight.rows(), task });
    }
    let (x32, x256) = (task.inputs.blocks32(), task.inputs.blocks256());
    match task.weight.format {
        Format::F32 => float::<F32>(level, task),
        Format::F16 => float::<F16>(level, task),
        Format::BF16 => float::<Bf16>(level, task),
        Format::Q8_0 => integer::<Q8_0>(level, task, x32),
        Format::Q4_0 => integer::<Q4_0>(level, task, x32),
        Format::Q4_1 => integer::<Q4_1>(level, task, x32),
        Format::Q5_0 => integer::<Q5_0>(level, task, x32),
        Format::Q5_1 => integer::<Q5_1>(level, task, x32),
        Format::Q4_K => integer::<Q4K>(level, task, x256),
        Format::Q5_K => integer::<Q5K>(level, task, x256),
        Format::Q6_K => integer::<Q6K>(level, task, x256),
    }
}

struct IntegerProduct<'a, B: IntegerBlock> {
    task: Task<'a>,
    /// Of all rows.
    inputs: &'a [B::Input],
}

impl<B: IntegerBlock> Kernel for IntegerProduct<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let rows = self.task.inputs.rows;
        for group in self.task.groups.clone() {
            let mut row = 0;
            while row < rows {
                // Some rows of a tile unused cost less than a second tile.
                row += match rows - row {
                    6.. if L::ROWS >= 8 => self.tile::<L, 8>(l, group, row),
                    3.. if L::ROWS >= 4 => self.tile::<L, 4>(l, group, row),
                    2.. if L::ROWS >= 2 => self.tile::<L, 2>(l, group, row),
                    _ => self.tile::<L, 1>(l, group, row),
                };
            }
        }
    }
}

impl<B: IntegerBlock> IntegerProduct<'_, B> {
    /// The outputs of a group for up to N rows from `row` on, from the first block to the last; how many
    /// rows it did.
    #[inline(always)]
    fn tile<L: Lanes, const N: usize>(&self, l: L, group: usize, row: usize) -> usize {
        let (rows, width) = (self.task.inputs.rows, self.task.weight.inputs / B::ELEMS);
        let mut x: [&[B::Input]; N] = [&[]; N];
        for (n, x) in x.iter_mut().enumerate() {
            let row = (row + n).min(rows - 1);
            *x = &self.inputs[row * width..(row + 1) * width];
        }
        let mut acc = [l.floats(0.0); N];
        let mut k = 0;
        for (scales, lines) in spans::<B>(self.task.weight.group(group)) {
            l.ahead(scales);
            let scales = scales.as_chunks().0.chunks_exact(B::HALVES);
            for (lines, halves) in lines.chunks_exact(B::WORDS).zip(scales) {
                let mut now: [&B::Input; N] = [&x[0][k]; N];
                for n in 1..N {
                    now[n] = &x[n][k];
                }
                B::accumulate(l, lines, halves, &now, &mut acc);
                k += 1;
            }
        }
        let done = N.min(rows - row);
        for (n, acc) in acc.iter().enumerate().take(done) {
            let mut sixteen = [0.0; LANES];
            l.store(*acc, &mut sixteen);
            self.task.write(group, row + n, &sixteen);
        }
        done
    }
}

struct FloatProduct<'a, W> {
    task: Task<'a>,
    /// Of all outputs, one after the other.
    weights: &'a [W],
}

impl<W: Block + FloatWeight> Kernel for FloatProduct<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.task.weight.inputs;
        for group in self.task.groups.clone() {
            for (row, x) in self.task.inputs.float().chunks_exact(width).enumerate() {
                let weights = self.weights[group * LANES * width..].chunks_exact(width);
                let mut results = [0.0; LANES];
                for (result, w) in results.iter_mut().zip(weights) {
                    *result = dot(l, w, x);
                }
                self.task.write(group, row, &results);
            }
        }
    }
}
