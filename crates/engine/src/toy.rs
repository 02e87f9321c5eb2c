//! A model without arithmetic: the twin of [`Model`] for tests and for the mock cluster.
//!
//! Its next-token law is a function of a hash of the visible context, read *through the page tables*:
//! a page that was mapped wrong, given back too early or never written changes the text or ends in
//! an error. The exact law is [`toy_logits`].

use kvcache::{ClassId, HeadClass, PageId};
use request::{Sampling, TokenId};
use sampling::{Draw, draw};
use scheduler::{Layers, Output, Parent, RowToken, Slot, Step};

use crate::paged_tokens::PagedTokens;
use crate::{Layered, Model, ModelError, ModelSpec, Pick, Picks, SaidBy, SelfDraft, Ticket};

/// A deterministic model over hashes.
#[derive(Debug)]
pub struct ToyModel {
    spec: ModelSpec,
    seed: u64,
    /// Share of contexts in which it answers with another law: a drafter that is often wrong.
    noise: f64,
    tokens: PagedTokens,
    /// Of the step under way: row, position and context of each picking row.
    picking: Option<Vec<(u32, u32, u64)>>,
    /// Of the last step: slot, position and context of each picking row.
    picked: Vec<(Slot, u32, u64)>,
}

impl ToyModel {
    /// It has none, but each layer is wrong in fewer contexts than the one before.
    const LAYERS: u32 = 4;

    /// All toys of one seed have the same law.
    pub fn new(spec: ModelSpec, seed: u64) -> Self {
        let tokens = PagedTokens::new(&spec);
        Self { spec, seed, noise: 0.0, tokens, picking: None, picked: Vec::new() }
    }

    /// A small spec: one full class.
    pub fn spec(vocab_size: u32, context: u32, slots: u32, pages: u32) -> ModelSpec {
        ModelSpec {
            vocab_size,
            context,
            classes: vec![(HeadClass::Full, pages)],
            slots,
            tree_rows: 64,
            layered: Some(Layered { layers: Self::LAYERS, head: 0.5, draft: 0.5, windows: true }),
        }
    }

    /// A drafter of the same seed that is wrong in this share of contexts.
    pub fn with_noise(mut self, noise: f64) -> Self {
        self.noise = noise;
        self
    }

    /// A model that refuses trees.
    pub fn without_trees(mut self) -> Self {
        self.spec.tree_rows = 0;
        self
    }

    /// Hash of what the row at `position` sees, over all classes; `path`: the last tokens of it, of a tree row.
    fn context(&self, slot: Slot, position: u32, path: &[TokenId]) -> Result<u64, ModelError> {
        let (mut hash, base) = (0, position + 1 - path.len() as u32);
        for class in 0..self.spec.classes.len() {
            for key in 0..=position {
                if self.spec.classes[class].0.sees(position, key) {
                    let token = match key.checked_sub(base) {
                        Some(behind) => path[behind as usize],
                        None => self.tokens.read(slot, class, key)?,
                    };
                    hash = step_hash(hash, token);
                }
            }
        }
        Ok(hash)
    }
}

