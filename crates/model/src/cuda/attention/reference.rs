//! A step's attention in f64, straight from its definition, and random steps to compare with it.

use super::*;
use crate::cuda::fine::Columns;
use crate::cuda::quantised::fp8;
use crate::cuda::testing::Random;

/// A step over one layer and head class.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) shape: Shape,
    pub(super) window: Window,
    /// The KV heads of the class.
    pub(super) heads: Vec<i32>,
    pub(super) runs: Vec<Run>,
    pub(super) masks: Vec<u64>,
    pub(super) rows: u32,
    pub(super) q: Vec<f32>,
    pub(super) pool: Vec<f32>,
    /// The pool as codes and scales, where it is kept so.
    pub(super) codes: Vec<u8>,
    /// Columns of keys that have a second code there.
    pub(super) fine: Columns,
    pub(super) pages: u32,
    pub(super) table: Vec<i32>,
    pub(super) slots: u32,
    pub(super) table_stride: u32,
}

/// A sequence: keys before the rows, rows, and a tree mask a row or none.
#[derive(Clone)]
pub(super) struct Sequence {
    pub(super) before: u32,
    pub(super) rows: u32,
    pub(super) tree: Option<Vec<u64>>,
}

impl Sequence {
    pub(super) fn chain(before: u32, rows: u32) -> Self {
        Self { before, rows, tree: None }
    }
}

pub(super) const SCALE: f32 = 0.12;

impl Case {
    /// Random inputs in shuffled pages. Positions that no row wrote, and pages that no window sees, are poisoned with
    /// NaN or have no page.
    pub(super) fn new(
        random: &mut Random,
        shape: Shape,
        window: Window,
        heads: &[i32],
        sequences: &[Sequence],
    ) -> Self {
        let most = sequences.iter().map(|s| s.before + s.rows).max().unwrap();
        let table_stride = (most.div_ceil(PAGE) + 1).next_multiple_of(4);
        let slots = sequences.len() as u32;
        let mut free: Vec<i32> =
            (0..sequences.iter().map(|s| (s.before + s.rows).div_ceil(PAGE) as i32).sum::<i32>() + 3)
                .collect();
        let pages = free.len() as u32;
        for i in (1..free.len()).rev() {
            free.swap(i, random.below(i as u32 + 1) as usize);
        }
        let mut case = Self {
            shape,
            window,
            heads: heads.to_vec(),
            runs: Vec::new(),
            masks: vec![u64::MAX; 3],
            rows: 0,
            q: Vec::new(),
            pool: vec![f32::NAN; pages as usize * heads.len() * 2 * PAGE as usize * shape.head_dim as usize],
            codes: Vec::new(),
            fine: Columns::default(),
            pages,
            table: vec![-1; (slots * table_stride) as usize],
            slots,
            table_stride,
        };
        if shape.kept == KvKept::Fp8 {
            let d = shape.head_dim;
            // An odd step meets no column twice.
            let (first, step) = (random.below(d), 1 + 2 * random.below(d / 2));
            case.fine = std::array::from_fn(|i| ((first + i as u32 * step) % d) as u8);
        }
        for (slot, sequence) in sequences.iter().enumerate() {
            let end = sequence.before + sequence.rows;
            for page in 0..end.div_ceil(PAGE) {
                // A page whose positions no row sees has been given back.
                let last = page * PAGE + PAGE - 1;
                let seen = page * PAGE < window.sink || last.saturating_add(window.recent) > sequence.before;
                if seen {
                    case.table[slot * table_stride as usize + page as usize] = free.pop().unwrap();
                }
            }
            for position in 0..end {
                for head in 0..heads.len() {
                    for which in 0..2 {
                        if let Some(at) = case.at(slot as u32, head, which, position) {
                            case.fill(random, at, which);
                        }
                    }
                }
            }
            let tree = sequence.tree.as_ref().map(|masks| {
                case.masks.extend(masks);
                let mask = (case.masks.len() - masks.len()) as u32;
                Tree { mask, base: sequence.before, as_chain: false }
            });
            case.runs.push(Run {
                first_row: case.rows,
                rows: sequence.rows,
                slot: slot as u32,
                position: sequence.before,
                tree,
            });
            case.rows += sequence.rows;
        }
        case.encode();
        let width = (shape.q_heads * shape.head_dim) as usize;
        case.q = (0..case.rows as usize * width).map(|_| shape.dtype.round(random.normal())).collect();
        case
    }

    /// A key or value at `at` of the pool, rounded to what it is kept in; codes in rows of unlike sizes.
    fn fill(&mut self, random: &mut Random, at: usize, which: usize) {
        let (dtype, kept) = (self.shape.dtype, self.shape.kept);
        let row = &mut self.pool[at..at + self.shape.head_dim as usize];
        row.fill_with(|| dtype.round(random.normal()));
        if kept == KvKept::Fp8 {
            let size = 0.5 + random.below(100) as f32 / 100.0;
            row.iter_mut().for_each(|x| *x *= size);
            let fine: &[u8] = if which == 0 { &self.fine } else { &[] };
            let (scale, codes, seconds) = encoded(row, fine);
            for (x, code) in row.iter_mut().zip(codes) {
                *x = fp8::value(code) * scale;
            }
            for (column, second) in fine.iter().zip(seconds) {
                row[usize::from(*column)] += fp8::value(second) * scale;
            }
        }
    }

