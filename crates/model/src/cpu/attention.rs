//! Attention over pages.
//!
//! Contract: a query's keys are taken in absolute spans of 512 positions; keys that its class does not
//! see, and spans without one that it sees, take no part. Within a span the scores are `dot(q, k) * (1 / sqrt(head_dim))`; with m the largest, `p_j = exp(score_j - m)`; the sum of the p_j in 16
//! accumulators by j mod 16 and the tree of `quant`; each output element `o = fma(p_j, v_j, o)` in key
//! order. Spans are merged in order: `m' = max(m, m_s)`, `a = exp(m - m')`, `b = exp(m_s - m')`,
//! `l = fma(l, a, l_s * b)`, `o = fma(o, a, o_s * b)`; the result is `o / l`. Nothing depends on other rows.

use std::ops::Range;

use kvcache::{PAGE_POSITIONS, PageId};
use rayon::prelude::*;

use super::exp::exp;
use crate::cache::{Storage, Unit, visible};
use crate::quant::FloatWeight;
use crate::quant::float::{SPLIT, dot, tree};
use crate::simd::{Kernel, Lanes, Level};

/// Keys whose softmax is taken together.
const SPAN: usize = 512;
const POSITIONS: usize = PAGE_POSITIONS as usize;

/// What attention needs to know of a row.
pub(super) struct Query<'a> {
    /// Page table of its slot; it covers `position`.
    pub(super) table: &'a [Option<PageId>],
    pub(super) position: u32,
}

/// Heads, and how they share keys.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// Attends with every head of every row; `q` and `out` are rows of `heads * head_dim`.
pub(super) fn attend(
    level: Level,
    heads: Heads,
    layer: usize,
    storage: &Storage,
    queries: &[Query<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    // The query heads that share a KV head lie next to each other: one task reads its keys once.
    let group = heads.heads / heads.kv_heads * heads.head_dim;
    out.par_chunks_exact_mut(group).zip(q.par_chunks_exact(group)).enumerate().for_each_init(
        Scratch::default,
        |scratch, (i, (out, q))| {
            let Some(query) = queries.get(i / heads.kv_heads) else { return };
            let unit = Unit { layer, kv_head: i % heads.kv_heads };
            level.run(Attend { query, storage, unit, head_dim: heads.head_dim, q, out, scratch });
        },
    );
}

/// Of one task, reused for its rows.
#[derive(Default)]
struct Scratch {
    /// Scores, then probabilities, of one span: `SPAN` per head.
    scores: Vec<f32>,
    /// Outputs of one span, all heads.
    span: Vec<f32>,
    /// Of that span, per head.
    part: Vec<Softmax>,
    /// Of the spans so far, per head.
    total: Vec<Softmax>,
}

/// The largest score and the sum of `exp(score - largest)`.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    sum: f32,
}

