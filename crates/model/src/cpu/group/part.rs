//! What a rank of a group holds, and which columns of a row it computes.

use std::ops::Range;

use kvcache::{ClassId, HeadMap, Shards, Units};

use crate::LoadError;
use crate::arch::{Decoder, Linear, Parameters};
use crate::simd::LANES;

/// All cuts of a model.
#[derive(Debug)]
pub(in super::super) struct Part {
    /// By layer: attended values.
    pub(in super::super) heads: Vec<Cut>,
    /// The same of keys.
    keys: Vec<Cut>,
    /// By layer: gated values.
    pub(in super::super) ffn: Vec<Cut>,
    /// The residual stream.
    pub(in super::super) hidden: Cut,
    pub(in super::super) vocab: Cut,
    rank: usize,
    shards: Shards,
    /// The classes of all heads.
    whole: HeadMap,
    /// Rows of the matrices q and k, which all ranks compute whole where sequences are shared out.
    widths: [usize; 2],
}

/// By rank: its columns of a row, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Cut {
    columns: Vec<Vec<Range<usize>>>,
    /// Of all ranks.
    width: usize,
}

/// Values of a feed-forward that stay together: a super-block of the K formats.
const FFN_BLOCK: usize = 256;

impl Part {
    /// Shares a model of sequences up to `context` out; refuses a share that leaves a rank without work in some layer.
    pub(in super::super) fn new(
        p: &Parameters,
        map: &HeadMap,
        context: u32,
        memory: &[u32],
        rank: usize,
    ) -> Result<Self, LoadError> {
        let bad = |why| LoadError::BadOption { option: "group", why };
        // Small models have small blocks.
        let block = if p.feed_forward / FFN_BLOCK >= 8 * memory.len() { FFN_BLOCK } else { 2 * LANES };
        let units = Units {
            heads: map,
            spans: context.div_ceil(Shards::SPAN),
            ffn_blocks: p.feed_forward.div_ceil(block) as u32,
            experts: 0,
            hidden_blocks: p.hidden.div_ceil(LANES) as u32,
            vocab_blocks: p.vocab.div_ceil(LANES) as u32,
        };
        let shards = Shards::new(&units, memory).map_err(|why| bad(why.to_string()))?;
        let ranks = memory.len();
        let runs = |size: usize, width: usize, of: &dyn Fn(usize) -> Range<u32>| Cut {
            columns: (0..ranks)
                .map(|rank| {
                    let run = of(rank);
                    let at = |block: u32| (block as usize * size).min(width);
                    std::iter::once(at(run.start)..at(run.end)).collect()
                })
                .collect(),
            width,
        };
        let heads = |size: usize| {
            let of_layer = |layer| Cut {
                columns: (0..ranks)
                    .map(|rank| {
                        shards.heads(layer, rank).map(|head| head * size..(head + 1) * size).collect()
                    })
                    .collect(),
                width: p.kv_heads * size,
            };
            (0..p.layers).map(of_layer).collect::<Vec<_>>()
        };
        let group = p.heads / p.kv_heads * p.head_dim;
        let part = Self {
            heads: heads(group),
            keys: heads(p.head_dim),
            ffn: (0..p.layers)
                .map(|layer| runs(block, p.feed_forward, &|rank| shards.ffn(layer, rank)))
                .collect(),
            hidden: runs(LANES, p.hidden, &|rank| shards.hidden(rank)),
            vocab: runs(LANES, p.vocab, &|rank| shards.vocab(rank)),
            rank,
            shards,
            whole: map.clone(),
            widths: [p.heads * p.head_dim, p.kv_heads * p.head_dim],
        };
        let idle = |rank: &usize| {
            let heads = part.heads.iter().filter(|_| part.shards.spans().is_none());
            let mut cuts = heads.chain(&part.ffn).chain([&part.hidden, &part.vocab]);
            cuts.any(|cut| cut.own(*rank) == 0)
        };
        match (0..ranks).find(idle) {
            Some(rank) => Err(bad(format!(
                "rank {rank}'s share of {memory:?} is too small: some layer leaves it without work"
            ))),
            None => Ok(part),
        }
    }

    /// By span its owner, where sequences are shared out instead of heads.
    pub(in super::super) fn spans(&self) -> Option<&[usize]> {
        self.shards.spans()
    }

    /// Whether this rank keeps keys and values of a position.
    pub(in super::super) fn keeps(&self, position: u32) -> bool {
        let owner = |spans: &[usize]| spans.get((position / Shards::SPAN) as usize).copied();
        self.shards.spans().is_none_or(|spans| owner(spans) == Some(self.rank))
    }

    /// The classes of this rank's KV heads.
    pub(in super::super) fn map(&self, map: &HeadMap) -> HeadMap {
        if self.shards.spans().is_some() {
            return map.clone();
        }
        let of = |(layer, classes): (usize, &Vec<u8>)| {
            self.shards.heads(layer, self.rank).map(|head| classes[head]).collect()
        };
        HeadMap { classes: map.classes.clone(), class_of: map.class_of.iter().enumerate().map(of).collect() }
    }

    /// Heads of a class in a layer.
    pub(in super::super) fn units(&self, layer: usize, class: ClassId) -> usize {
        self.whole.heads(layer, usize::from(class.0)).count()
    }

