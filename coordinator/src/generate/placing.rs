//! Who answers: the first worker that admits a choice, and after a loss the next one.

use std::time::Duration;

use cluster::{PrefixName, turn};
use kvcache::{PrefixChain, PrefixRoot};
use request::Request;
use telemetry::Label;
use tokio::time::{Instant, sleep, timeout_at};

use super::Event;
use super::attempt::{Attempt, Broken};
use super::choice::Choice;
use crate::failure::{self, Failure, Reason};
use crate::random;
use crate::router::Need;

/// Pauses while a broken answer has nowhere to go; each doubles the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Choice {
    /// Asks candidates until one admits the request or the time is up. The error is the most telling
    /// refusal, and the deadline's once that has passed.
    pub(super) async fn place(&mut self, by: Instant) -> Result<(), Failure> {
        let mut refused: Option<Failure> = None;
        let prefix = prefix(&self.request);
        loop {
            // Refusals near the deadline are mostly its own doing.
            if Instant::now() >= self.deadline {
                return Err(self.too_late());
            }
            if let Some(refused) = refused.take_if(|_| Instant::now() >= by) {
                return Err(refused);
            }
            let need = Need {
                model: &self.model.name,
                vocab_hash: self.model.text.vocab_hash(),
                positions: positions(&self.request),
                tokens: tokens(&self.request),
                prefix: &prefix,
                tried: &self.tried,
                prefer: Some(self.fingerprint.as_str()).filter(|f| !f.is_empty()),
                // Who lost its worker in mid-answer asks them all.
                new: (self.admitted == 0).then_some(self.request.priority),
            };
            // Nothing that only this coordinator knows: another one would give the same answer.
            let tries = self.admitted.wrapping_add(self.tried.len() as u32);
            // The prompt takes part: a client that calls all its requests alike is not sent to the same workers.
            let prompt = self.request.prompt.iter().fold(self.index(), |n, id| n.rotate_left(5) ^ id.0);
            let draw = turn(self.request.id.as_str(), prompt, tries);
            let placed = telemetry::span!("route").in_scope(|| self.router.place(&need, draw));
            let placed = match placed {
                Ok(placed) => placed,
                Err(nowhere) => return Err(most_telling(refused, nowhere)),
            };
            let worker = placed.worker.clone();
            let asked = Instant::now();
            let until = by.min(self.deadline).min(asked + self.patience.accept);
            let failure = match timeout_at(until, Attempt::open(placed, &self.request, self.deadline)).await {
                Ok(Ok(attempt)) => {
                    self.admit(attempt);
                    return Ok(());
                }
                Ok(Err(Broken::Final(failure))) => return Err(failure),
                Ok(Err(Broken::Refused(failure))) => failure,
                Ok(Err(Broken::Lost(why))) => {
                    failure::new(Reason::NoWorker, format!("worker {} {why}", worker.id))
                }
                Err(_) => failure::new(
                    Reason::NoWorker,
                    format!(
                        "worker {} did not answer within {:?}",
                        worker.id,
                        until.saturating_duration_since(asked)
                    ),
                ),
            };
            tracing::debug!(
                request = %self.request.id, worker = %worker.id, reason = %failure.reason, why = %failure,
                "refused"
            );
            self.router.refused(&worker, &failure, self.request.priority);
            self.tried.push(worker.id.clone());
            refused = Some(most_telling(refused, failure));
        }
    }

    fn admit(&mut self, attempt: Attempt) {
        self.admitted += 1;
        self.router.admitted(attempt.worker());
        if self.admitted > 1 {
            telemetry::meters().model_migration.add(1, &[Label::model(&self.model.name)]);
        }
        attempt.fingerprint().clone_into(&mut self.fingerprint);
        if let Some(told) = self.told.take_if(|told| *told != self.fingerprint) {
            tracing::warn!(
                request = %self.request.id, choice = self.index(), from = told, to = self.fingerprint,
                "answer crosses to other numerics"
            );
            self.ready.push_back(Event::Crossed { fingerprint: self.fingerprint.clone() });
            self.told = Some(self.fingerprint.clone());
        }
        self.drafter = attempt.drafter().map(|id| self.router.count_drafter(id));
        self.attempt = Some(attempt);
    }

    /// Finds a place for the rest of a broken answer: another worker, else the same one if it is back.
    pub(super) async fn place_again(&mut self) -> Result<(), Failure> {
        let until = self.deadline.min(Instant::now() + self.patience.replay);
        let mut pause = FIRST_PAUSE;
        loop {
            let failure = match self.place(until).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            // An exact worker that is gone may come back where an approximate one is all that is left.
            let passing = matches!(
                failure.reason,
                Reason::NoWorker | Reason::Overloaded | Reason::Draining | Reason::ApproximateOnly
            );
            if !passing || Instant::now() + pause >= until {
                return Err(failure);
            }
            self.tried.clear();
            // Jitter: the answers of a lost worker must not come back in step.
            sleep(pause / 2 + (pause / 2).mul_f64(random::share()?)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A full worker says when to come back, the one that says it soonest is right; one that is not there
/// says nothing.
fn most_telling(before: Option<Failure>, now: Failure) -> Failure {
    match before {
        Some(before) if before.reason == Reason::Overloaded => {
            let sooner = now.reason == Reason::Overloaded && now.retry_after < before.retry_after;
            if sooner { now } else { before }
        }
        // After a refusal, that nobody else is left says less.
        Some(before) if now.reason == Reason::NoWorker => before,
        _ => now,
    }
}

/// Names of the pages that a worker's cache could serve.
fn prefix(request: &Request) -> Vec<PrefixName> {
    let known = request.known();
    // The last token is always computed.
    let most = known.len().saturating_sub(1);
    let mut chain = PrefixChain::new(PrefixRoot::salted(&request.cache_salt));
    chain.reach(&known[..most]).iter().map(|hash| PrefixName(hash.short())).collect()
}

fn tokens(request: &Request) -> u32 {
    (request.prompt.len() + request.committed.len()).try_into().unwrap_or(u32::MAX)
}

fn positions(request: &Request) -> u32 {
    let prompt = request.prompt.len().try_into().unwrap_or(u32::MAX);
    request.limits.max_tokens.saturating_add(prompt)
}
