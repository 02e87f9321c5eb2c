//! How a choice ends, and what it cost.

use request::{Finish, Source, Speculation, SpeculationStats, Strategy, Usage};

use super::choice::Choice;
use super::figures::Figures;
use super::placing::LONGEST_PAUSE;
use super::{Ended, Event, StopReason, TokensOut};
use crate::failure::{self, Failure, Reason};
use crate::text::Stopped;

/// How often one choice is admitted somewhere: more would let one request that kills workers kill many.
const MOST_ATTEMPTS: u32 = 3;

impl Choice {
    /// The worker says that it is over.
    pub(super) fn finish(
        &mut self,
        finish: Finish,
        usage: Usage,
        speculation: SpeculationStats,
    ) -> Result<(), Failure> {
        match finish {
            Finish::Stop | Finish::Length => {
                let due = self.finished().or_else(|| self.ended_by_constraint());
                let counted = self.counted();
                let said = (usage.prompt_tokens, usage.completion_tokens);
                if due != Some(finish) || said != (counted.prompt_tokens, counted.completion_tokens) {
                    return self.lose(&format!(
                        "ended with {finish:?} and {usage:?} where {due:?} and {counted:?} were due"
                    ));
                }
                self.so_far = Figures { usage, speculation };
                self.end(finish);
                Ok(())
            }
            // Not by us: we would have dropped the stream.
            Finish::Cancelled => self.lose("cancelled the request"),
            Finish::Deadline => Err(self.too_late()),
            Finish::SlowClient => Err(failure::new(
                Reason::SlowClient,
                "the answer was read too slowly and was given up; read faster or ask for fewer tokens",
            )),
            // Not placed again: equal fingerprints are equal arithmetic, so it would fail there too.
            Finish::Failed => Err(failure::new(
                Reason::Internal,
                format!(
                    "the model failed after {} tokens; the text so far is right",
                    self.request.committed.len()
                ),
            )),
        }
    }

    /// All of it was delivered.
    pub(super) fn end(&mut self, finish: Finish) {
        self.figures.add(std::mem::take(&mut self.so_far), self.admitted <= 1);
        let usage = self.counted();
        let speculation = std::mem::take(&mut self.figures.speculation);
        let strategy = strategy(&self.request.speculation, &speculation);
        let pieces = self.pieces.clone().finish();
        if !pieces.is_empty() {
            let index = self.request.committed.len().try_into().unwrap_or(u32::MAX);
            self.ready.push_back(Event::Tokens(TokensOut { index, pieces, ..TokensOut::default() }));
        }
        tracing::info!(
            request = %self.request.id, choice = self.index(), model = self.model.name,
            prompt = usage.prompt_tokens, output = usage.completion_tokens, ?finish,
            admitted = self.admitted, strategy, "answered"
        );
        self.ready.push_back(Event::Ended(Box::new(Ended {
            finish,
            stop_reason: self.stop_reason(),
            usage,
            speculation,
            seed: self.request.sampling.seed,
            strategy,
            most_drafts: most_drafts(&self.request.speculation),
        })));
        self.close();
    }

    /// The worker broke. What it delivered stands; the rest is placed again, unless nothing is missing
    /// but the word that it ended.
    pub(super) fn lose(&mut self, why: &str) -> Result<(), Failure> {
        let Some(attempt) = self.attempt.take() else { return Ok(()) };
        self.drafter = None;
        let worker = attempt.worker().clone();
        let (id, delivered) = (&self.request.id, self.request.committed.len());
        tracing::warn!(request = %id, choice = self.index(), %worker, delivered, why, "worker lost");
        if let Some(finish) = self.finished() {
            self.end(finish);
            return Ok(());
        }
        if self.admitted >= MOST_ATTEMPTS {
            return Err(failure::later(
                Reason::NoWorker,
                format!(
                    "{MOST_ATTEMPTS} workers were lost while answering, the last ({worker}): {why}; the answer is \
                     incomplete after {delivered} tokens"
                ),
                LONGEST_PAUSE,
            ));
        }
        self.figures.add(std::mem::take(&mut self.so_far), self.admitted <= 1);
        self.request.attempt = self.request.attempt.saturating_add(1);
        self.tried = vec![worker];
        Ok(())
    }

    pub(super) fn too_late(&self) -> Failure {
        failure::new(
            Reason::Deadline,
            format!(
                "the deadline passed after {} tokens; ask for fewer tokens or allow more time",
                self.request.committed.len()
            ),
        )
    }

    /// How it ended, when all of it was delivered: the worker's rule, and stop strings.
    pub(super) fn finished(&self) -> Option<Finish> {
        if self.stopped_by_string() { Some(Finish::Stop) } else { self.request.finished() }
    }

    /// A constraint may know no word after an end token of the model that the request does not stop at.
    fn ended_by_constraint(&self) -> Option<Finish> {
        let last = self.request.committed.last()?;
        let over = self.request.constraint.is_some() && self.model.text.stop_ids().contains(last);
        over.then_some(Finish::Stop)
    }

    pub(super) fn stopped_by_string(&self) -> bool {
        matches!(self.pieces.stopped(), Some(Stopped::String(_)))
    }

    fn stop_reason(&self) -> Option<StopReason> {
        match self.pieces.stopped()? {
            Stopped::String(string) => Some(StopReason::Text(string.clone())),
            Stopped::Id(id) => self.named_stop_ids.contains(id).then_some(StopReason::Token(*id)),
        }
    }

    /// Tokens as they were delivered, whatever the worker says.
    fn counted(&self) -> Usage {
        Usage {
            prompt_tokens: self.request.prompt.len().try_into().unwrap_or(u32::MAX),
            completion_tokens: self.request.committed.len().try_into().unwrap_or(u32::MAX),
            ..self.figures.usage
        }
    }
}

/// What took part: a drafter that was named, or even granted a session, may have had nothing verified. Of
/// several sources the one that most accepted tokens came from.
fn strategy(asked: &Speculation, did: &SpeculationStats) -> &'static str {
    match asked.strategy {
        _ if did.drafts == 0 => "none",
        Strategy::Lockstep { .. } => "lockstep",
        Strategy::Rapid(_) => "rapid",
        _ => did.main_source().map_or("draft", Source::name),
    }
}

fn most_drafts(speculation: &Speculation) -> u32 {
    match (speculation.strategy, speculation.strategy.waits()) {
        (Strategy::None, _) => 0,
        (_, Some((k, _))) => speculation.max_draft.map_or(k, |m| m.min(k)),
        _ => speculation.max_draft.unwrap_or(Speculation::MAX_DRAFT),
    }
}
