//! Whether a target sequence may run now: its deadline, its reader, and the drafts that it waits for.

use std::time::Duration;

use request::{Finish, Strategy};

use super::TargetLane;
use crate::drafting::Drafting;
use crate::{Drafter, Room};

/// What to do with a target lane in the step being planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Plan,
    /// Leave it out; look again at this time, or when something arrives.
    Hold {
        until: Option<Duration>,
    },
    End(Finish),
}

impl TargetLane {
    /// Decides whether it may run now. `decoding`: its prompt is computed, so drafts would help.
    pub(crate) fn readiness(
        &mut self,
        now: Duration,
        decoding: bool,
        slow_client: Duration,
        drafting: &mut Drafting,
    ) -> Readiness {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Readiness::End(Finish::Deadline);
        }
        let sooner = |until: Duration| Some(self.deadline.map_or(until, |deadline| deadline.min(until)));
        match self.outlet.room() {
            Room::Gone => return Readiness::End(Finish::Cancelled),
            Room::Full => {
                let until = *self.blocked.get_or_insert(now) + slow_client;
                return if now >= until {
                    Readiness::End(Finish::SlowClient)
                } else {
                    Readiness::Hold { until: sooner(until) }
                };
            }
            Room::Free => self.blocked = None,
        }
        let strategy = self.request.speculation.strategy;
        let (k, deadline) = match strategy.waits() {
            Some(waits) => waits,
            None if strategy == Strategy::Auto && self.awaited > 0 => (self.awaited, self.patience(drafting)),
            None => return Readiness::Plan,
        };
        let output = self.usage.completion_tokens;
        let room = self.request.limits.max_tokens.saturating_sub(output + 1);
        let wanted = self.max_draft(k).min(room as usize);
        let waits = self.drafter != Drafter::Gone && !self.late && decoding && output > 0;
        let pending = self.tail.pending();
        // The drafter goes no further than a token after which the answer would end.
        let complete = pending.len() >= wanted
            || pending.last().is_some_and(|t| self.request.limits.stop_ids.contains(t));
        if !waits || complete {
            if let (Some(since), true) = (self.parked.take(), self.awaited > 0 && complete) {
                drafting.wait.record(pending.len() as u32, now.saturating_sub(since));
            }
            return Readiness::Plan;
        }
        let until = *self.parked.get_or_insert(now) + deadline;
        if now >= until {
            (self.parked, self.late) = (None, true);
            return Readiness::Plan;
        }
        Readiness::Hold { until: sooner(until) }
    }

    /// How long a drafter on the same device may take: some times what it is expected to.
    fn patience(&self, drafting: &Drafting) -> Duration {
        /// Also for drafters that have to compute what was committed first.
        const LEAST: Duration = Duration::from_millis(100);
        let step = drafting.cost.seconds(1).unwrap_or_default();
        LEAST + Duration::from_secs_f64(4.0 * drafting.wait.expected(self.awaited, step))
    }
}
