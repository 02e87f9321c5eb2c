//! Weights as the kernels read them.
//!
//! A matrix of quantised blocks is copied when the model is loaded: 16 outputs side by side make a *group*,
//! which is read from start to end. Along K follow one another *spans*: a line with the float scales of one
//! or two blocks, as many as it has room for, then those blocks, each `WORDS` lines of 64 bytes
//! ([`IntegerBlock`]). So a product is one stream of whole cache lines, as many bytes as in the file; only
//! with an odd number of blocks half of the last line of scales is empty. Matrices of floats are read where
//! the file has them.

use std::sync::Arc;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

use super::group::Part;
use super::pool::Pool;
use crate::LoadError;
use crate::arch::{Decoder, Layer};
use crate::quant::{Block, Format, IntegerBlock, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, blocks};
use crate::simd::{Halves, LANES, Line};
use crate::weights::Matrix;

/// All matrices that are multiplied.
pub(super) struct Packed {
    pub(super) layers: Vec<LayerWeights>,
    pub(super) head: Head,
    /// What drafts of the first layers are said with, where that is not the head.
    pub(super) short: Option<Head>,
}

/// The output layer.
pub(super) struct Head {
    pub(super) weight: Weight,
    /// The token of each output, where it has not all of them.
    pub(super) ids: Option<Vec<u32>>,
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
    /// What drafts that leave behind it pass before the final norm.
    pub(super) early: Option<Weight>,
}

impl Packed {
    /// Copies matrix by matrix; the file's pages are let go after each, so both are in memory only in part. With a
    /// `shortlist` the head has the outputs of those tokens alone; those of `drafted` get a head of their own beside it.
    pub(super) fn new(
        decoder: &Decoder,
        shortlist: Option<Vec<u32>>,
        drafted: Option<Vec<u32>>,
        part: Option<&Part>,
        pool: &mut Pool,
    ) -> Result<Self, LoadError> {
        for ids in shortlist.iter().chain(&drafted) {
            check_shortlist(ids, &decoder.head)?;
        }
        let in_layers = decoder
            .layers
            .iter()
            .flat_map(|l: &Layer| [&l.q.matrix, &l.k.matrix, &l.v.matrix, &l.o, &l.gate, &l.up, &l.down]);
        // Of a group's rank: its rows, matrix by matrix.
        let own: Option<Vec<Vec<u32>>> = part.map(|part| {
            let layers = (0..decoder.layers.len()).flat_map(|layer| part.rows(layer));
            layers.chain([part.head_rows()]).collect()
        });
        if let Some(own) = &own {
            if shortlist.is_some() {
                let why = "is not built for a model that a group shares".to_owned();
                return Err(LoadError::BadOption { option: "shortlist", why });
            }
            let mut all = in_layers.clone().chain([&decoder.head]);
            if let Some(floats) = all.find(|matrix| stride(matrix).is_none()) {
                let why =
                    format!("is built for quantised matrices, and this model has one in {:?}", floats.format);
                return Err(LoadError::BadOption { option: "group", why });
            }
            debug_assert_eq!(own.len(), decoder.layers.len() * 7 + 1);
        }
        let only = |i: usize| own.as_ref().and_then(|own| own.get(i)).map(Vec::as_slice);
        let head = only(decoder.layers.len() * 7).or(shortlist.as_deref());
        let head = Rows { matrix: &decoder.head, only: head };
        let in_layers = in_layers.enumerate().map(|(i, matrix)| Rows { matrix, only: only(i) });
        let short = drafted.as_deref().map(|ids| Rows { matrix: &decoder.head, only: Some(ids) });
        // A group's rank does not draft.
        let early = decoder.layers.iter().filter_map(|layer| layer.early.as_ref().filter(|_| own.is_none()));
        let early = early.map(|matrix| Rows { matrix, only: None });
        let matrices: Vec<Rows<'_>> = in_layers.chain([head]).chain(short).chain(early).collect();
        let mut weights = pack(&matrices, pool)?;
        // One a matrix: seven a layer, then the heads, then what exits have of their own.
        let heads = weights.split_off(decoder.layers.len() * 7);
        let mut heads = heads.into_iter();
        let Some(weight) = heads.next() else { unreachable!("a head is always packed") };
        let short = drafted.and_then(|ids| Some(Head { weight: heads.next()?, ids: Some(ids) }));
        let mut layers = Vec::with_capacity(decoder.layers.len());
        while !weights.is_empty() {
            let rest = weights.split_off(7);
            let seven = <[Weight; 7]>::try_from(std::mem::replace(&mut weights, rest));
            let Ok([q, k, v, o, gate, up, down]) = seven else { unreachable!("split off as seven") };
            let early = decoder.layers[layers.len()].early.as_ref().and_then(|_| heads.next());
            layers.push(LayerWeights { q, k, v, o, gate, up, down, early });
        }
        Ok(Self { layers, head: Head { weight, ids: shortlist }, short })
    }

