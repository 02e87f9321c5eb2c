//! Where attention goes, for finding out which heads need their past.
//!
//! Scores are computed a second time, one query after the other and in another arithmetic: what is measured takes no
//! part in what is served, and costs nothing where nothing is measured.

use std::ops::Range;

use engine::{ModelError, ModelSpec};
use half::f16;
use kvcache::{ClassId, HeadClass, PAGE_POSITIONS, PageId, pages_for};
use request::TokenId;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

use super::CpuModel;
use super::attention::Heads;
use super::pool::Pool;
use crate::cache::{KvDtype, Storage, Unit};
use crate::check::CheckedRow;
use crate::quant::F16;

const POSITIONS: usize = PAGE_POSITIONS as usize;

/// How much of the attention of these queries goes to these keys. Both are positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub queries: Range<u32>,
    pub keys: Range<u32>,
}

/// What is measured during a pass.
pub(super) struct Probe {
    asked: Vec<Asked>,
    /// The table of the one sequence.
    pages: Vec<PageId>,
    /// For each asked, `[layer][query head]`: shares of attention, summed over queries.
    sums: Vec<Vec<Vec<f64>>>,
}

impl CpuModel {
    /// Computes `tokens` and gives, for each of `asked`, the share of attention that goes there: `[layer][KV head]`,
    /// in the mean over the queries, of the query head of the group that gives it the most. `done` hears how many
    /// tokens are computed. Slots are left empty.
    ///
    /// # Errors
    /// Tokens that do not fit; a model with windows or with 8-bit keys.
    pub fn attention_shares(
        &mut self,
        tokens: &[TokenId],
        asked: &[Asked],
        mut done: impl FnMut(usize),
    ) -> Result<Vec<Vec<Vec<f64>>>, ModelError> {
        /// Rows of a step.
        const CHUNK: usize = 256;
        if self.scratch.group.is_some() {
            return Err(ModelError::Unsupported { what: "measuring attention in a worker group" });
        }
        if self.storage.iter().any(|storage| storage.dtype != KvDtype::F16) {
            return Err(ModelError::Unsupported { what: "measuring attention over 8-bit keys" });
        }
        let heads = self.parameters.heads;
        let pages = pages_for(tokens.len() as u32);
        fits(&self.spec, tokens, pages)?;
        self.scratch.probe = Some(Probe {
            asked: asked.to_vec(),
            pages: (0..pages).map(PageId).collect(),
            sums: vec![vec![vec![0.0; heads]; self.parameters.layers]; asked.len()],
        });
        let mut covered = 0;
        let mut computed = Ok(());
        for (first, chunk) in (0u32..).step_by(CHUNK).zip(tokens.chunks(CHUNK)) {
            let end = first + chunk.len() as u32;
            let clear = (first == 0).then(|| delta(TableChange::Clear));
            let grown = (covered..pages_for(end)).map(|page| delta(TableChange::Append(PageId(page))));
            let step = Step {
                deltas: clear.into_iter().chain(grown).collect(),
                rows: (first..).zip(chunk).map(|(position, token)| row(*token, position)).collect(),
            };
            covered = pages_for(end);
            computed = self.layers(&step);
            if computed.is_err() {
                break;
            }
            done(end as usize);
        }
        let probe = self.scratch.probe.take();
        self.layers(&Step { deltas: vec![delta(TableChange::Clear)], rows: Vec::new() })?;
        computed?;
        Ok(probe.map_or_else(Vec::new, |probe| probe.shares(heads / self.parameters.kv_heads)))
    }
}

/// Only sequences that no window cuts are measured.
fn fits(spec: &ModelSpec, tokens: &[TokenId], pages: u32) -> Result<(), ModelError> {
    let &[(HeadClass::Full, there)] = spec.classes.as_slice() else {
        return Err(ModelError::Unsupported { what: "measuring attention where heads have windows" });
    };
    let bound = u64::from(spec.context.min(there.saturating_mul(PAGE_POSITIONS)));
    if tokens.len() as u64 > bound || pages > there {
        return Err(ModelError::OutOfRange { what: "position", index: tokens.len() as u64 - 1, bound });
    }
    Ok(())
}

