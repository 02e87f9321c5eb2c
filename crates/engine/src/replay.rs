//! A model that says what another pair of models said, at its own cost.
//!
//! Speculation is worth as much as drafts are right, and random weights are never right. So the words of
//! a real target and drafter are recorded once ([`Trace`]) and laid over any two models: those compute every
//! row in full, and what they drew is replaced by what was recorded. Then a large random model shows what
//! a trained one of its size would reach with that acceptance.

use std::collections::HashMap;
use std::sync::Arc;

use kvcache::{HeadClass, PAGE_POSITIONS};
use request::TokenId;
use sampling::Draw;
use scheduler::{Output, Parent, RowToken, Slot, Step, TableChange};

use crate::paged_tokens::PagedTokens;
use crate::{Model, ModelError, ModelSpec, Picks, Ticket};

/// What a target answered to some prompts, and what a drafter would have said at each place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// All ids are below it.
    pub vocab_size: u32,
    pub answers: Vec<Recorded>,
}

/// One prompt. Both answers have the same length, at least one token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    pub prompt: Vec<TokenId>,
    /// The target's answer.
    pub target: Vec<TokenId>,
    /// For each place of it the drafter's most likely token after the prompt and `target` before that place:
    /// a chain of k drafts is right as far as `drafter` equals `target` from its first place on.
    pub drafter: Vec<TokenId>,
}

/// Whose words a [`Replay`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Target,
    Drafter,
}

/// Why a trace cannot be laid over a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("the trace has a vocabulary of {0}: with less than two tokens no draft can be wrong")]
    Tiny(u32),
    #[error("answer {answer} of the trace {why}")]
    Answer { answer: usize, why: &'static str },
    #[error(
        "the trace has ids below {trace}, the model only {model}; a model with a vocabulary as large is needed"
    )]
    Vocabulary { trace: u32, model: u32 },
    #[error(
        "answer {answer} of the trace has {length} tokens with its prompt, the model's context {context}"
    )]
    Context { answer: usize, length: usize, context: u32 },
    #[error("the model keeps no whole context: all of its heads have windows")]
    NoFullClass,
}

impl Trace {
    pub fn validate(&self) -> Result<(), ReplayError> {
        if self.vocab_size < 2 {
            return Err(ReplayError::Tiny(self.vocab_size));
        }
        for (answer, a) in self.answers.iter().enumerate() {
            let mut ids = a.prompt.iter().chain(&a.target).chain(&a.drafter);
            let why = if a.prompt.is_empty() || a.target.is_empty() {
                "has no prompt or no tokens"
            } else if a.target.len() != a.drafter.len() {
                "has not as many drafts as tokens"
            } else if ids.any(|id| id.0 >= self.vocab_size) {
                "has an id outside its own vocabulary"
            } else {
                continue;
            };
            return Err(ReplayError::Answer { answer, why });
        }
        Ok(())
    }
}

impl Recorded {
    /// Prompt and answer as one sequence.
    fn truth(&self, position: u32) -> Option<TokenId> {
        let position = position as usize;
        self.prompt.get(position).or_else(|| self.target.get(position - self.prompt.len())).copied()
    }

    /// What `side` says for `position`, if that is recorded. `agrees`: everything before is the truth.
    fn word(&self, side: Side, position: u32, agrees: bool) -> Option<TokenId> {
        let place = (position as usize).checked_sub(self.prompt.len())?;
        let (target, drafter) = (*self.target.get(place)?, *self.drafter.get(place)?);
        Some(match side {
            Side::Target => target,
            Side::Drafter if agrees => drafter,
            // Behind a wrong draft all are wrong: any token but the target's, still below the vocabulary.
            Side::Drafter => TokenId(target.0.checked_sub(1).unwrap_or(1)),
        })
    }
}

/// A model under a trace.
///
/// A sequence belongs to the recorded answer whose prompt it begins with and with which it agrees when it is
/// first drawn for. On the target's side every draw of it is the target's token for that place, whatever
/// drafts stand before. On the drafter's side a draw is the drafter's token as long as the sequence is
/// the recorded one, and a wrong token after that. Everything else is the inner model's own: sequences that
/// are not in the trace, places behind an answer's end, log-probabilities. A drafter's draw carries no law,
/// so under the rejection rule it is judged as under strict.
#[derive(Debug)]
pub struct Replay<M> {
    inner: M,
    /// The inner model's, without trees: a trace has one text.
    spec: ModelSpec,
    trace: Arc<Trace>,
    side: Side,
    /// Index of a class that keeps every position.
    class: u8,
    tokens: PagedTokens,
    places: HashMap<Slot, Place>,
    /// Of the step under way, for each picking row.
    words: Vec<Option<TokenId>>,
}

/// Where a slot's sequence is in the trace.
#[derive(Clone, Copy, Debug)]
struct Place {
    answer: usize,
    /// Positions from the first on that hold the recorded tokens.
    agrees: u32,
}

