//! The forward pass over the rows of a step, whatever sequences they belong to.

use std::ops::Range;

use engine::ModelError;
use kvcache::{HeadClass, HeadMap, PAGE_POSITIONS, PageId};

use super::RowLogits;
use super::attention::{Attention, Heads, blocks};
use super::branches::Branches;
use super::elementwise::{self, Angles, Gated, Round, add, add_to};
use super::exits::Exits;
use super::group::{Group, Part};
use super::inputs::{Inputs, Source};
use super::packed::{Head, LayerWeights, Packed};
use super::pool::{Parts, Pool};
use super::probe::Probe;
use super::product::{multiply, multiply_into};
use crate::arch::{Decoder, Layer, Parameters};
use crate::cache::{KvDtype, Storage, Tables, Unit};
use crate::check::CheckedRow;
use crate::simd::Level;

/// Rows computed together; a longer step goes through the layers in pieces of this many, which
/// bounds memory and changes no bit.
const PIECE: usize = 256;
/// Rows whose logits exist at the same time.
const HEAD_PIECE: usize = 16;

/// Everything a pass reads.
pub(super) struct Forward<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) decoder: &'a Decoder,
    pub(super) packed: &'a Packed,
    /// Logits beyond this are padding.
    pub(super) drawn: usize,
    /// Which class each head is of.
    pub(super) heads: &'a HeadMap,
    pub(super) tables: &'a Tables,
    /// Of the tree rows.
    pub(super) branches: &'a Branches,
    /// What heads see instead of what their class does: less.
    pub(super) view: Option<HeadClass>,
    pub(super) level: Level,
}

/// The model's own parts, borrowed one by one: what a pass writes is borrowed beside them.
macro_rules! forward {
    ($model:ident, $branches:expr) => {
        $crate::cpu::forward::Forward {
            parameters: &$model.parameters,
            decoder: &$model.decoder,
            packed: &$model.packed,
            drawn: $model.spec.vocab_size as usize,
            heads: &$model.heads,
            tables: &$model.tables,
            branches: $branches,
            view: None,
            level: $model.level,
        }
    };
}
pub(super) use forward;

/// Everything a pass writes besides keys and values; kept to spare allocations.
pub(super) struct Scratch {
    angles: Angles,
    /// Rows that read their keys together.
    blocks: Vec<Range<usize>>,
    /// What spans of attention leave to be merged.
    left: Vec<f32>,
    /// The residual stream.
    pub(super) x: Vec<f32>,
    inputs: Inputs,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Results of the attention and feed-forward products.
    out: Vec<f32>,
    /// Of the head's. It only grows: heads of few and of all tokens take turns, and what is given up is cleared again.
    logits: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Logits of all tokens, spread out from those of a shortlist; the others' never change.
    wide: Vec<f32>,
    /// One key or value on its way into the cache.
    halves: Vec<[u8; 2]>,
    /// Where attention goes, while somebody asks.
    pub(super) probe: Option<Probe>,
    /// The other ranks that share the model.
    pub(super) group: Option<(Group, Part)>,
    /// This rank's columns of a row, on their way to the others.
    part: Vec<f32>,
    /// Whole rows of what the ranks computed.
    whole: Vec<f32>,
}

/// The picking rows of a step between its layers and its head.
#[derive(Default)]
pub(super) struct Picking {
    /// Index in the step, and position.
    pub(super) rows: Vec<(u32, u32)>,
    /// The residual stream after the last layer, before the final norm; row after row.
    pub(super) hidden: Vec<f32>,
}

impl Picking {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.hidden.clear();
    }
}