    /// What drafts of the first layers are said with.
    pub(super) fn drafting_head(&self) -> &Head {
        self.short.as_ref().unwrap_or(&self.head)
    }

    /// Bytes that a step reads once.
    pub(super) fn bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|l| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].iter().map(|w| w.bytes() as u64).sum::<u64>()
        });
        layers.sum::<u64>() + self.head.weight.bytes() as u64
    }
}

/// Tokens in order, each once, of a head that is copied.
fn check_shortlist(ids: &[u32], head: &Matrix) -> Result<(), LoadError> {
    let bad = |why| Err(LoadError::BadOption { option: "shortlist", why });
    if stride(head).is_none() {
        return bad(format!("is built for quantised output layers, and this one is {:?}", head.format));
    }
    if ids.is_empty() || !ids.is_sorted_by(|a, b| a < b) {
        return bad("must be tokens in rising order".to_owned());
    }
    match ids.last() {
        Some(&last) if last as usize >= head.outputs => {
            bad(format!("token {last} is not one of the output layer's {}", head.outputs))
        }
        _ => Ok(()),
    }
}

/// What is taken of a matrix: all of its rows, or some of them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    matrix: &'a Matrix,
    only: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    #[cfg(test)]
    pub(super) fn all(matrix: &'a Matrix) -> Self {
        Self { matrix, only: None }
    }

    fn outputs(&self) -> usize {
        self.only.map_or(self.matrix.outputs, <[u32]>::len)
    }
}