impl Model for ToyModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn layers(&self) -> u32 {
        PagedTokens::LAYERS
    }

    fn export(
        &mut self,
        class: ClassId,
        page: PageId,
        layer: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        self.tokens.export(class, page, layer, into)
    }

    fn import(&mut self, class: ClassId, page: PageId, layer: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.tokens.import(class, page, layer, bytes)
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        for row in &step.rows {
            if !matches!(row.token, RowToken::Known(_)) {
                return Err(ModelError::Unsupported { what: "device-side rows" });
            }
            if self.spec.tree_rows == 0 && row.parent != Parent::Previous {
                return Err(ModelError::Unsupported { what: "token trees" });
            }
            if row.layers != Layers::All || !matches!(row.output, Output::None | Output::Pick) {
                return Err(ModelError::Unsupported { what: "early exit, hidden or pooled outputs" });
            }
        }
        self.tokens.apply(&step.deltas)?;
        self.tokens.branches.clear();
        for (index, row) in step.rows.iter().enumerate() {
            let RowToken::Known(token) = row.token else { continue };
            if let Parent::Row(parent) = row.parent {
                let mut path = self.tokens.branches.get(&parent).cloned().unwrap_or_default();
                path.push(token);
                self.tokens.branches.insert(index as u32, path);
                continue;
            }
            for class in 0..self.spec.classes.len() {
                self.tokens.write(row.slot, class, row.position, token)?;
            }
        }
        let picking = step.rows.iter().enumerate().filter(|(_, row)| row.output == Output::Pick);
        let contexts = picking.map(|(index, row)| {
            let path = self.tokens.branches.get(&(index as u32)).map_or(&[][..], Vec::as_slice);
            Ok((index as u32, row.position, self.context(row.slot, row.position, path)?))
        });
        let contexts: Vec<(u32, u32, u64)> = contexts.collect::<Result<_, ModelError>>()?;
        let slot = |row: u32| step.rows[row as usize].slot;
        self.picked =
            contexts.iter().map(|(row, position, context)| (slot(*row), *position, *context)).collect();
        self.picking = Some(contexts);
        Ok(Ticket(0))
    }

    fn collect(&mut self, _ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        let picking = self.picking.take().ok_or(ModelError::Device("nothing was submitted".into()))?;
        if picking.len() != draws.len() {
            return Err(ModelError::Draws { draws: draws.len(), rows: picking.len() });
        }
        let drawn = picking.into_iter().zip(draws).map(|((row, position, context), asked)| {
            let wrong = unit(mix(context ^ 0x77)) < self.noise;
            let logits = logits_of(self.seed ^ u64::from(wrong), context, self.spec.vocab_size);
            let drawn = draw(&logits, asked, position + 1).ok_or(ModelError::NotFinite { row })?;
            Ok(Pick { row, drawn })
        });
        Ok(Picks(drawn.collect::<Result<_, _>>()?))
    }

    fn self_draft(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        let SelfDraft { slot, token, position, exit, window, most, .. } = *asked;
        let (mut path, mut ids, mut chance) = (vec![token], Vec::new(), 1.0);
        for at in (position..).take(most as usize) {
            let context = self.context(slot, at, &path)?;
            // Who does not see everything is wrong now and then.
            let right = match window {
                Some(window) if window.sees(at, 0) && (0..at).all(|key| window.sees(at, key)) => 1.0,
                Some(_) => 0.8,
                None => Self::right(exit),
            };
            let (id, sure) = self.layer(right, context, at, &asked.sampling)?;
            ids.push((id, sure));
            path.push(id);
            if asked.ends(id, sure, &mut chance) {
                break;
            }
        }
        Ok(ids)
    }

    fn said(&mut self, slot: Slot, rows: u32, sampling: &Sampling) -> Result<Vec<SaidBy>, ModelError> {
        let picked = self.picked.iter().filter(|(of, ..)| *of == slot).take(rows as usize);
        let picked: Vec<(u32, u64)> = picked.map(|(_, position, context)| (*position, *context)).collect();
        let by = |exit| {
            let said = picked
                .iter()
                .map(|(position, context)| self.layer(Self::right(exit), *context, *position, sampling));
            Ok(SaidBy { exit, said: said.collect::<Result<_, ModelError>>()? })
        };
        (1..Self::LAYERS).map(by).collect()
    }
}

impl ToyModel {
    /// The share of contexts in which a layer is right.
    fn right(exit: u32) -> f64 {
        f64::from(exit) / f64::from(Self::LAYERS)
    }

    /// What is said after a context by who is right in that share of contexts, and how sure it is: more so when it is right.
    fn layer(
        &self,
        right: f64,
        context: u64,
        position: u32,
        sampling: &Sampling,
    ) -> Result<(TokenId, f64), ModelError> {
        let wrong = unit(mix(context ^ 0x99)) > right;
        let logits = logits_of(self.seed ^ u64::from(wrong), context, self.spec.vocab_size);
        let drawn = draw(&logits, &Draw::new(*sampling), position + 1);
        let drawn = drawn.ok_or(ModelError::NotFinite { row: 0 })?;
        Ok((drawn.token, if wrong { 0.3 } else { 0.8 } + 0.2 * unit(mix(context ^ 0x55))))
    }
}

/// The law of a toy with one full class: logits after `tokens`.
pub fn toy_logits(seed: u64, tokens: &[TokenId], vocab_size: u32) -> Vec<f32> {
    logits_of(seed, tokens.iter().fold(0, |hash, token| step_hash(hash, *token)), vocab_size)
}

fn logits_of(seed: u64, context: u64, vocab_size: u32) -> Vec<f32> {
    (0..vocab_size).map(|v| (unit(mix(context ^ mix(seed ^ u64::from(v)))) * 4.0) as f32).collect()
}

fn step_hash(hash: u64, token: TokenId) -> u64 {
    mix(hash ^ (u64::from(token.0) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