    /// Which of them a rank has, in its order.
    pub(in super::super) fn places(&self, layer: usize, class: ClassId, rank: usize) -> Vec<usize> {
        let class = usize::from(class.0);
        let own = self.shards.heads(layer, rank).filter(|head| self.whole.class(layer, *head) == class);
        own.map(|head| self.whole.heads(layer, class).take_while(|other| *other < head).count()).collect()
    }

    /// A rank's heads of a class to their places in a layer of a page; `unit`: bytes of one.
    pub(in super::super) fn put_units(
        &self,
        rank: usize,
        layer: usize,
        class: ClassId,
        part: &[u8],
        whole: &mut [u8],
        unit: usize,
    ) {
        for (bytes, place) in part.chunks_exact(unit).zip(self.places(layer, class, rank)) {
            whole[place * unit..(place + 1) * unit].copy_from_slice(bytes);
        }
    }

    /// Rows of the matrices of a layer (q, k, v, o, gate, up, down) that are this rank's.
    pub(in super::super) fn rows(&self, layer: usize) -> [Vec<u32>; 7] {
        let (heads, keys, ffn) = (&self.heads[layer], &self.keys[layer], &self.ffn[layer]);
        let mut rows =
            [heads, keys, keys, &self.hidden, ffn, ffn, &self.hidden].map(|cut| cut.rows(self.rank));
        if self.shards.spans().is_some() {
            // Every rank needs all queries, and the owner of a position its keys and values of all heads.
            let [q, k] = self.widths.map(|width| (0..width as u32).collect::<Vec<_>>());
            (rows[0], rows[1], rows[2]) = (q, k.clone(), k);
        }
        rows
    }

    /// Rows of the output layer.
    pub(in super::super) fn head_rows(&self) -> Vec<u32> {
        self.vocab.rows(self.rank)
    }

    /// Leaves the biases of this rank's heads.
    pub(in super::super) fn cut_biases(&self, decoder: &mut Decoder) {
        for (layer, weights) in decoder.layers.iter_mut().enumerate() {
            let [q, k, v, ..] = self.rows(layer);
            let cut = |linear: &mut Linear, rows: &[u32]| {
                if let Some(bias) = &mut linear.bias {
                    *bias = rows.iter().map(|row| bias[*row as usize]).collect();
                }
            };
            cut(&mut weights.q, &q);
            cut(&mut weights.k, &k);
            cut(&mut weights.v, &v);
        }
    }
}

impl Cut {
    pub(super) fn ranks(&self) -> usize {
        self.columns.len()
    }

    /// Columns of a rank.
    pub(in super::super) fn own(&self, rank: usize) -> usize {
        self.columns.get(rank).map_or(0, |columns| columns.iter().map(Range::len).sum())
    }

    fn rows(&self, rank: usize) -> Vec<u32> {
        self.columns[rank].iter().cloned().flatten().map(|column| column as u32).collect()
    }

    /// A rank's columns, row by row, to their places in whole rows.
    pub(super) fn put(&self, rank: usize, rows: usize, part: &[f32], whole: &mut [f32]) {
        let width = self.own(rank);
        let rows = part.chunks_exact(width).zip(whole.chunks_exact_mut(self.width)).take(rows);
        for (part, whole) in rows {
            let mut from = part;
            for columns in &self.columns[rank] {
                let (now, later) = from.split_at(columns.len());
                whole[columns.clone()].copy_from_slice(now);
                from = later;
            }
        }
    }

    /// The same from bytes, one rank's after the other's; `None` when they are not as many as they should be.
    pub(super) fn put_bytes(
        &self,
        ranks: impl IntoIterator<Item = usize>,
        rows: usize,
        bytes: &[u8],
        whole: &mut [f32],
    ) -> Option<()> {
        let (mut values, rest) = bytes.as_chunks();
        for rank in ranks {
            let (now, later) = values.split_at_checked(rows * self.own(rank))?;
            let mut from = now.iter();
            for whole in whole.chunks_exact_mut(self.width).take(rows) {
                for columns in &self.columns[rank] {
                    for (to, bytes) in whole[columns.clone()].iter_mut().zip(&mut from) {
                        *to = f32::from_le_bytes(*bytes);
                    }
                }
            }
            values = later;
        }
        (values.is_empty() && rest.is_empty()).then_some(())
    }

    /// Ranks' columns of whole rows, as `put_bytes` takes them.
    pub(super) fn take(
        &self,
        ranks: impl IntoIterator<Item = usize>,
        rows: usize,
        whole: &[f32],
        bytes: &mut Vec<u8>,
    ) {
        for rank in ranks {
            for whole in whole.chunks_exact(self.width).take(rows) {
                for columns in &self.columns[rank] {
                    bytes.extend(whole[columns.clone()].iter().flat_map(|value| value.to_le_bytes()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_whole_rows() {
        let cut = Cut { columns: vec![vec![0..2, 5..6], vec![2..5], vec![6..7]], width: 7 };
        let whole: Vec<f32> = (0..14).map(|i| i as f32).collect();
        let mut bytes = Vec::new();
        cut.take([0, 2], 2, &whole, &mut bytes);
        let mut found = vec![-1.0; 14];
        cut.put(1, 2, &[2.0, 3.0, 4.0, 9.0, 10.0, 11.0], &mut found);
        assert_eq!(cut.put_bytes([0, 2], 2, &bytes, &mut found), Some(()));
        assert_eq!(found, whole);
        assert_eq!(cut.put_bytes([0, 2], 2, &bytes[1..], &mut found), None);
        assert_eq!(cut.put_bytes([0], 2, &bytes, &mut found), None, "too many");
    }
}