impl Head {
    pub(super) fn bytes(&self) -> u64 {
        self.weight.bytes() as u64
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

    /// The lines of a group; empty for floats.
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> &[Line] {
        let Place::Packed { memory, start, stride } = &self.place else { return &[] };
        let from = start + group * stride;
        memory.get(from..from + stride).unwrap_or_default().as_chunks().0
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
pub(super) fn pack(matrices: &[Rows<'_>], pool: &mut Pool) -> Result<Vec<Weight>, LoadError> {
    let strides: Vec<Option<usize>> = matrices.iter().map(|rows| stride(rows.matrix)).collect();
    let size = |(rows, s): (&Rows<'_>, &Option<usize>)| s.map_or(0, |s| rows.outputs().div_ceil(LANES) * s);
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
    for ((rows, stride), size) in matrices.iter().zip(&strides).zip(&sizes) {
        starts.push(start);
        if let Some(stride) = stride {
            fill(*rows, *stride, memory.get_mut(start..start + size).unwrap_or_default(), pool);
            rows.matrix.let_go();
        }
        start += size;
    }
    let memory = Arc::new(memory);
    let place = |(rows, (stride, start)): (&Rows<'_>, (Option<usize>, usize))| Weight {
        format: rows.matrix.format,
        outputs: rows.outputs(),
        inputs: rows.matrix.inputs,
        place: match stride {
            Some(stride) => Place::Packed { memory: Arc::clone(&memory), start, stride },
            None => Place::File(rows.matrix.clone()),
        },
    };
    Ok(matrices.iter().zip(strides.into_iter().zip(starts)).map(place).collect())
}

/// Blocks whose float scales fill one line.
pub(super) const fn span<B: IntegerBlock>() -> usize {
    2 / B::HALVES
}

/// Float scales and blocks of each span of a group.
#[inline(always)]
pub(super) fn spans<B: IntegerBlock>(group: &[Line]) -> impl Iterator<Item = (&Line, &[Line])> {
    group.chunks(1 + span::<B>() * B::WORDS).filter_map(|span| span.split_first())
}

/// Bytes of a group; `None` for floats, which stay in the file.
fn stride(matrix: &Matrix) -> Option<usize> {
    fn of<B: IntegerBlock>(inputs: usize) -> usize {
        let blocks = inputs / B::ELEMS;
        (blocks.div_ceil(span::<B>()) + blocks * B::WORDS) * size_of::<Line>()
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

fn fill(rows: Rows<'_>, stride: usize, to: &mut [u8], pool: &mut Pool) {
    match rows.matrix.format {
        Format::F32 | Format::F16 | Format::BF16 => {}
        Format::Q8_0 => fill_of::<Q8_0>(rows, stride, to, pool),
        Format::Q4_0 => fill_of::<Q4_0>(rows, stride, to, pool),
        Format::Q4_1 => fill_of::<Q4_1>(rows, stride, to, pool),
        Format::Q5_0 => fill_of::<Q5_0>(rows, stride, to, pool),
        Format::Q5_1 => fill_of::<Q5_1>(rows, stride, to, pool),
        Format::Q4_K => fill_of::<Q4K>(rows, stride, to, pool),
        Format::Q5_K => fill_of::<Q5K>(rows, stride, to, pool),
        Format::Q6_K => fill_of::<Q6K>(rows, stride, to, pool),
    }
}

fn fill_of<B: IntegerBlock>(rows: Rows<'_>, stride: usize, to: &mut [u8], pool: &mut Pool) {
    let width = rows.matrix.inputs / B::ELEMS;
    let last = rows.outputs() - 1;
    let source: &[B] = blocks(rows.matrix.bytes());
    pool.pieces(to, stride, |group, to| {
        for (i, lines) in to.as_chunks_mut().0.chunks_mut(1 + span::<B>() * B::WORDS).enumerate() {
            let Some((scales, lines)) = lines.split_first_mut() else { continue };
            let scales = scales.as_chunks_mut().0.chunks_exact_mut(B::HALVES);
            for (j, (lines, halves)) in lines.chunks_exact_mut(B::WORDS).zip(scales).enumerate() {
                let k = i * span::<B>() + j;
                for lane in 0..LANES {
                    // Past the end the last output again; its results go unread.
                    let output = (group * LANES + lane).min(last);
                    let row = rows.only.map_or(output, |only| only[output] as usize);
                    pack_block(&source[row * width + k], lane, lines, halves);
                }
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
        // Q4_0: two bytes of scale, then 16 of quants; each byte says where it is from.
        let byte = |output: usize, k: usize, i: usize| (output * 60 + k * 18 + i) as u8;
        let bytes: Vec<u8> = (0..outputs)
            .flat_map(|o| (0..width).flat_map(move |k| (0..18).map(move |i| byte(o, k, i))))
            .collect();
        let matrix = Matrix::in_memory(Format::Q4_0, outputs, width * 32, &bytes);
        let weight = pack(&[Rows::all(&matrix)], &mut Pool::new(2).unwrap()).unwrap().remove(0);
        assert_eq!((weight.groups(), weight.group_bytes()), (2, (3 * 4 + 2) * 64));
        for group in 0..2 {
            let spans: Vec<_> = spans::<Q4_0>(weight.group(group)).collect();
            assert_eq!(spans.iter().map(|(_, lines)| lines.len()).collect::<Vec<_>>(), [8, 4]);
            for k in 0..width {
                let (scales, lines) = spans[k / 2];
                let (scales, lines) = (&scales[k % 2 * 32..], &lines[k % 2 * 4..]);
                for lane in 0..LANES {
                    let output = (group * LANES + lane).min(outputs - 1);
                    for i in 0..16 {
                        assert_eq!(lines[i / 4][4 * lane + i % 4], byte(output, k, 2 + i));
                    }
                    for i in 0..2 {
                        assert_eq!(scales[2 * lane + i], byte(output, k, i));
                    }
                }
            }
        }
    }
}
