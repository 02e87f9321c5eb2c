//! The work of one task: the query heads that share a KV head, of rows of one sequence that follow each other.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use kvcache::{HeadClass, PageId};

use super::kernels::{Softmax, add, divide, score, softmax, weigh};
use super::{POSITIONS, SPAN, TOGETHER};
use crate::cache::{Cell, KvDtype, Storage, Unit, visible};
use crate::quant::F16;
use crate::simd::{Kernel, Lanes, Level};

/// Of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Queries and outputs of a task's rows.
    pub(super) q: Vec<f32>,
    pub(super) out: Vec<f32>,
    /// Scores, then probabilities, of one span: `SPAN` per head.
    scores: Vec<f32>,
    /// Of one page, per head, with the values' scales.
    weights: Vec<f32>,
    /// Outputs of one span, all heads.
    span: Vec<f32>,
    /// Of that span, per head.
    part: Vec<Option<Softmax>>,
    /// Of the spans so far, per head.
    total: Vec<Option<Softmax>>,
}

/// The query heads that share a KV head, of rows that follow each other; heads of one row lie next to each other.
pub(super) struct Attend<'a> {
    pub(super) table: &'a [Option<PageId>],
    /// Position of the first row.
    pub(super) first: u32,
    pub(super) rows: usize,
    /// What it sees.
    pub(super) class: HeadClass,
    pub(super) storage: &'a Storage,
    pub(super) unit: Unit,
    pub(super) head_dim: usize,
    pub(super) q: &'a [f32],
    pub(super) scratch: &'a mut Scratch,
}

/// Where results go.
pub(super) enum To<'a> {
    /// All spans merged: rows of the heads.
    Rows(&'a mut [f32]),
    /// Of these spans alone, one after the other: of each head its output, its largest score and its sum, which is 0 where it
    /// sees nothing; then nothing up to the widest block's heads. Those that are not own see nothing.
    Spans(Range<usize>, &'a (dyn Fn(usize) -> bool + Sync), &'a mut [f32]),
}

/// The same over elements C.
struct Over<'r, 'a, C>(&'r mut Attend<'a>, To<'r>, PhantomData<C>);

impl<C: Cell> Kernel for Over<'_, '_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.1 {
            To::Rows(out) => self.0.rows::<L, C>(l, out),
            To::Spans(spans, own, parts) => self.0.spans::<L, C>(l, spans, own, parts),
        }
    }
}

/// Keys within a span.
type Keys = Range<usize>;

