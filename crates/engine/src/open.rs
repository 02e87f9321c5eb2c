//! Sequences come in.

use std::time::Duration;

use kvcache::PrefixRoot;
use request::{Del, Finish, InvalidField, Request, Strategy, TokenId};
use scheduler::{NewSequence, Refused};
use speculation::Session;

use crate::draft_lane::DraftLane;
use crate::steering::Steering;
use crate::step::Lane;
use crate::target_lane::TargetLane;
use crate::{DraftOpen, Engine, Layered, Model, TargetOpen};

/// Why the engine did not take a sequence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Scheduler(#[from] Refused),
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    #[error("the wait is predicted to be {predicted:.1?} and at most {most:.1?} are accepted")]
    Wait { predicted: Duration, most: Duration },
}

impl<M: Model> Engine<M> {
    pub(crate) fn open_target(&mut self, now: Duration, open: TargetOpen) {
        let id = open.sequence;
        self.admit_target(now, open);
        if !self.lanes.contains_key(&id) {
            // Pages that were held for it are of no use any more.
            self.scheduler.release_handed(id);
        }
    }

    fn admit_target(&mut self, now: Duration, open: TargetOpen) {
        let TargetOpen { sequence, request, constraint, deadline, outlet, admitted } = open;
        let known = request.known();
        let vocab_size = self.spec().vocab_size;
        let mut checked = request.validate().and_then(|()| in_vocabulary("prompt", &known, vocab_size));
        if checked.is_ok() {
            let biased: Vec<TokenId> = request.adjust.logit_bias.iter().map(|(id, _)| *id).collect();
            checked = in_vocabulary("logit_bias", &biased, vocab_size);
        }
        if checked.is_ok()
            && let Some(wanted) = &request.constraint
            && constraint.is_none()
        {
            checked =
                Err(InvalidField::not_built(wanted.field(), "this node has no compiler for constraints"));
        }
        let checked = checked.and_then(|()| layers_there(&request, self.spec().layered));
        if let Err(invalid) = checked {
            drop(outlet);
            return admitted(Err(invalid.into()));
        }
        let finished = request.finished();
        // Before anything is built: under a flood most are refused here.
        if finished.is_none()
            && let Err(refusal) = self.bounded_wait(now, deadline, request.priority)
        {
            drop(outlet);
            return admitted(Err(refusal));
        }
        let prompt_len = request.prompt.len() as u32;
        let longest = prompt_len.saturating_add(request.limits.max_tokens);
        let (priority, root) = (request.priority, PrefixRoot::salted(&request.cache_salt));
        let longest_tail = request::Speculation::MAX_DRAFT as usize;
        let lane = match TargetLane::new(request, constraint, deadline, outlet, vocab_size, longest_tail) {
            Ok(lane) => lane,
            Err((invalid, outlet)) => {
                drop(outlet);
                return admitted(Err(invalid.into()));
            }
        };
        if let Some(finish) = finished.or(lane.ended().then_some(Finish::Stop)) {
            // A replay of an answer that was complete: nothing is left to generate.
            lane.end(finish);
            return admitted(Ok(()));
        }
        let new = NewSequence {
            id: sequence,
            tokens: known,
            limit: longest,
            longest,
            priority,
            root,
            settled: u32::MAX,
        };
        let added = self.scheduler.add(new).map_err(Refusal::from);
        if added.is_ok() {
            self.lanes.insert(sequence, Lane::Target(Box::new(lane)));
        }
        admitted(added);
    }

    /// Refuses what would wait too long, so that the caller can go elsewhere at once.
    fn bounded_wait(&self, now: Duration, deadline: Option<Duration>, priority: i32) -> Result<(), Refusal> {
        if self.scheduler.may_preempt(priority) {
            // It takes the slot of a lower one in the next step.
            return Ok(());
        }
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_sub(now));
        let most = self.settings.max_wait.min(left);
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting_before(priority));
        let predicted = self.turnover.wait(now, self.spec().slots, running, waiting);
        if predicted > most { Err(Refusal::Wait { predicted, most }) } else { Ok(()) }
    }

    pub(crate) fn open_draft(&mut self, open: DraftOpen) {
        let DraftOpen { sequence, prompt, committed, longest, sampling, adjust, constraint, rule, .. } = open;
        let known = [prompt.as_slice(), committed.as_slice()].concat();
        let read = open.retrieved.as_ref().unwrap_or(&prompt);
        let skipped = prompt.len().saturating_sub(read.len()) as u32;
        let session = Session::retrieved(&known, skipped, open.window);
        let known = [read.as_slice(), committed.as_slice()].concat();
        let checked = if read.len() > prompt.len() || (read.is_empty() && committed.is_empty()) {
            Err(InvalidField::new("retrieved", "is longer than the prompt, or empty"))
        } else if self.may_draft() {
            in_vocabulary("prompt", &known, self.spec().vocab_size)
        } else {
            Err(InvalidField::not_built("model", "drafting with window head classes is not built yet"))
        };
        let steering = checked.and_then(|()| {
            let limits = open.limits.clone();
            Steering::new(&adjust, constraint, limits.clone(), &prompt, &committed)
                // Not the target's constraint, then; drafts come without.
                .or_else(|_| Steering::new(&adjust, None, limits, &prompt, &committed))
        });
        let added = steering.map_err(Refusal::from).and_then(|steering| {
            let new = NewSequence {
                id: sequence,
                limit: session.own(session.limit()),
                longest: session.own(longest),
                priority: 0,
                root: PrefixRoot::salted(&open.cache_salt),
                settled: known.len() as u32,
                tokens: known,
            };
            self.scheduler.add(new)?;
            Ok(steering)
        });
        match added {
            Ok(steering) => {
                let lane = DraftLane {
                    session,
                    outlet: open.outlet,
                    stop_ids: open.limits.stop_ids,
                    longest,
                    sampling,
                    rule,
                    told: open.retrieved.is_some(),
                    steering,
                    laws: Default::default(),
                };
                self.lanes.insert(sequence, Lane::Draft(Box::new(lane)));
                (open.admitted)(Ok(()));
            }
            Err(refusal) => {
                // What the outlet holds is free before the refusal is told.
                drop(open.outlet);
                (open.admitted)(Err(refusal));
            }
        }
    }
}

/// A model drafts by itself only after layers that it has.
fn layers_there(request: &Request, layered: Option<Layered>) -> Result<(), InvalidField> {
    let windows = layered.is_some_and(|layered| layered.windows);
    if matches!(request.speculation.strategy, Strategy::Window(_)) && !windows {
        let why = "window: the back end of this rank does not draft over a window of its keys";
        return Err(InvalidField::not_built("speculation.strategy", why));
    }
    let Strategy::Del(Del { fixed }) = request.speculation.strategy else { return Ok(()) };
    match (layered, fixed) {
        (None, _) => {
            let why = "del: the back end of this rank does not draft with its own first layers";
            Err(InvalidField::not_built("speculation.strategy", why))
        }
        (Some(Layered { layers, .. }), Some((exit, _))) if exit >= layers => Err(InvalidField::new(
            "speculation.del.exit",
            format!("{exit} is not below the model's {layers} layers"),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn in_vocabulary(
    field: &'static str,
    tokens: &[TokenId],
    vocab_size: u32,
) -> Result<(), InvalidField> {
    match tokens.iter().find(|t| t.0 >= vocab_size) {
        Some(token) => {
            Err(InvalidField::new(field, format!("token {token} is outside the vocabulary of {vocab_size}")))
        }
        None => Ok(()),
    }
}
