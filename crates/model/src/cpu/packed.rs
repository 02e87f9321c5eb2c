//! Weights as the kernels read them.
//!
//! A matrix of quantised blocks is copied when the model is loaded: 16 outputs side by side make a *group*,
//! and a group is what one task streams from start to end. Its blocks of 16 outputs follow one another along
//! K, each `WORDS` lines of 64 bytes ([`IntegerBlock`]); after them lie the blocks' float scales. So a
//! matrix takes the bytes that it has in the file, and every load is of a whole cache line. Matrices of
//! floats are read where the file has them.

use std::sync::Arc;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

use super::pool::Pool;
use crate::LoadError;
use crate::arch::{Decoder, Layer};
use crate::quant::{Block, Format, IntegerBlock, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, blocks};
use crate::simd::{Halves, LANES, Line};
use crate::weights::Matrix;

/// All matrices that are multiplied.
pub(super) struct Packed {
    pub(super) layers: Vec<LayerWeights>,
    pub(super) head: Weight,
}

/// Those of one layer.
pub(super) struct LayerWeights {
    pub(super) q: Weight,
    pub(super) k: Weight,
    pub(super) v: Weight,
    pub(super) o: Weight,
    pub(super) gate: Weight,
    pub(super) up: Weight,
    pub(super) down: Weight,
}

impl Packed {
    /// Copies matrix by matrix; the file's pages are let go after each, so both are in memory only in part.
    pub(super) fn new(decoder: &Decoder, pool: &mut Pool) -> Result<Self, LoadError> {
        let in_layers = decoder
            .layers
            .iter()
            .flat_map(|l: &Layer| [&l.q.matrix, &l.k.matrix, &l.v.matrix, &l.o, &l.gate, &l.up, &l.down]);
        let matrices: Vec<&Matrix> = in_layers.chain([&decoder.head]).collect();
        let mut weights = pack(&matrices, pool)?;
        // One a matrix: seven a layer, then the head.
        let head = weights.split_off(decoder.layers.len() * 7).remove(0);
        let mut layers = Vec::with_capacity(decoder.layers.len());
        while !weights.is_empty() {
            let rest = weights.split_off(7);
            let seven = <[Weight; 7]>::try_from(std::mem::replace(&mut weights, rest));
            let Ok([q, k, v, o, gate, up, down]) = seven else { unreachable!("split off as seven") };
            layers.push(LayerWeights { q, k, v, o, gate, up, down });
        }
        Ok(Self { layers, head })
    }

    /// Bytes that a step reads once.
    pub(super) fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|l| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].iter().map(|w| w.bytes() as u64).sum::<u64>()
        });
        layers.sum::<u64>() + self.head.bytes() as u64
    }
}

/// A matrix ready to be multiplied.
pub(super) struct Weight {
    pub(super) format: Format,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    place: Place,
}

enum Place {
    /// From `start` on groups of `stride` bytes; both are multiples of a cache line.
    Packed { memory: Arc<MmapMut>, start: usize, stride: usize },
    /// Rows of floats.
    File(Matrix),
}

