//! The forward pass over the rows of a step, whatever sequences they belong to.

use engine::ModelError;
use kvcache::PAGE_POSITIONS;

use super::RowLogits;
use super::attention::{Heads, Query, attend};
use super::elementwise::{Angles, add, gate, head_norm, rms_norm};
use super::product::{Inputs, Outputs};
use crate::arch::{Decoder, Layer, Linear, Parameters};
use crate::cache::{Storage, Tables, Unit};
use crate::check::CheckedRow;
use crate::simd::Level;

/// Rows computed together; a longer step goes through the layers in pieces of this many, which
/// bounds memory and changes no bit.
const PIECE: usize = 256;
/// Rows whose logits exist at the same time.
const HEAD_PIECE: usize = 16;
/// The one head class built so far.
const CLASS: usize = 0;

/// Everything a pass reads.
pub(super) struct Forward<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) decoder: &'a Decoder,
    /// Logits beyond this are padding.
    pub(super) drawn: usize,
    pub(super) tables: &'a Tables,
    pub(super) level: Level,
}

/// Everything a pass writes besides keys and values; kept to spare allocations.
pub(super) struct Scratch {
    angles: Angles,
    /// The residual stream.
    x: Vec<f32>,
    normed: Vec<f32>,
    attended: Vec<f32>,
    inputs: Inputs,
    q: Outputs,
    k: Outputs,
    v: Outputs,
    /// Results of the attention, feed-forward and head products.
    out: Outputs,
    gate: Outputs,
    up: Outputs,
}

/// The picking rows of a step between its layers and its head.
#[derive(Default)]
pub(super) struct Picking {
    /// Index in the step, and position.
    pub(super) rows: Vec<(u32, u32)>,
    /// The residual stream after the last layer, before the final norm; row after row.
    hidden: Vec<f32>,
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
            x: Vec::new(),
            normed: Vec::new(),
            attended: Vec::new(),
            inputs: Inputs::default(),
            q: Outputs::default(),
            k: Outputs::default(),
            v: Outputs::default(),
            out: Outputs::default(),
            gate: Outputs::default(),
            up: Outputs::default(),
        }
    }
}

