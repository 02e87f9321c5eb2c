//! A model without arithmetic: the twin of [`Model`] for tests and for the mock cluster.
//!
//! Its next-token law is a function of a hash of the visible context, read *through the page tables*:
//! a page that was mapped wrong, given back too early or never written changes the text or ends in
//! an error. The exact law is [`toy_logits`].

use std::collections::HashMap;

use kvcache::{HeadClass, PAGE_POSITIONS, PageId};
use request::TokenId;
use scheduler::{Layers, Output, Parent, RowToken, Slot, Step, TableChange};

use crate::{Model, ModelError, ModelSpec, Pick, Picks, Ticket};

/// A deterministic model over hashes.
#[derive(Debug)]
pub struct ToyModel {
    spec: ModelSpec,
    seed: u64,
    /// Share of contexts in which it answers with another law: a drafter that is often wrong.
    noise: f64,
    /// Per class: what each page holds; `None` = never written since it was mapped.
    pages: Vec<Vec<[Option<TokenId>; PAGE_POSITIONS as usize]>>,
    tables: HashMap<(Slot, u8), Vec<Option<PageId>>>,
    picks: Option<Picks>,
}

impl ToyModel {
    /// All toys of one seed have the same law.
    pub fn new(spec: ModelSpec, seed: u64) -> Self {
        let pages = spec
            .classes
            .iter()
            .map(|(_, pages)| vec![[None; PAGE_POSITIONS as usize]; *pages as usize])
            .collect();
        Self { spec, seed, noise: 0.0, pages, tables: HashMap::new(), picks: None }
    }

    /// A small spec: one full class.
    pub fn spec(vocab_size: u32, context: u32, slots: u32, pages: u32) -> ModelSpec {
        ModelSpec { vocab_size, context, classes: vec![(HeadClass::Full, pages)], slots }
    }

    /// A drafter of the same seed that is wrong in this share of contexts.
    pub fn with_noise(mut self, noise: f64) -> Self {
        self.noise = noise;
        self
    }

    fn apply(&mut self, step: &Step) -> Result<(), ModelError> {
        for delta in &step.deltas {
            let class = delta.class.0;
            let table = self.tables.entry((delta.slot, class)).or_default();
            match delta.change {
                TableChange::Append(page) => {
                    let storage = self.pages.get_mut(class as usize).and_then(|p| p.get_mut(page.0 as usize));
                    let Some(storage) = storage else {
                        return Err(ModelError::OutOfRange { what: "page", index: page.0.into(), bound: 0 });
                    };
                    *storage = [None; PAGE_POSITIONS as usize];
                    table.push(Some(page));
                }
                TableChange::Truncate(keep) => table.truncate(keep as usize),
                TableChange::Drop(index) => {
                    if let Some(entry) = table.get_mut(index as usize) {
                        *entry = None;
                    }
                }
                TableChange::Clear => table.clear(),
            }
        }
        Ok(())
    }

    fn cell(&mut self, slot: Slot, class: usize, position: u32) -> Result<&mut Option<TokenId>, ModelError> {
        let missing = ModelError::NoPage { slot: slot.0, position };
        let table = self.tables.get(&(slot, class as u8)).ok_or(missing.clone())?;
        let page = table.get((position / PAGE_POSITIONS) as usize).copied().flatten().ok_or(missing)?;
        Ok(&mut self.pages[class][page.0 as usize][(position % PAGE_POSITIONS) as usize])
    }

    /// Hash of what the row at `position` sees, over all classes.
    fn context(&mut self, slot: Slot, position: u32) -> Result<u64, ModelError> {
        let mut hash = 0;
        for class in 0..self.spec.classes.len() {
            for key in 0..=position {
                if self.spec.classes[class].0.sees(position, key) {
                    let token = *self.cell(slot, class, key)?;
                    let token = token.ok_or(ModelError::NoPage { slot: slot.0, position: key })?;
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

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        for row in &step.rows {
            if !matches!(row.token, RowToken::Known(_)) || row.parent != Parent::Previous {
                return Err(ModelError::Unsupported { what: "tree or device-side rows" });
            }
            if row.layers != Layers::All || !matches!(row.output, Output::None | Output::Pick(_)) {
                return Err(ModelError::Unsupported { what: "early exit, hidden or pooled outputs" });
            }
        }
        self.apply(step)?;
        let mut picks = Vec::new();
        for row in &step.rows {
            let RowToken::Known(token) = row.token else { continue };
            for class in 0..self.spec.classes.len() {
                *self.cell(row.slot, class, row.position)? = Some(token);
            }
        }
        for (index, row) in step.rows.iter().enumerate() {
            let Output::Pick(sampling) = row.output else { continue };
            let context = self.context(row.slot, row.position)?;
            let wrong = unit(mix(context ^ 0x77)) < self.noise;
            let logits = logits_of(self.seed ^ u64::from(wrong), context, self.spec.vocab_size);
            let token = sampling::pick(&logits, &sampling, row.position + 1)
                .ok_or(ModelError::NotFinite { row: index as u32 })?;
            picks.push(Pick { row: index as u32, token });
        }
        self.picks = Some(Picks(picks));
        Ok(Ticket(0))
    }

    fn collect(&mut self, _ticket: Ticket) -> Result<Picks, ModelError> {
        self.picks.take().ok_or(ModelError::Device("nothing was submitted".into()))
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