impl Weight {
    /// Groups of 16 outputs, the last one perhaps filled up.
    pub(super) fn groups(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Bytes of a group.
    pub(super) fn group_bytes(&self) -> usize {
        match &self.place {
            Place::Packed { stride, .. } => *stride,
            Place::File(matrix) => matrix.bytes().len() / self.outputs * LANES,
        }
    }

    fn bytes(&self) -> usize {
        self.groups() * self.group_bytes()
    }

    /// Lines and float scales of a group, block by block; empty for floats.
    #[inline(always)]
    pub(super) fn group<B: IntegerBlock>(&self, group: usize) -> (&[Line], &[Halves]) {
        let Place::Packed { memory, start, stride } = &self.place else { return (&[], &[]) };
        let width = self.inputs / B::ELEMS;
        let from = start + group * stride;
        let bytes = memory.get(from..from + stride).unwrap_or_default();
        let (lines, halves) = bytes.split_at((width * B::WORDS * size_of::<Line>()).min(bytes.len()));
        (lines.as_chunks().0, &halves.as_chunks().0[..width * B::HALVES])
    }

    /// Rows of floats, from the file; empty for blocks.
    pub(super) fn rows<W: Block>(&self) -> &[W] {
        match &self.place {
            Place::File(matrix) => blocks(matrix.bytes()),
            Place::Packed { .. } => &[],
        }
    }
}

/// Huge pages have this size and alignment. With small ones a stream of weights waits for translations of
/// addresses.
const HUGE: usize = 2 << 20;

/// Packs matrices into one piece of memory, in order.
pub(super) fn pack(matrices: &[&Matrix], pool: &mut Pool) -> Result<Vec<Weight>, LoadError> {
    let strides: Vec<Option<usize>> = matrices.iter().map(|m| stride(m)).collect();
    let size = |(m, s): (&&Matrix, &Option<usize>)| s.map_or(0, |s| m.outputs.div_ceil(LANES) * s);
    let sizes: Vec<usize> = matrices.iter().zip(&strides).map(size).collect();
    let bytes = sizes.iter().sum::<usize>();
    // Room to align within: memory that is never touched is never there.
    let mut memory = MmapMut::map_anon(bytes + HUGE).map_err(|source| LoadError::Memory { bytes, source })?;
    let first = memory.as_ptr().align_offset(HUGE);
    // A hint only: without it the same bytes are read more slowly.
    #[cfg(target_os = "linux")]
    let _ = memory.advise_range(Advice::HugePage, first, bytes);
    let mut start = first;
    let mut starts = Vec::with_capacity(matrices.len());
    for ((matrix, stride), size) in matrices.iter().zip(&strides).zip(&sizes) {
        starts.push(start);
        if let Some(stride) = stride {
            fill(matrix, *stride, memory.get_mut(start..start + size).unwrap_or_default(), pool);
            matrix.let_go();
        }
        start += size;
    }
    let memory = Arc::new(memory);
    let place = |(matrix, (stride, start)): (&&Matrix, (Option<usize>, usize))| Weight {
        format: matrix.format,
        outputs: matrix.outputs,
        inputs: matrix.inputs,
        place: match stride {
            Some(stride) => Place::Packed { memory: Arc::clone(&memory), start, stride },
            None => Place::File((*matrix).clone()),
        },
    };
    Ok(matrices.iter().zip(strides.into_iter().zip(starts)).map(place).collect())
}

/// Bytes of a group; `None` for floats, which stay in the file.
fn stride(matrix: &Matrix) -> Option<usize> {
    fn of<B: IntegerBlock>(inputs: usize) -> usize {
        let block = B::WORDS * size_of::<Line>() + B::HALVES * size_of::<Halves>();
        (inputs / B::ELEMS * block).next_multiple_of(size_of::<Line>())
    }
    let inputs = matrix.inputs;
    Some(match matrix.format {
        Format::F32 | Format::F16 | Format::BF16 => return None,
        Format::Q8_0 => of::<Q8_0>(inputs),
        Format::Q4_0 => of::<Q4_0>(inputs),
        Format::Q4_1 => of::<Q4_1>(inputs),
        Format::Q5_0 => of::<Q5_0>(inputs),
        Format::Q5_1 => of::<Q5_1>(inputs),
        Format::Q4_K => of::<Q4K>(inputs),
        Format::Q5_K => of::<Q5K>(inputs),
        Format::Q6_K => of::<Q6K>(inputs),
    })
}

fn fill(matrix: &Matrix, stride: usize, to: &mut [u8], pool: &mut Pool) {
    match matrix.format {
        Format::F32 | Format::F16 | Format::BF16 => {}
        Format::Q8_0 => fill_of::<Q8_0>(matrix, stride, to, pool),
        Format::Q4_0 => fill_of::<Q4_0>(matrix, stride, to, pool),
        Format::Q4_1 => fill_of::<Q4_1>(matrix, stride, to, pool),
        Format::Q5_0 => fill_of::<Q5_0>(matrix, stride, to, pool),
        Format::Q5_1 => fill_of::<Q5_1>(matrix, stride, to, pool),
        Format::Q4_K => fill_of::<Q4K>(matrix, stride, to, pool),
        Format::Q5_K => fill_of::<Q5K>(matrix, stride, to, pool),
        Format::Q6_K => fill_of::<Q6K>(matrix, stride, to, pool),
    }
}

fn fill_of<B: IntegerBlock>(matrix: &Matrix, stride: usize, to: &mut [u8], pool: &mut Pool) {
    let width = matrix.inputs / B::ELEMS;
    let last = matrix.outputs - 1;
    let source: &[B] = blocks(matrix.bytes());
    pool.pieces(to, stride, |group, to| {
        let (lines, halves) = to.split_at_mut(width * B::WORDS * size_of::<Line>());
        let lines = lines.as_chunks_mut::<64>().0.chunks_exact_mut(B::WORDS);
        let halves = halves.as_chunks_mut::<32>().0.chunks_exact_mut(B::HALVES);
        for (k, (lines, halves)) in lines.zip(halves).enumerate() {
            for lane in 0..LANES {
                // Past the end the last output again; its results go unread.
                let output = (group * LANES + lane).min(last);
                pack_block(&source[output * width + k], lane, lines, halves);
            }
        }
    });
}

fn pack_block<B: IntegerBlock>(block: &B, lane: usize, lines: &mut [Line], halves: &mut [Halves]) {
    /// No format has more.
    const MOST: usize = 64;
    let (mut words, mut scales) = ([[0; 4]; MOST], [[0; 2]; 2]);
    block.words(&mut words[..B::WORDS]);
    block.halves(&mut scales[..B::HALVES]);
    for (line, word) in lines.iter_mut().zip(&words) {
        line.as_chunks_mut().0[lane] = *word;
    }
    for (line, half) in halves.iter_mut().zip(&scales) {
        line.as_chunks_mut().0[lane] = *half;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its lanes are the outputs' blocks, in order along K, and the last group is filled up.
    #[test]
    fn a_group_holds_sixteen_outputs_side_by_side() {
        let (outputs, width) = (18, 3);
        // Q4_1: two halves, then 16 bytes of quants; each byte says where it is from.
        let byte = |output: usize, k: usize, i: usize| (output * 60 + k * 20 + i) as u8;
        let bytes: Vec<u8> = (0..outputs)
            .flat_map(|o| (0..width).flat_map(move |k| (0..20).map(move |i| byte(o, k, i))))
            .collect();
        let matrix = Matrix::in_memory(Format::Q4_1, outputs, width * 32, &bytes);
        let weight = pack(&[&matrix], &mut Pool::new(2).unwrap()).unwrap().remove(0);
        assert_eq!((weight.groups(), weight.group_bytes()), (2, 16 * 60));
        for group in 0..2 {
            let (lines, halves) = weight.group::<Q4_1>(group);
            assert_eq!((lines.len(), halves.len()), (4 * width, 2 * width));
            for (k, (lines, halves)) in lines.chunks(4).zip(halves.chunks(2)).enumerate() {
                for lane in 0..LANES {
                    let output = (group * LANES + lane).min(outputs - 1);
                    for i in 0..16 {
                        assert_eq!(lines[i / 4][4 * lane + i % 4], byte(output, k, 4 + i));
                    }
                    for i in 0..4 {
                        assert_eq!(halves[i / 2][2 * lane + i % 2], byte(output, k, i));
                    }
                }
            }
        }
    }
}