fn delta(change: TableChange) -> TableDelta {
    TableDelta { slot: Slot(0), class: ClassId(0), change }
}

fn row(token: TokenId, position: u32) -> Row {
    Row {
        slot: Slot(0),
        token: RowToken::Known(token),
        position,
        parent: Parent::Previous,
        layers: Layers::All,
        output: Output::None,
        adapter: None,
    }
}

impl Probe {
    /// Measures the rows of a piece in one layer: `q` after RoPE, keys written.
    pub(super) fn observe(
        &mut self,
        pool: &mut Pool,
        heads: Heads,
        layer: usize,
        rows: &[CheckedRow],
        q: &[f32],
        storage: &Storage,
    ) {
        let Heads { heads, kv_heads, head_dim } = heads;
        let group = heads / kv_heads;
        let (asked, pages) = (&self.asked, &self.pages);
        for (row, q) in rows.iter().zip(q.chunks_exact(heads * head_dim)) {
            let wanted = |asked: &Asked| asked.queries.contains(&row.position);
            if !asked.iter().any(wanted) {
                continue;
            }
            let mut shares = vec![0.0f64; heads * asked.len()];
            pool.pieces(&mut shares, group * asked.len(), |kv_head, shares| {
                let q = &q[kv_head * group * head_dim..(kv_head + 1) * group * head_dim];
                let weights = weights(storage, pages, Unit { layer, kv_head }, q, head_dim, row.position);
                for (weights, shares) in weights.iter().zip(shares.chunks_exact_mut(asked.len())) {
                    let total: f64 = weights.iter().sum();
                    for (share, asked) in shares.iter_mut().zip(asked) {
                        let end = (asked.keys.end as usize).min(weights.len());
                        let keys = weights.get(asked.keys.start as usize..end).unwrap_or_default();
                        *share = keys.iter().sum::<f64>() / total;
                    }
                }
            });
            for (head, shares) in shares.chunks_exact(asked.len()).enumerate() {
                for ((sums, share), asked) in self.sums.iter_mut().zip(shares).zip(asked) {
                    if wanted(asked) {
                        sums[layer][head] += share;
                    }
                }
            }
        }
    }

    /// Means over the queries; of each group the largest.
    fn shares(self, group: usize) -> Vec<Vec<Vec<f64>>> {
        let of = |(asked, sums): (&Asked, Vec<Vec<f64>>)| {
            let queries = asked.queries.len().max(1) as f64;
            let most = |heads: &[f64]| heads.iter().copied().fold(0.0, f64::max) / queries;
            sums.iter().map(|heads| heads.chunks(group).map(most).collect()).collect()
        };
        self.asked.iter().zip(self.sums).map(of).collect()
    }
}

/// `exp(score - largest score)` of all keys up to `position`, for each head of `q`.
fn weights(
    storage: &Storage,
    pages: &[PageId],
    unit: Unit,
    q: &[f32],
    head_dim: usize,
    position: u32,
) -> Vec<Vec<f64>> {
    let keys = position as usize + 1;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut scores: Vec<Vec<f64>> = q.chunks_exact(head_dim).map(|_| Vec::with_capacity(keys)).collect();
    for page in &pages[..keys.div_ceil(POSITIONS)] {
        let mut sums = vec![[0.0f32; POSITIONS]; scores.len()];
        for (d, line) in storage.keys::<F16>(*page, unit).iter().enumerate() {
            let mut floats = [0.0; POSITIONS];
            for (float, half) in floats.iter_mut().zip(line.as_chunks().0) {
                *float = f16::from_le_bytes(*half).to_f32();
            }
            for (sums, q) in sums.iter_mut().zip(q.chunks_exact(head_dim)) {
                for (sum, key) in sums.iter_mut().zip(floats) {
                    *sum += q[d] * key;
                }
            }
        }
        for (scores, sums) in scores.iter_mut().zip(sums) {
            scores.extend(sums.into_iter().take(keys - scores.len()).map(|sum| f64::from(sum * scale)));
        }
    }
    for scores in &mut scores {
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    }
    scores
}
