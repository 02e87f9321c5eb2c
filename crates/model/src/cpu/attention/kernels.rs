//! What one span costs: scores, softmax, weighted values, for several heads that read the same keys.

use std::ops::Range;

use super::SPAN;
use crate::cache::Cell;
use crate::cpu::exp::exp;
use crate::quant::float::{SPLIT, tree};
use crate::simd::{Kernel, LANES, Lanes};

/// The largest score and the sum of `exp(score - largest)`.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    pub(super) largest: f32,
    pub(super) sum: f32,
}

/// Scores of two pages' keys for H heads, to places `to` of each head's; H.
#[inline(always)]
pub(super) fn score<L: Lanes, C: Cell, const H: usize>(
    l: L,
    keys: [&[C::Sixteen]; 2],
    q: &[f32],
    head_dim: usize,
    to: [usize; 2],
    scores: &mut [f32],
) -> usize {
    let mut heads: [&[f32]; H] = [&[]; H];
    for (h, head) in heads.iter_mut().enumerate() {
        *head = &q[h * head_dim..(h + 1) * head_dim];
    }
    let (mut first, mut second) = ([l.floats(0.0); H], [l.floats(0.0); H]);
    for (d, (a, b)) in keys[0].iter().zip(keys[1]).enumerate().take(head_dim) {
        let (a, b) = (C::sixteen(l, a), C::sixteen(l, b));
        for h in 0..H {
            let q = l.floats(heads[h][d]);
            first[h] = l.fma(q, a, first[h]);
            second[h] = l.fma(q, b, second[h]);
        }
    }
    let scale = l.floats(1.0 / (head_dim as f32).sqrt());
    for h in 0..H {
        for (sums, to) in [(first[h], to[0]), (second[h], to[1])] {
            if let Some(scores) = scores[h * SPAN + to..].first_chunk_mut() {
                l.store(l.times(sums, scale), scores);
            }
        }
    }
    H
}

/// `span = fma(p_j, v_j, span)` for H heads and the rows of `values`; `p_j` is at `h * SPAN + j`. H.
#[inline(always)]
pub(super) fn weigh<L: Lanes, C: Cell, const H: usize>(
    l: L,
    values: &[C],
    scores: &[f32],
    head_dim: usize,
    span: &mut [f32],
) -> usize {
    let mut d = 0;
    while d < head_dim {
        d += match head_dim - d {
            64.. => lanes::<L, C, H, 4>(l, values, scores, head_dim, d, span),
            16.. => lanes::<L, C, H, 1>(l, values, scores, head_dim, d, span),
            rest => {
                for h in 0..H {
                    let out = &mut span[h * head_dim + d..(h + 1) * head_dim];
                    for (v, p) in values.chunks_exact(head_dim).zip(&scores[h * SPAN..]) {
                        for (out, v) in out.iter_mut().zip(&v[d..]) {
                            *out = p.mul_add(v.one(), *out);
                        }
                    }
                }
                rest
            }
        };
    }
    H
}

/// The same for elements `d` to `d + 16 D`; their number.
#[inline(always)]
fn lanes<L: Lanes, C: Cell, const H: usize, const D: usize>(
    l: L,
    values: &[C],
    scores: &[f32],
    head_dim: usize,
    d: usize,
    span: &mut [f32],
) -> usize {
    let count = values.len() / head_dim;
    let mut acc = [[l.floats(0.0); D]; H];
    let mut p: [&[f32]; H] = [&[]; H];
    for h in 0..H {
        p[h] = &scores[h * SPAN..h * SPAN + count];
        let from = span[h * head_dim + d..].as_chunks::<LANES>().0;
        for i in 0..D {
            acc[h][i] = l.load(&from[i]);
        }
    }
    for (j, v) in values.chunks_exact(head_dim).enumerate() {
        let v = v[d..].as_chunks::<LANES>().0;
        let mut row = [l.floats(0.0); D];
        for i in 0..D {
            row[i] = C::lanes(l, &v[i]);
        }
        for h in 0..H {
            let p = l.floats(p[h][j]);
            for i in 0..D {
                acc[h][i] = l.fma(p, row[i], acc[h][i]);
            }
        }
    }
    for h in 0..H {
        let to = span[h * head_dim + d..].as_chunks_mut::<LANES>().0;
        for i in 0..D {
            l.store(acc[h][i], &mut to[i]);
        }
    }
    D * LANES
}

/// Scores to `exp(score - largest)` where they are seen and 0 elsewhere, in place.
#[inline(always)]
pub(super) fn softmax<L: Lanes>(l: L, scores: &mut [f32; SPAN], seen: &[Range<usize>; 2]) -> Softmax {
    let [first, second] = seen;
    // Whatever other keys of the pages gave, exp makes a 0 of it.
    for unseen in [0..first.start, first.end..second.start.max(first.end), second.end.max(first.end)..SPAN] {
        scores[unseen].fill(f32::NEG_INFINITY);
    }
    let end = second.end.max(first.end).next_multiple_of(LANES);
    let scores = scores[..end].as_chunks_mut::<LANES>().0;
    let mut most = l.floats(f32::NEG_INFINITY);
    for scores in &mut *scores {
        // A NaN is passed over here and comes back through exp.
        most = l.larger(l.load(scores), most);
    }
    let mut each = [0.0; LANES];
    l.store(most, &mut each);
    let largest = each.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
    let mut sums = l.floats(0.0);
    for scores in &mut *scores {
        for s in scores.iter_mut() {
            *s = if *s == f32::NEG_INFINITY { 0.0 } else { exp(*s - largest) };
        }
        // Adding a 0 changes no sum: they start at 0 and never fall.
        sums = l.plus(sums, l.load(scores));
    }
    let mut each = [0.0; SPLIT];
    l.store(sums, &mut each);
    Softmax { largest, sum: tree(&each) }
}

/// Puts the next span to those before it.
#[inline(always)]
pub(super) fn add(total: &mut Option<Softmax>, part: Option<Softmax>, out: &mut [f32], span: &[f32]) {
    match (total, part) {
        (_, None) => {}
        (Some(total), Some(part)) => merge(total, part, out, span),
        (total @ None, part) => {
            out.copy_from_slice(span);
            *total = part;
        }
    }
}

/// After the last one.
#[inline(always)]
pub(super) fn divide(out: &mut [f32], total: Option<Softmax>) {
    if let Some(Softmax { sum, .. }) = total {
        out.iter_mut().for_each(|out| *out /= sum);
    }
}

/// Merges what spans left of the heads of one row, the `first` one of a block on, in order.
pub(super) struct Merge<'a> {
    pub(super) part: &'a [f32],
    pub(super) first: usize,
    /// Heads that a span has room for.
    pub(super) widest: usize,
    pub(super) head_dim: usize,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let entry = self.head_dim + 2;
        for (head, out) in self.out.chunks_exact_mut(self.head_dim).enumerate() {
            let mut total = None;
            for span in self.part.chunks_exact(self.widest * entry) {
                let (span, ends) = span[(self.first + head) * entry..][..entry].split_at(self.head_dim);
                // What sees a key has at least its e^0, or is not a number.
                let part = (ends[1] != 0.0).then_some(Softmax { largest: ends[0], sum: ends[1] });
                add(&mut total, part, out, span);
            }
            divide(out, total);
        }
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
