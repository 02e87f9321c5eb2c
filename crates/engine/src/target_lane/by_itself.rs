//! Drafts of the model's own first layers: how many layers, how many drafts, and how right they were.

use request::{Del, Source, Strategy, TokenId};
use scheduler::Slot;
use speculation::{Exits, Round, Said, StepCost, Tree};

use super::{Judged, TargetLane};
use crate::{Layered, SaidBy, SelfDraft};

/// What a sequence knows of its model's exits.
#[derive(Debug, Default)]
pub(super) struct ByItself {
    exits: Option<Exits>,
    /// Steps that drafted so.
    rounds: u32,
    watched: bool,
    /// The last round's exit, and how sure it was of each draft.
    drafted: Option<(u32, Vec<f64>)>,
}

/// Rounds at the beginning in which all exits are heard, and of later ones each how many-th: hearing them passes their
/// states through the head. In between the exit in use is known by what became of its drafts.
const FIRST: u32 = 4;
const EACH: u32 = 8;

impl TargetLane {
    /// What to ask of the model in the step being planned. `most`: drafts that the rank allows; `cost`: what its steps take.
    pub(crate) fn self_draft(
        &mut self,
        slot: Slot,
        known: &[TokenId],
        layered: Layered,
        (most, cost): (u32, &StepCost),
    ) -> Option<SelfDraft> {
        let Strategy::Del(Del { fixed }) = self.request.speculation.strategy else { return None };
        let (token, position) = (*known.last()?, known.len() as u32 - 1);
        let room = self.request.limits.max_tokens.saturating_sub(self.usage.completion_tokens + 1);
        let most = (self.max_draft(most) as u32).min(room).min(Del::MOST);
        if !self.drafts_wanted() {
            return None;
        }
        let ByItself { exits, rounds, watched, drafted } = &mut self.by_itself;
        let Round { exit, drafts, stop_below } = match fixed {
            Some((exit, drafts)) => Round { exit, drafts, stop_below: None },
            None => {
                let Layered { layers, head, draft } = layered;
                let exits = exits.get_or_insert_with(|| Exits::new(layers, head, draft));
                // Where nobody measured, more rows are free: a step reads its weights once.
                let rows = |n| cost.seconds(n).zip(cost.seconds(1)).map_or(1.0, |(n, one)| n / one);
                exits.plan(rows)
            }
        };
        let watch = fixed.is_none() && (*rounds < FIRST || rounds.is_multiple_of(EACH));
        *rounds += 1;
        let most = most.min(drafts);
        (*watched, *drafted) = (watch, fixed.is_none().then(|| (exit, Vec::new())));
        (watch || most > 0).then(|| SelfDraft {
            slot,
            token,
            position,
            exit,
            most,
            stop_below,
            stop_ids: self.request.limits.stop_ids.clone(),
            sampling: self.request.sampling,
            watch,
        })
    }

    /// The model drafted these.
    pub(crate) fn self_drafted(&mut self, drafts: Vec<(TokenId, f64)>) {
        self.source = Source::Del;
        let (ids, sure): (Vec<TokenId>, Vec<f64>) = drafts.into_iter().unzip();
        if let Some((_, known)) = &mut self.by_itself.drafted {
            *known = sure;
        }
        let allowed = self.steering.allowed(&ids);
        self.proposed = Tree::chain(ids);
        self.proposed.truncate(allowed);
    }

    /// Whether the layers are to be asked what they would have said in the step that was judged.
    pub(crate) fn watches(&mut self) -> bool {
        std::mem::take(&mut self.by_itself.watched)
    }

    /// A step was judged: what layers said at the places of its tokens; `by` is empty where they were not asked.
    /// `drafts`: that the step had.
    pub(crate) fn heard(&mut self, by: &[SaidBy], judged: &Judged, drafts: u32) {
        let drafted = self.by_itself.drafted.take();
        let Some(exits) = &mut self.by_itself.exits else { return };
        let mut layers = Vec::new();
        let mut say = |exit: u32, said: Vec<Said>| {
            let at = exit as usize;
            layers.resize(at.max(layers.len()), Vec::new());
            layers[at.saturating_sub(1)] = said;
        };
        for SaidBy { exit, said } in by {
            let judged = said.iter().zip(&judged.tokens);
            let judged =
                judged.map(|((id, confidence), token)| Said { right: id == token, confidence: *confidence });
            say(*exit, judged.collect());
        }
        match drafted {
            Some((exit, sure)) if by.is_empty() => {
                // Behind the first that was wrong nothing is known.
                let (right, known) = (judged.accepted as usize, drafts.min(judged.accepted + 1) as usize);
                let known = sure.into_iter().take(known).enumerate();
                say(exit, known.map(|(i, confidence)| Said { right: i < right, confidence }).collect());
            }
            _ => {}
        }
        if !layers.is_empty() {
            exits.record(&layers);
        }
    }
}
