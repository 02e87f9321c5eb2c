//! Drafts of the model itself over a window of its keys: when, and how many.

use kvcache::HeadClass;
use request::{Del, Rule, Source, Strategy, TokenId, Window};
use scheduler::Slot;
use speculation::{Proposal, Tree};

use super::TargetLane;
use crate::drafting::Drafting;
use crate::{Layered, SelfDraft};

/// Of rounds that do not draft each how many-th tries, where drafts would pay if they were right.
const RARELY: u32 = 32;
/// And with how many drafts.
const FEW: u32 = 2;
/// How right they would have to be.
const HOPE: f64 = 0.95;
/// `auto` does not think of it before the text is so many windows long.
const LONG: u32 = 4;

impl TargetLane {
    /// What to ask of the model in the step being planned, if drafts over a window are wanted. `alone`: nothing else
    /// decodes; `most`: drafts that the rank allows.
    pub(crate) fn over_a_window(
        &mut self,
        slot: Slot,
        known: &[TokenId],
        layered: Layered,
        (alone, most): (bool, u32),
        drafting: &Drafting,
    ) -> Option<SelfDraft> {
        let (token, position) = (*known.last()?, known.len() as u32 - 1);
        let room = self.request.limits.max_tokens.saturating_sub(self.usage.completion_tokens + 1);
        let most = (self.max_draft(most) as u32).min(room).min(Del::MOST);
        if !layered.windows || most == 0 {
            return None;
        }
        let plan = |hope: Option<f64>| {
            let chance = |depth| {
                let believed = self.beliefs.rate_within(&drafting.beliefs, Source::Window, 0, depth);
                hope.unwrap_or(believed)
            };
            drafting.window.plan(most, &drafting.cost, chance)
        };
        let strategy = self.request.speculation.strategy;
        let (window, drafts) = match strategy {
            Strategy::Window(window) => {
                let drafts = match (window.k, drafting.cost.seconds(1)) {
                    (Some(k), _) => k,
                    // Nobody measured what things cost.
                    (None, None) => FEW,
                    (None, Some(_)) => match plan(None) {
                        Some((k, _)) => k,
                        None if self.rounds.is_multiple_of(RARELY) && plan(Some(HOPE)).is_some() => FEW,
                        None => 0,
                    },
                };
                (window, drafts)
            }
            // Under the rejection rule nobody may step in for a drafter.
            Strategy::Auto if alone && self.request.speculation.rule != Rule::Rejection => {
                let window = Window::default();
                if position < LONG * (window.sink + window.recent) || self.source == Source::Prediction {
                    return None;
                }
                (window, plan(None).filter(|(_, speed)| *speed > self.promised).map_or(0, |(k, _)| k))
            }
            _ => return None,
        };
        self.rounds += 1;
        let most = most.min(drafts);
        (most > 0).then(|| SelfDraft {
            slot,
            token,
            position,
            exit: layered.layers,
            window: Some(HeadClass::Window { sink: window.sink, recent: window.recent }),
            most,
            stop: None,
            stop_ids: self.request.limits.stop_ids.clone(),
            sampling: self.request.sampling,
            watch: false,
        })
    }

    /// The model drafted these over a window; they take the place of whatever else was proposed.
    pub(crate) fn drafted_over_a_window(&mut self, drafts: Vec<(TokenId, f64)>) {
        let ids: Vec<TokenId> = drafts.into_iter().map(|(id, _)| id).collect();
        self.shadows.cast(Source::Window, &Proposal::chain(ids.clone(), 0));
        self.source = Source::Window;
        let allowed = self.steering.allowed(&ids);
        self.proposed = Tree::chain(ids);
        self.proposed.truncate(allowed);
    }
}