    /// The pool as pages of codes (kernels/fp8.cuh). What is not written has the code of NaN, and scales that are NaN.
    fn encode(&mut self) {
        if self.shape.kept != KvKept::Fp8 {
            return;
        }
        self.codes.clear();
        let d = self.shape.head_dim as usize;
        for head in self.pool.chunks_exact(2 * PAGE as usize * d) {
            let (mut seconds, mut scales) = (Vec::new(), Vec::new());
            for (position, row) in head.chunks_exact(d).enumerate() {
                let fine: &[u8] = if position < PAGE as usize { &self.fine } else { &[] };
                let (scale, codes, second) = encoded(row, fine);
                let scale = if row[0].is_nan() { f32::NAN } else { scale };
                self.codes.extend(codes);
                seconds.extend(second);
                scales.extend(scale.to_le_bytes());
            }
            self.codes.extend(seconds);
            self.codes.extend(scales);
        }
    }

    fn at(&self, slot: u32, head: usize, which: usize, position: u32) -> Option<usize> {
        let page = self.table[(slot * self.table_stride + position / PAGE) as usize];
        let d = self.shape.head_dim as usize;
        let inside = (head * 2 + which) * PAGE as usize + (position % PAGE) as usize;
        (page >= 0).then(|| (page as usize * self.heads.len() * 2 * PAGE as usize + inside) * d)
    }

    /// Puts the keys and values of the path to a tree's row, as `from` has them, at the positions of a chain.
    pub(super) fn keys_in_order(&mut self, from: &Self, run: &Run) {
        let tree = run.tree.expect("a row of a tree");
        let mask = self.masks[tree.mask as usize];
        let path = (0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit| tree.base + bit);
        for (position, stored) in (tree.base..).zip(path) {
            for (head, which) in (0..self.heads.len()).flat_map(|head| [(head, 0), (head, 1)]) {
                let (source, target) =
                    (from.at(run.slot, head, which, stored), self.at(run.slot, head, which, position));
                let (Some(source), Some(target)) = (source, target) else { continue };
                let d = self.shape.head_dim as usize;
                self.pool[target..target + d].copy_from_slice(&from.pool[source..source + d]);
            }
        }
        self.encode();
    }

    /// Whether row `row` of `run` sees the key at `key`.
    fn sees(&self, run: &Run, row: u32, mut key: u32) -> bool {
        let mut position = run.position + row;
        if let Some(tree) = run.tree {
            let mask = self.masks[(tree.mask + row) as usize];
            position = tree.base + mask.count_ones() - 1;
            if key >= tree.base {
                let bit = key - tree.base;
                if bit >= 64 || mask >> bit & 1 == 0 {
                    return false;
                }
                key = tree.base + (mask & ((1 << bit) - 1)).count_ones();
            }
        }
        key <= position && (key < self.window.sink || position - key < self.window.recent)
    }

    /// The output of the class's query heads, zero elsewhere: [rows][q_heads][head_dim].
    pub(super) fn expected(&self) -> Vec<f64> {
        let Shape { head_dim, q_heads, kv_heads, .. } = self.shape;
        let (d, group) = (head_dim as usize, (q_heads / kv_heads) as usize);
        let mut out = vec![0.0; self.q.len()];
        for run in &self.runs {
            for row in 0..run.rows {
                for (head, kv) in self.heads.iter().enumerate() {
                    for member in 0..group {
                        let of = ((run.first_row + row) * q_heads) as usize + *kv as usize * group + member;
                        self.one(run, row, head, of * d, &mut out);
                    }
                }
            }
        }
        out
    }

    fn one(&self, run: &Run, row: u32, head: usize, at: usize, out: &mut [f64]) {
        let d = self.shape.head_dim as usize;
        let mut weights = Vec::new();
        for key in (0..run.position + run.rows).filter(|key| self.sees(run, row, *key)) {
            let k = self.at(run.slot, head, 0, key).expect("a visible key has a page");
            let dot: f64 = (0..d).map(|x| f64::from(self.q[at + x]) * f64::from(self.pool[k + x])).sum();
            weights.push((key, dot * f64::from(SCALE)));
        }
        let most = weights.iter().map(|w| w.1).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = weights.iter().map(|w| (w.1 - most).exp2()).sum();
        for (key, score) in weights {
            let v = self.at(run.slot, head, 1, key).expect("a visible key has a page");
            let weight = (score - most).exp2() / sum;
            for x in 0..d {
                out[at + x] += weight * f64::from(self.pool[v + x]);
            }
        }
    }
}

/// Scale and codes of a row, and the second codes of some columns.
fn encoded(row: &[f32], fine: &[u8]) -> (f32, Vec<u8>, Vec<u8>) {
    let scale = fp8::scale(row);
    let second = |column: &u8| {
        let element = row[usize::from(*column)] / scale;
        fp8::code(element - fp8::value(fp8::code(element)))
    };
    (scale, row.iter().map(|x| fp8::code(x / scale)).collect(), fine.iter().map(second).collect())
}