impl Forward<'_> {
    /// Computes checked rows; keeps what the head needs of the picking ones in `picking`, which is
    /// empty, in order.
    pub(super) fn layers(
        &self,
        rows: &[CheckedRow],
        storage: &mut Storage,
        scratch: &mut Scratch,
        picking: &mut Picking,
    ) {
        for piece in rows.chunks(PIECE) {
            self.piece(piece, storage, scratch);
            for (row, x) in piece.iter().zip(scratch.x.chunks_exact(self.parameters.hidden)) {
                if row.pick {
                    picking.rows.push((row.row, row.position));
                    picking.hidden.extend_from_slice(x);
                }
            }
        }
    }

    /// Final norm and head; hands the logits of the rows, a few at a time and in order, to `each`.
    pub(super) fn head(
        &self,
        picking: &Picking,
        s: &mut Scratch,
        each: &mut impl FnMut(&[RowLogits<'_>]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let (p, level) = (self.parameters, self.level);
        let pieces = picking.rows.chunks(HEAD_PIECE).zip(picking.hidden.chunks(HEAD_PIECE * p.hidden));
        for (rows, x) in pieces {
            s.normed.resize(x.len(), 0.0);
            rms_norm(level, x, &self.decoder.norm, p.epsilon, &mut s.normed);
            s.inputs.set(level, &s.normed, rows.len(), &[&self.decoder.head]);
            s.out.multiply(level, &self.decoder.head, &s.inputs);
            let logits: Vec<RowLogits<'_>> = rows
                .iter()
                .zip(s.out.values().chunks_exact(p.vocab))
                .map(|(&(row, position), logits)| RowLogits { row, position, logits: &logits[..self.drawn] })
                .collect();
            each(&logits)?;
        }
        Ok(())
    }

    /// Embedding and all layers; leaves the residual stream in `scratch.x`.
    fn piece(&self, rows: &[CheckedRow], storage: &mut Storage, scratch: &mut Scratch) {
        let hidden = self.parameters.hidden;
        scratch.angles.set(rows.iter().map(|r| r.position));
        scratch.x.resize(rows.len() * hidden, 0.0);
        for (row, x) in rows.iter().zip(scratch.x.chunks_exact_mut(hidden)) {
            self.decoder.embedding.dequantise_row(row.token.0 as usize, x);
        }
        for (index, layer) in self.decoder.layers.iter().enumerate() {
            self.attention(index, layer, rows, storage, scratch);
            self.feed_forward(layer, rows.len(), scratch);
        }
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        rows: &[CheckedRow],
        storage: &mut Storage,
        s: &mut Scratch,
    ) {
        let (p, level) = (self.parameters, self.level);
        s.normed.resize(s.x.len(), 0.0);
        rms_norm(level, &s.x, &layer.attention_norm, p.epsilon, &mut s.normed);
        s.inputs.set(level, &s.normed, rows.len(), &[&layer.q.matrix, &layer.k.matrix, &layer.v.matrix]);
        for (linear, out) in [(&layer.q, &mut s.q), (&layer.k, &mut s.k), (&layer.v, &mut s.v)] {
            out.multiply(level, &linear.matrix, &s.inputs);
            add_bias(linear, out.values());
        }
        if let Some(norm) = &layer.qk_norm {
            head_norm(level, &norm.q, p.epsilon, s.q.values());
            head_norm(level, &norm.k, p.epsilon, s.k.values());
        }
        s.angles.turn(level, p.head_dim, s.q.values());
        s.angles.turn(level, p.head_dim, s.k.values());
        // All keys first: rows of one slot see each other.
        self.write(index, rows, storage, s.k.values(), s.v.values());

        let queries: Vec<Query<'_>> = rows
            .iter()
            .map(|r| Query { table: self.tables.get(r.slot.0 as usize, CLASS), position: r.position })
            .collect();
        let heads = Heads { heads: p.heads, kv_heads: p.kv_heads, head_dim: p.head_dim };
        s.attended.resize(s.q.values().len(), 0.0);
        attend(level, heads, index, storage, &queries, s.q.values(), &mut s.attended);
        s.inputs.set(level, &s.attended, rows.len(), &[&layer.o]);
        s.out.multiply(level, &layer.o, &s.inputs);
        add(&mut s.x, s.out.values());
    }

    fn write(&self, layer: usize, rows: &[CheckedRow], storage: &mut Storage, k: &[f32], v: &[f32]) {
        let (head_dim, width) =
            (self.parameters.head_dim, self.parameters.kv_heads * self.parameters.head_dim);
        for ((row, k), v) in rows.iter().zip(k.chunks_exact(width)).zip(v.chunks_exact(width)) {
            let table = self.tables.get(row.slot.0 as usize, CLASS);
            let (index, offset) = (row.position / PAGE_POSITIONS, row.position % PAGE_POSITIONS);
            // Checked before the step began.
            let Some(page) = table.get(index as usize).copied().flatten() else { continue };
            let heads = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
            for (kv_head, (key, value)) in heads.enumerate() {
                storage.write(page, Unit { layer, kv_head }, offset as usize, key, value);
            }
        }
    }

    fn feed_forward(&self, layer: &Layer, rows: usize, s: &mut Scratch) {
        let (p, level) = (self.parameters, self.level);
        rms_norm(level, &s.x, &layer.feed_forward_norm, p.epsilon, &mut s.normed);
        s.inputs.set(level, &s.normed, rows, &[&layer.gate, &layer.up]);
        s.gate.multiply(level, &layer.gate, &s.inputs);
        s.up.multiply(level, &layer.up, &s.inputs);
        gate(level, s.gate.values(), s.up.values());
        s.inputs.set(level, s.gate.values(), rows, &[&layer.down]);
        s.out.multiply(level, &layer.down, &s.inputs);
        add(&mut s.x, s.out.values());
    }
}

fn add_bias(linear: &Linear, values: &mut [f32]) {
    let Some(bias) = &linear.bias else { return };
    for row in values.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}