struct Attend<'a> {
    query: &'a Query<'a>,
    storage: &'a Storage,
    unit: Unit,
    head_dim: usize,
    q: &'a [f32],
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { query, storage, unit, head_dim, q, out, scratch } = self;
        let heads = q.len() / head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let visible = visible(storage.class, query.position);
        scratch.scores.resize(heads * SPAN, 0.0);
        scratch.span.resize(heads * head_dim, 0.0);
        scratch.total.clear();
        for start in (0..=query.position as usize).step_by(SPAN) {
            let count = (query.position as usize + 1 - start).min(SPAN);
            // Within the span.
            let mut seen = [0..0, 0..0];
            for (seen, visible) in seen.iter_mut().zip(&visible) {
                let from = (visible.start as usize).saturating_sub(start).min(count);
                *seen = from..(visible.end as usize).saturating_sub(start).clamp(from, count);
            }
            if seen.iter().all(Range::is_empty) {
                continue;
            }

            for seen in &seen {
                let mut j = seen.start;
                while j < seen.end {
                    let (offset, many) = in_page(start + j, seen.end - j);
                    if let Some(Some(page)) = query.table.get((start + j) / POSITIONS) {
                        let keys = storage.keys(*page, unit).chunks_exact(head_dim);
                        for (i, key) in keys.skip(offset).take(many).enumerate() {
                            for (h, q) in q.chunks_exact(head_dim).enumerate() {
                                scratch.scores[h * SPAN + j + i] = dot(l, key, q) * scale;
                            }
                        }
                    }
                    j += many;
                }
            }

            scratch.span.fill(0.0);
            scratch.part.clear();
            for h in 0..heads {
                let softmax = softmax(&mut scratch.scores[h * SPAN..h * SPAN + count], &seen);
                scratch.part.push(softmax);
            }

            for seen in &seen {
                let mut j = seen.start;
                while j < seen.end {
                    let (offset, many) = in_page(start + j, seen.end - j);
                    if let Some(Some(page)) = query.table.get((start + j) / POSITIONS) {
                        let values = storage.values(*page, unit).chunks_exact(head_dim);
                        for (i, value) in values.skip(offset).take(many).enumerate() {
                            for (h, span) in scratch.span.chunks_exact_mut(head_dim).enumerate() {
                                add_scaled(l, scratch.scores[h * SPAN + j + i], value, span);
                            }
                        }
                    }
                    j += many;
                }
            }

            if scratch.total.is_empty() {
                out.copy_from_slice(&scratch.span);
                scratch.total.clone_from(&scratch.part);
                continue;
            }
            let parts = out.chunks_exact_mut(head_dim).zip(scratch.span.chunks_exact(head_dim));
            for ((total, new), (out, span)) in scratch.total.iter_mut().zip(&scratch.part).zip(parts) {
                merge(total, *new, out, span);
            }
        }
        for (out, total) in out.chunks_exact_mut(head_dim).zip(&scratch.total) {
            for out in out {
                *out /= total.sum;
            }
        }
    }
}

/// Where in its page a position lies, and how many of the next `left` lie in the same one.
#[inline(always)]
fn in_page(position: usize, left: usize) -> (usize, usize) {
    let offset = position % POSITIONS;
    (offset, left.min(POSITIONS - offset))
}

/// Scores to `exp(score - largest)` where they are seen and 0 elsewhere, in place.
#[inline(always)]
fn softmax(scores: &mut [f32], seen: &[Range<usize>; 2]) -> Softmax {
    let mut largest = f32::NEG_INFINITY;
    for seen in seen {
        // A NaN is passed over here and comes back through exp.
        largest = scores[seen.clone()].iter().fold(largest, |m, s| if *s > m { *s } else { m });
    }
    let [first, second] = seen;
    scores[..first.start].fill(0.0);
    scores[first.end..second.start].fill(0.0);
    scores[second.end..].fill(0.0);
    for seen in seen {
        for s in &mut scores[seen.clone()] {
            *s = exp(*s - largest);
        }
    }
    // Adding a 0 changes no sum: they start at 0 and never fall.
    let mut sums = [0.0; SPLIT];
    for chunk in scores.chunks(SPLIT) {
        for (sum, p) in sums.iter_mut().zip(chunk) {
            *sum += p;
        }
    }
    Softmax { largest, sum: tree(&sums) }
}

/// `out = fma(p, v, out)`.
#[inline(always)]
fn add_scaled<L: Lanes, W: FloatWeight>(l: L, p: f32, v: &[W], out: &mut [f32]) {
    let scale = l.floats(p);
    let (v, v_tail) = v.as_chunks::<8>();
    let (out, out_tail) = out.as_chunks_mut::<8>();
    for (v, out) in v.iter().zip(out) {
        l.store(l.fma(scale, W::eight(l, v), l.load(out)), out);
    }
    if !v_tail.is_empty() {
        let (mut padded, mut sum) = ([W::ZERO; 8], [0.0; 8]);
        padded[..v_tail.len()].copy_from_slice(v_tail);
        sum[..out_tail.len()].copy_from_slice(out_tail);
        l.store(l.fma(scale, W::eight(l, &padded), l.load(&sum)), &mut sum);
        out_tail.copy_from_slice(&sum[..out_tail.len()]);
    }
}

#[inline(always)]
fn merge(total: &mut Softmax, new: Softmax, out: &mut [f32], span: &[f32]) {
    let largest = if new.largest > total.largest { new.largest } else { total.largest };
    let (a, b) = (exp(total.largest - largest), exp(new.largest - largest));
    *total = Softmax { largest, sum: total.sum.mul_add(a, new.sum * b) };
    for (out, span) in out.iter_mut().zip(span) {
        *out = out.mul_add(a, span * b);
    }
}