impl<M: Model> Replay<M> {
    pub fn new(inner: M, trace: Arc<Trace>, side: Side) -> Result<Self, ReplayError> {
        trace.validate()?;
        let spec = inner.spec();
        if spec.vocab_size < trace.vocab_size {
            return Err(ReplayError::Vocabulary { trace: trace.vocab_size, model: spec.vocab_size });
        }
        let length = |a: &Recorded| a.prompt.len() + a.target.len();
        let too_long = trace.answers.iter().position(|a| length(a) > spec.context as usize);
        if let Some(answer) = too_long {
            let length = length(&trace.answers[answer]);
            return Err(ReplayError::Context { answer, length, context: spec.context });
        }
        let class = spec.classes.iter().position(|(class, _)| *class == HeadClass::Full);
        let class = class.and_then(|c| u8::try_from(c).ok()).ok_or(ReplayError::NoFullClass)?;
        let tokens = PagedTokens::new(spec);
        let spec = ModelSpec { tree_rows: 0, layered: None, ..spec.clone() };
        Ok(Self { inner, spec, trace, side, class, tokens, places: HashMap::new(), words: Vec::new() })
    }

    /// Follows table changes: a place is known as far as its positions are.
    fn change(&mut self, step: &Step) -> Result<(), ModelError> {
        self.tokens.apply(&step.deltas)?;
        for delta in &step.deltas {
            if delta.class.0 != self.class {
                continue;
            }
            match delta.change {
                TableChange::Clear => drop(self.places.remove(&delta.slot)),
                TableChange::Truncate(keep) => self.shorten(delta.slot, keep.saturating_mul(PAGE_POSITIONS)),
                TableChange::Append(_)
                | TableChange::Share(_)
                | TableChange::Hole
                | TableChange::Keep { .. }
                | TableChange::Drop(_) => {}
            }
        }
        Ok(())
    }

    fn shorten(&mut self, slot: Slot, agrees: u32) {
        let Some(place) = self.places.get_mut(&slot) else { return };
        place.agrees = place.agrees.min(agrees);
        if (place.agrees as usize) < self.trace.answers[place.answer].prompt.len() {
            self.places.remove(&slot);
        }
    }

    /// A token is written; the place follows.
    fn write(&mut self, slot: Slot, position: u32, token: TokenId) -> Result<(), ModelError> {
        self.tokens.write(slot, usize::from(self.class), position, token)?;
        let Some(place) = self.places.get_mut(&slot) else { return Ok(()) };
        let same = self.trace.answers[place.answer].truth(position) == Some(token);
        if same && position == place.agrees {
            place.agrees += 1;
        } else if !same {
            self.shorten(slot, position);
        }
        Ok(())
    }

    /// The answer that a sequence is at when it is drawn for after `position`: of several the one with the
    /// longest prompt.
    fn find(&self, slot: Slot, position: u32) -> Result<Option<Place>, ModelError> {
        let known = position as usize + 1;
        let mut best: Option<(usize, usize)> = None;
        for (answer, a) in self.trace.answers.iter().enumerate() {
            let length = a.prompt.len();
            if length > known || length + a.target.len() < known || best.is_some_and(|(l, _)| l >= length) {
                continue;
            }
            let mut agrees = true;
            for at in 0..=position {
                if Some(self.tokens.read(slot, usize::from(self.class), at)?) != a.truth(at) {
                    agrees = false;
                    break;
                }
            }
            if agrees {
                best = Some((length, answer));
            }
        }
        Ok(best.map(|(_, answer)| Place { answer, agrees: position + 1 }))
    }

    /// What is said after the row at `position`, which is written.
    fn word(&mut self, slot: Slot, position: u32) -> Result<Option<TokenId>, ModelError> {
        let place = match self.places.get(&slot) {
            Some(place) => *place,
            None => match self.find(slot, position)? {
                Some(place) => *self.places.entry(slot).or_insert(place),
                None => return Ok(None),
            },
        };
        let agrees = place.agrees > position;
        Ok(self.trace.answers[place.answer].word(self.side, position + 1, agrees))
    }
}

impl<M: Model> Model for Replay<M> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        if step.rows.iter().any(|r| !matches!(r.token, RowToken::Known(_)) || r.parent != Parent::Previous) {
            return Err(ModelError::Unsupported { what: "tree or device-side rows of a replay" });
        }
        self.change(step)?;
        self.words.clear();
        for row in &step.rows {
            let RowToken::Known(token) = row.token else { continue };
            self.write(row.slot, row.position, token)?;
            if row.output == Output::Pick {
                let word = self.word(row.slot, row.position)?;
                self.words.push(word);
            }
        }
        self.inner.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        let mut picks = self.inner.collect(ticket, draws)?;
        for (pick, word) in picks.0.iter_mut().zip(&self.words) {
            if let Some(word) = word {
                pick.drawn.token = *word;
                pick.drawn.q = None;
            }
        }
        Ok(picks)
    }
}
