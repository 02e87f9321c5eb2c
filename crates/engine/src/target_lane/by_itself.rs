//! Drafts of the model's own first layers: how many layers, how many drafts, and how right they were.

use request::{Del, Source, Strategy, TokenId};
use scheduler::Slot;
use speculation::{Exits, Round, Said, Stop, Tree};

use super::{Judged, TargetLane};
use crate::drafting::Drafting;
use crate::{Layered, SaidBy, SelfDraft};

/// What a sequence knows of its model's exits.
#[derive(Debug, Default)]
pub(super) struct ByItself {
    exits: Option<Exits>,
    /// Its rank knew nothing of them before.
    first: bool,
    /// Steps that drafted so.
    rounds: u32,
    watched: bool,
    /// The last round's exit, and its drafts.
    drafted: Option<(u32, Vec<(TokenId, f64)>)>,
    /// Drafts that are right with a smaller chance are not verified.
    drop: Option<Stop>,
}

/// Rounds at a rank's beginning in which all exits are heard, and of other ones each how many-th: hearing them passes their
/// states through the head. In between the exit in use is known by what became of its drafts.
const FIRST: u32 = 4;
const EACH: u32 = 8;
/// The same while drafting does not pay.
const RARELY: u32 = 32;

impl TargetLane {
    /// What to ask of the model in the step being planned. `most`: drafts that the rank allows.
    pub(crate) fn self_draft(
        &mut self,
        slot: Slot,
        known: &[TokenId],
        (layered, most): (Layered, u32),
        drafting: &Drafting,
    ) -> Option<SelfDraft> {
        let Strategy::Del(Del { fixed }) = self.request.speculation.strategy else { return None };
        let (token, position) = (*known.last()?, known.len() as u32 - 1);
        let room = self.request.limits.max_tokens.saturating_sub(self.usage.completion_tokens + 1);
        let most = (self.max_draft(most) as u32).min(room).min(Del::MOST);
        if !self.drafts_wanted() {
            return None;
        }
        let ByItself { exits, first, rounds, watched, drafted, drop } = &mut self.by_itself;
        let Round { exit, drafts, stop, drop_below } = match fixed {
            Some((exit, drafts)) => Round { exit, drafts, stop: None, drop_below: 0.0 },
            None => {
                let exits = exits.get_or_insert_with(|| {
                    *first = drafting.exits.is_none();
                    let Layered { layers, head, draft, .. } = layered;
                    drafting.exits.clone().unwrap_or_else(|| Exits::new(layers, head, draft))
                });
                let cost = &drafting.cost;
                // Where nobody measured, more rows are free: a step reads its weights once.
                let rows = |n| cost.seconds(n).zip(cost.seconds(1)).map_or(1.0, |(n, one)| n / one);
                exits.plan(rows)
            }
        };
        let each = if drafts == 0 { RARELY } else { EACH };
        let watch = fixed.is_none() && ((*first && *rounds < FIRST) || rounds.is_multiple_of(each));
        *rounds += 1;
        let most = if stop.is_some() { most } else { most.min(drafts) };
        *drop = stop.map(|stop| Stop { below: drop_below, ..stop });
        (*watched, *drafted) = (watch, fixed.is_none().then(|| (exit, Vec::new())));
        (watch || most > 0).then(|| SelfDraft {
            slot,
            token,
            position,
            exit,
            window: None,
            most,
            stop,
            stop_ids: self.request.limits.stop_ids.clone(),
            sampling: self.request.sampling,
            watch,
        })
    }

    /// The model drafted these.
    pub(crate) fn self_drafted(&mut self, drafts: Vec<(TokenId, f64)>) {
        self.source = Source::Del;
        let (drop, mut chance) = (self.by_itself.drop, 1.0);
        let worth = drafts.iter().take_while(|(_, sure)| {
            drop.is_none_or(|drop| {
                chance = drop.chance(chance, *sure);
                chance >= drop.below
            })
        });
        let ids: Vec<TokenId> = worth.map(|(id, _)| *id).collect();
        if let Some((_, all)) = &mut self.by_itself.drafted {
            *all = drafts;
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
    pub(crate) fn heard(&mut self, by: &[SaidBy], judged: &Judged, drafting: &mut Drafting) {
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
            // Behind the first that was wrong nothing is known; also of a draft that was not verified it is.
            Some((exit, drafts)) if by.is_empty() => {
                let judged = drafts.iter().zip(&judged.tokens);
                let judged = judged.map(|((id, sure), token)| Said { right: id == token, confidence: *sure });
                say(exit, judged.collect());
            }
            _ => {}
        }
        if !layers.is_empty() {
            exits.record(&layers);
            // The next sequence begins with what this one knew.
            match &mut drafting.exits {
                Some(rank) => rank.record(&layers),
                new => *new = Some(exits.clone()),
            }
        }
    }
}