impl Scratch {
    pub(super) fn new(p: &Parameters) -> Self {
        Self {
            angles: Angles::new(&p.rope),
            blocks: Vec::new(),
            left: Vec::new(),
            x: Vec::new(),
            inputs: Inputs::default(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            out: Vec::new(),
            logits: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            wide: Vec::new(),
            halves: Vec::new(),
            probe: None,
            group: None,
            part: Vec::new(),
            whole: Vec::new(),
        }
    }
}

impl Forward<'_> {
    /// Computes checked rows; keeps what the head needs of the picking ones in `picking`, which is
    /// empty, in order.
    pub(super) fn layers(
        &self,
        pool: &mut Pool,
        rows: &[CheckedRow],
        storage: &mut [Storage],
        exits: &mut Exits,
        scratch: &mut Scratch,
        picking: &mut Picking,
    ) -> Result<(), ModelError> {
        for piece in rows.chunks(PIECE) {
            self.piece(pool, piece, storage, exits, scratch)?;
            for (row, x) in piece.iter().zip(scratch.x.chunks_exact(self.parameters.hidden)) {
                if row.pick {
                    picking.rows.push((row.row, row.position));
                    picking.hidden.extend_from_slice(x);
                }
            }
        }
        Ok(())
    }

    /// Final norm and a head; hands the logits of the rows, a few at a time and in order, to `each`. `spread`: those of a
    /// head of few tokens among all tokens; without, only as the few that they are.
    pub(super) fn head(
        &self,
        (head, spread): (&Head, bool),
        pool: &mut Pool,
        picking: &Picking,
        s: &mut Scratch,
        each: &mut impl FnMut(&mut Pool, &[RowLogits<'_>]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let p = self.parameters;
        let pieces = picking.rows.chunks(HEAD_PIECE).zip(picking.hidden.chunks(HEAD_PIECE * p.hidden));
        for (index, (rows, x)) in pieces.enumerate() {
            let norm = Source::Norm { x, weight: &self.decoder.norm, epsilon: p.epsilon };
            s.inputs.set(pool, self.level, (rows.len(), p.hidden), norm, [&head.weight]);
            let size = rows.len() * head.weight.outputs;
            s.logits.resize(s.logits.len().max(size), 0.0);
            let found = &mut s.logits[..size];
            multiply_into(pool, self.level, &s.inputs, [(&head.weight, &mut *found)]);
            let found = &*found;
            if let Some((group, part)) = &mut s.group {
                s.wide.resize(s.wide.len().max(rows.len() * p.vocab), 0.0);
                if !group.gather_logits(&part.vocab, (index, rows.len()), found, &mut s.wide)? {
                    continue;
                }
            }
            let (all, width) = match &head.ids {
                None if s.group.is_some() => (&s.wide[..], p.vocab),
                None => (found, p.vocab),
                Some(_) if !spread => (&[][..], 0),
                Some(ids) => {
                    s.wide.resize(s.wide.len().max(rows.len() * self.drawn), f32::NEG_INFINITY);
                    pool.pieces(&mut s.wide[..rows.len() * self.drawn], self.drawn, |i, wide| {
                        for (id, logit) in ids.iter().zip(&found[i * ids.len()..]) {
                            wide[*id as usize] = *logit;
                        }
                    });
                    (&s.wide[..], self.drawn)
                }
            };
            let listed = |i: usize| {
                let ids = head.ids.as_deref()?;
                Some((ids, &found[i * ids.len()..(i + 1) * ids.len()]))
            };
            let logits: Vec<RowLogits<'_>> = (0..)
                .zip(rows)
                .map(|(i, &(row, position))| {
                    let logits = if width == 0 { &[] } else { &all[i * width..i * width + self.drawn] };
                    RowLogits { row, position, logits, listed: listed(i) }
                })
                .collect();
            each(pool, &logits)?;
        }
        Ok(())
    }

    /// Embedding and all layers, or for rows that were drafted so the layers behind the exit; leaves the residual stream
    /// in `scratch.x`.
    fn piece(
        &self,
        pool: &mut Pool,
        rows: &[CheckedRow],
        storage: &mut [Storage],
        exits: &mut Exits,
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        let (hidden, layers) = (self.parameters.hidden, self.decoder.layers.len());
        self.embed(pool, rows, scratch);
        let starts: Vec<usize> =
            rows.iter().map(|row| exits.start(row, hidden).map_or(0, |(passed, _)| passed)).collect();
        let mut stops: Vec<usize> = starts.iter().copied().chain([layers]).collect();
        stops.sort_unstable();
        stops.dedup();
        for (row, x) in rows.iter().zip(scratch.x.chunks_exact_mut(hidden)) {
            if let Some((_, state)) = exits.start(row, hidden) {
                x.copy_from_slice(state);
            }
        }
        for stop in stops.windows(2) {
            let (from, to) = (stop[0], stop[1]);
            let under_way: Vec<usize> = (0..rows.len()).filter(|i| starts[*i] <= from).collect();
            if under_way.len() == rows.len() {
                self.through(pool, rows, from..to, storage, exits, scratch)?;
                continue;
            }
            let some: Vec<CheckedRow> = under_way.iter().map(|i| rows[*i]).collect();
            let mut all = std::mem::take(&mut scratch.x);
            for i in &under_way {
                scratch.x.extend_from_slice(&all[i * hidden..(i + 1) * hidden]);
            }
            self.through(pool, &some, from..to, storage, exits, scratch)?;
            for (i, x) in under_way.iter().zip(scratch.x.chunks_exact(hidden)) {
                all[i * hidden..(i + 1) * hidden].copy_from_slice(x);
            }
            scratch.x = all;
        }
        Ok(())
    }

    /// The residual stream before the first layer.
    pub(super) fn embed(&self, pool: &mut Pool, rows: &[CheckedRow], scratch: &mut Scratch) {
        let hidden = self.parameters.hidden;
        scratch.x.resize(rows.len() * hidden, 0.0);
        pool.pieces(&mut scratch.x, hidden, |i, x| {
            self.decoder.embedding.dequantise_row(rows[i].token.0 as usize, x);
        });
    }

    /// Takes rows, whose residual stream is `scratch.x`, through some layers.
    pub(super) fn through(
        &self,
        pool: &mut Pool,
        rows: &[CheckedRow],
        layers: Range<usize>,
        storage: &mut [Storage],
        exits: &mut Exits,
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        scratch.angles.set(pool, |i| rows[i].position, rows.len());
        let all = self.decoder.layers.iter().zip(&self.packed.layers).enumerate();
        for (index, (layer, weights)) in all.skip(layers.start).take(layers.len()) {
            self.attention(pool, index, (layer, weights), rows, storage, scratch)?;
            self.feed_forward(pool, index, (layer, weights), rows.len(), scratch)?;
            exits.hear(index + 1, rows, &scratch.x);
        }
        Ok(())
    }

    /// What rows that leave behind so many layers pass before the final norm, if the exit has something of its own
    /// (a tuned lens, arXiv 2303.08112); `x` is their residual stream.
    pub(super) fn leave(&self, pool: &mut Pool, exit: usize, x: &mut [f32], s: &mut Scratch) {
        let layer = exit.checked_sub(1).and_then(|last| self.packed.layers.get(last));
        let Some(early) = layer.and_then(|layer| layer.early.as_ref()) else { return };
        let shape = (x.len() / self.parameters.hidden, self.parameters.hidden);
        s.inputs.float_mut(shape.0, shape.1).copy_from_slice(x);
        s.inputs.set(pool, self.level, shape, Source::There, [early]);
        multiply(pool, self.level, &s.inputs, [(early, &mut s.out)]);
        x.copy_from_slice(&s.out);
    }

    fn attention(
        &self,
        pool: &mut Pool,
        index: usize,
        (layer, weights): (&Layer, &LayerWeights),
        rows: &[CheckedRow],
        storage: &mut [Storage],
        s: &mut Scratch,
    ) -> Result<(), ModelError> {
        let (p, level) = (self.parameters, self.level);
        let (q, k, v) = (&weights.q, &weights.k, &weights.v);
        let norm = Source::Norm { x: &s.x, weight: &layer.attention_norm, epsilon: p.epsilon };
        s.inputs.set(pool, level, (rows.len(), p.hidden), norm, [q, k, v]);
        multiply(pool, level, &s.inputs, [(q, &mut s.q), (k, &mut s.k), (v, &mut s.v)]);
        self.turn(pool, layer, rows.len(), s);
        // All keys first: rows of one slot see each other.
        self.write(index, rows, storage, s);

        // Of this rank.
        let kv_heads = self.heads.class_of.get(index).map_or(0, Vec::len);
        let attention = Attention {
            heads: Heads { heads: p.heads / p.kv_heads * kv_heads, kv_heads, head_dim: p.head_dim },
            layer: index,
            map: self.heads,
            view: self.view,
            storage,
        };
        let follows = |i: usize| rows[i].branch.is_none() && rows[i].slot == rows[i - 1].slot;
        blocks(rows.len(), follows, attention.heads, pool.threads(), &mut s.blocks);
        let of_row = |i: usize, class| (self.table(&rows[i], class), rows[i].position);
        let width = p.heads * p.head_dim;
        let whole = s.inputs.float_mut(rows.len(), width);
        match &mut s.group {
            None => attention.attend(pool, level, &s.blocks, of_row, &s.q, whole, &mut s.left),
            Some((group, part)) if let Some(owners) = part.spans() => {
                let rank = group.rank();
                let own = |span: usize| owners.get(span) == Some(&rank);
                for blocks in s.blocks.chunks(attention.at_a_time(&s.blocks, of_row)) {
                    let of = attention.spans(pool, level, blocks, of_row, &s.q, own, &mut s.left);
                    group.collect(owners, &of, &mut s.left)?;
                    if rank == 0 {
                        attention.merge(pool, level, blocks, &of, &s.left, whole);
                    }
                }
                group.tell(whole)?;
            }
            Some((group, part)) => {
                s.part.resize(s.q.len(), 0.0);
                attention.attend(pool, level, &s.blocks, of_row, &s.q, &mut s.part, &mut s.left);
                group.gather(&part.heads[index], rows.len(), &s.part, whole)?;
            }
        }
        if let Some(probe) = &mut s.probe {
            probe.observe(pool, attention.heads, index, rows, &s.q, &attention.storage[0]);
        }
        s.inputs.set(pool, level, (rows.len(), width), Source::There, [&weights.o]);
        multiply(pool, level, &s.inputs, [(&weights.o, &mut s.out)]);
        add_outputs(pool, rows.len(), s)
    }

    /// Biases, norms of heads, RoPE.
    fn turn(&self, pool: &mut Pool, layer: &Layer, rows: usize, s: &mut Scratch) {
        let (p, level, angles) = (self.parameters, self.level, &s.angles);
        let (wide, narrow) = (s.q.len() / rows, s.k.len() / rows);
        let (k, v) = (Parts::new(&mut s.k), Parts::new(&mut s.v));
        let norms = layer.qk_norm.as_ref();
        pool.pieces(&mut s.q, wide, |row, q| {
            // SAFETY: each row is one task's.
            let (k, v) = unsafe { (k.get(row * narrow, narrow), v.get(row * narrow, narrow)) };
            let heads = |x, bias, norm: Option<&[f32]>| {
                let norm = norm.map(|weight| (weight, p.epsilon));
                level.run(elementwise::Heads { x, head_dim: p.head_dim, bias, norm, angles, row });
            };
            heads(q, layer.q.bias.as_deref(), norms.map(|n| &n.q[..]));
            heads(k, layer.k.bias.as_deref(), norms.map(|n| &n.k[..]));
            if let Some(bias) = &layer.v.bias {
                add_to(v, bias);
            }
        });
    }

    /// The page table that a row reads and writes for a class.
    fn table(&self, row: &CheckedRow, class: usize) -> &[Option<PageId>] {
        match row.branch {
            Some(branch) => self.branches.table(branch, class),
            None => self.tables.get(row.slot.0 as usize, class),
        }
    }

    fn write(&self, layer: usize, rows: &[CheckedRow], storage: &mut [Storage], s: &mut Scratch) {
        let head_dim = self.parameters.head_dim;
        let width = s.k.len() / rows.len();
        s.halves.resize(2 * head_dim, [0; 2]);
        let (key, value) = s.halves.split_at_mut(head_dim);
        let of_rows = rows.iter().zip(s.k.chunks_exact(width)).zip(s.v.chunks_exact(width));
        for ((row, k), v) in of_rows {
            if s.group.as_ref().is_some_and(|(_, part)| !part.keeps(row.position)) {
                continue;
            }
            let (index, offset) = (row.position / PAGE_POSITIONS, row.position % PAGE_POSITIONS);
            let heads = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
            for (kv_head, (k, v)) in heads.enumerate() {
                let class = self.heads.class(layer, kv_head);
                let unit = Unit { layer, kv_head };
                if let Some(branch) = row.branch {
                    let slot = self.tables.get(row.slot.0 as usize, class);
                    self.branches.inherit(branch, (class, slot), &mut storage[class], unit);
                }
                let table = self.table(row, class);
                // Checked before the step began.
                let Some(page) = table.get(index as usize).copied().flatten() else { continue };
                let storage = &mut storage[class];
                match storage.dtype {
                    KvDtype::F16 => {
                        self.level.run(Round(k, key));
                        self.level.run(Round(v, value));
                        storage.write(page, unit, offset as usize, key, value);
                    }
                    KvDtype::Int8 => storage.write_bytes(page, unit, offset as usize, k, v),
                }
            }
        }
    }

    fn feed_forward(
        &self,
        pool: &mut Pool,
        index: usize,
        (layer, weights): (&Layer, &LayerWeights),
        rows: usize,
        s: &mut Scratch,
    ) -> Result<(), ModelError> {
        let (p, level) = (self.parameters, self.level);
        let (gate, up, down) = (&weights.gate, &weights.up, &weights.down);
        let norm = Source::Norm { x: &s.x, weight: &layer.feed_forward_norm, epsilon: p.epsilon };
        s.inputs.set(pool, level, (rows, p.hidden), norm, [gate, up]);
        multiply(pool, level, &s.inputs, [(gate, &mut s.gate), (up, &mut s.up)]);
        let gated = match &mut s.group {
            None => Source::Gate { gate: &s.gate, up: &s.up },
            Some((group, part)) => {
                s.part.resize(s.gate.len(), 0.0);
                let width = s.gate.len() / rows;
                pool.pieces(&mut s.part, width, |row, out| {
                    let part = row * width..(row + 1) * width;
                    level.run(Gated { gate: &s.gate[part.clone()], up: &s.up[part], out });
                });
                let whole = s.inputs.float_mut(rows, p.feed_forward);
                group.gather(&part.ffn[index], rows, &s.part, whole)?;
                Source::There
            }
        };
        s.inputs.set(pool, level, (rows, p.feed_forward), gated, [down]);
        multiply(pool, level, &s.inputs, [(down, &mut s.out)]);
        add_outputs(pool, rows, s)
    }
}

/// Adds what a product gave to the residual stream; in a group, after the ranks' parts of it were put together.
fn add_outputs(pool: &mut Pool, rows: usize, s: &mut Scratch) -> Result<(), ModelError> {
    let Some((group, part)) = &mut s.group else {
        add(pool, &mut s.x, &s.out);
        return Ok(());
    };
    s.whole.resize(s.x.len(), 0.0);
    group.gather(&part.hidden, rows, &s.out, &mut s.whole)?;
    add(pool, &mut s.x, &s.whole);
    Ok(())
}