impl<'a> Attend<'a> {
    /// Computes; gives the scratch back.
    pub(super) fn run(mut self, level: Level, to: To<'_>) -> &'a mut Scratch {
        let heads = self.q.len() / self.head_dim;
        self.scratch.scores.resize(heads * SPAN, 0.0);
        if self.storage.dtype == KvDtype::Int8 {
            self.scratch.weights.resize(heads * SPAN, 0.0);
        }
        self.scratch.span.resize(heads * self.head_dim, 0.0);
        match self.storage.dtype {
            KvDtype::F16 => level.run(Over::<F16>(&mut self, to, PhantomData)),
            KvDtype::Int8 => level.run(Over::<u8>(&mut self, to, PhantomData)),
        }
        self.scratch
    }

    #[inline(always)]
    fn rows<L: Lanes, C: Cell>(&mut self, l: L, out: &mut [f32]) {
        self.scratch.total.clear();
        self.scratch.total.resize(self.q.len() / self.head_dim, None);
        for start in (0..self.first as usize + self.rows).step_by(SPAN) {
            if !self.span::<L, C>(l, start) {
                continue;
            }
            let spans = self.scratch.span.chunks_exact(self.head_dim);
            let totals = self.scratch.total.iter_mut().zip(&self.scratch.part);
            for ((total, part), (out, span)) in totals.zip(out.chunks_exact_mut(self.head_dim).zip(spans)) {
                add(total, *part, out, span);
            }
        }
        for (out, total) in out.chunks_exact_mut(self.head_dim).zip(&self.scratch.total) {
            divide(out, *total);
        }
    }

    #[inline(always)]
    fn spans<L: Lanes, C: Cell>(
        &mut self,
        l: L,
        spans: Range<usize>,
        own: &(dyn Fn(usize) -> bool + Sync),
        parts: &mut [f32],
    ) {
        let (head_dim, count) = (self.head_dim, spans.len());
        for (span, to) in spans.zip(parts.chunks_exact_mut(parts.len() / count)) {
            let seen = own(span) && self.span::<L, C>(l, span * SPAN);
            let heads = self.scratch.span.chunks_exact(head_dim).enumerate();
            for ((head, span), to) in heads.zip(to.chunks_exact_mut(head_dim + 2)) {
                let part = self.scratch.part.get(head).copied().flatten().filter(|_| seen);
                to[..head_dim].copy_from_slice(span);
                (to[head_dim], to[head_dim + 1]) = part.map_or((0.0, 0.0), |part| (part.largest, part.sum));
            }
        }
    }

    /// One span, to `scratch.part` and `scratch.span`; whether any row sees anything of it.
    #[inline(always)]
    fn span<L: Lanes, C: Cell>(&mut self, l: L, start: usize) -> bool {
        let heads = self.q.len() / self.head_dim;
        let group = heads / self.rows;
        let mut seen: [[Keys; 2]; TOGETHER] = std::array::from_fn(|_| [0..0, 0..0]);
        let seen = &mut seen[..self.rows];
        seen.iter_mut().enumerate().for_each(|(row, seen)| *seen = self.seen(start, row));
        if seen.iter().flatten().all(Range::is_empty) {
            return false;
        }
        let common = [0, 1].map(|which| common(seen, which));
        for which in 0..2 {
            self.scores::<L, C>(l, start, common[which].clone(), 0..heads);
            for (row, seen) in seen.iter().enumerate() {
                for keys in beside(&seen[which], &common[which]) {
                    self.scores::<L, C>(l, start, keys, row * group..(row + 1) * group);
                }
            }
        }
        self.scratch.part.clear();
        let scores = self.scratch.scores.as_chunks_mut::<SPAN>().0;
        for (head, scores) in scores.iter_mut().enumerate().take(heads) {
            let seen = &seen[head / group];
            // No closure: it would be compiled without the level's instructions.
            let sees = !seen.iter().all(Range::is_empty);
            self.scratch.part.push(if sees { Some(softmax(l, scores, seen)) } else { None });
        }
        self.scratch.span.fill(0.0);
        // Of each row in the order of its keys: what it sees alone, what all see, what it sees alone.
        for which in 0..2 {
            for side in 0..2 {
                for (row, seen) in seen.iter().enumerate() {
                    let [before, behind] = beside(&seen[which], &common[which]);
                    let keys = if side == 0 { before } else { behind };
                    self.values::<L, C>(l, start, keys, row * group..(row + 1) * group);
                }
                if side == 0 {
                    self.values::<L, C>(l, start, common[which].clone(), 0..heads);
                }
            }
        }
        true
    }

    /// What a row sees of the span at `start`.
    fn seen(&self, start: usize, row: usize) -> [Keys; 2] {
        let position = self.first as usize + row;
        let count = (position + 1).saturating_sub(start).min(SPAN);
        visible(self.class, position as u32).map(|visible| {
            let from = (visible.start as usize).saturating_sub(start).min(count);
            from..(visible.end as usize).saturating_sub(start).clamp(from, count)
        })
    }

    /// Scores of the keys `seen` (within the span at `start`), and of others in their pages, with some of the heads.
    #[inline(always)]
    fn scores<L: Lanes, C: Cell>(&mut self, l: L, start: usize, seen: Keys, heads: Range<usize>) {
        if seen.is_empty() {
            return;
        }
        let mut page = seen.start / POSITIONS;
        let end = seen.end.div_ceil(POSITIONS);
        while page < end {
            // Two pages at a time; a single last one twice.
            let second = (page + 1).min(end - 1);
            let keys = [page, second].map(|page| {
                let id = self.table.get(start / POSITIONS + page).copied().flatten();
                id.map_or(&[][..], |id| self.storage.keys::<C>(id, self.unit))
            });
            let to = [page * POSITIONS, second * POSITIONS];
            let mut q = &self.q[heads.start * self.head_dim..heads.end * self.head_dim];
            let mut scores = &mut self.scratch.scores[heads.start * SPAN..heads.end * SPAN];
            while !q.is_empty() {
                let n = match q.len() / self.head_dim {
                    4.. => score::<L, C, 4>(l, keys, q, self.head_dim, to, scores),
                    2.. => score::<L, C, 2>(l, keys, q, self.head_dim, to, scores),
                    _ => score::<L, C, 1>(l, keys, q, self.head_dim, to, scores),
                };
                q = &q[n * self.head_dim..];
                scores = &mut scores[n * SPAN..];
            }
            if C::SCALED {
                for page in page..=second {
                    let Some(id) = self.table.get(start / POSITIONS + page).copied().flatten() else {
                        continue;
                    };
                    let scales = self.storage.scales(id, self.unit)[0];
                    let scores = &mut self.scratch.scores[heads.start * SPAN..heads.end * SPAN];
                    for scores in scores.chunks_mut(SPAN) {
                        let of_page = scores[page * POSITIONS..].iter_mut().zip(&scales);
                        of_page.for_each(|(score, scale)| *score *= scale);
                    }
                }
            }
            page += 2;
        }
    }

    /// Adds the values of the keys `seen`, weighted by what `scores` has become, to some of the heads.
    #[inline(always)]
    fn values<L: Lanes, C: Cell>(&mut self, l: L, start: usize, seen: Keys, heads: Range<usize>) {
        let head_dim = self.head_dim;
        let mut j = seen.start;
        while j < seen.end {
            let offset = j % POSITIONS;
            let many = (seen.end - j).min(POSITIONS - offset);
            if let Some(Some(page)) = self.table.get((start + j) / POSITIONS) {
                let values = self.storage.values::<C>(*page, self.unit);
                let values = &values[offset * head_dim..(offset + many) * head_dim];
                let scored = heads.start * SPAN..heads.end * SPAN;
                if C::SCALED {
                    let scales = self.storage.scales(*page, self.unit)[1];
                    let from = self.scratch.scores[scored.clone()].chunks(SPAN);
                    for (scores, weights) in from.zip(self.scratch.weights[scored.clone()].chunks_mut(SPAN)) {
                        let to = weights[j..j + many].iter_mut().zip(&scores[j..]).zip(&scales[offset..]);
                        to.for_each(|((to, score), scale)| *to = score * scale);
                    }
                }
                let scores = if C::SCALED { &self.scratch.weights } else { &self.scratch.scores };
                let mut scores = &scores[scored][j..];
                let mut span = &mut self.scratch.span[heads.start * head_dim..heads.end * head_dim];
                while !span.is_empty() {
                    let n = match span.len() / head_dim {
                        4.. => weigh::<L, C, 4>(l, values, scores, head_dim, span),
                        2.. => weigh::<L, C, 2>(l, values, scores, head_dim, span),
                        _ => weigh::<L, C, 1>(l, values, scores, head_dim, span),
                    };
                    span = &mut span[n * head_dim..];
                    scores = &scores[(n * SPAN).min(scores.len())..];
                }
            }
            j += many;
        }
    }
}

/// What all rows see.
fn common(seen: &[[Keys; 2]], which: usize) -> Keys {
    let start = seen.iter().map(|seen| seen[which].start).max().unwrap_or(0);
    let end = seen.iter().map(|seen| seen[which].end).min().unwrap_or(0);
    start..end.max(start)
}

/// What a row sees before and behind what all see.
fn beside(seen: &Keys, common: &Keys) -> [Keys; 2] {
    if common.is_empty() {
        return [seen.clone(), seen.end..seen.end];
    }
    [seen.start..common.start, common.end..seen.end]
}

/// Lends this thread's.
pub(super) fn with_scratch(task: impl FnOnce(&mut Scratch)) {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(task);
}
