//! An answer, from the first placement to its end: refused, it asks the next worker; broken, it goes
//! on at another one where the text stopped.
//!
//! Both APIs read the same [`Answer`]. It is pulled, not pushed: no task, no queue. A client that
//! stops reading stops the pulls, and HTTP/2's window carries that to the worker, which bounds its own
//! outbox; a client that leaves drops the answer, which resets the worker's stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cluster::NodeId;
use proto::Answer as Said;
use request::{Finish, Request, Speculation, SpeculationStats, Strategy, TokenId, Usage};
use tokio::time::{Instant, sleep, timeout_at};

use crate::admission::Permit;
use crate::failure::{self, Failure, Reason};
use crate::models::Model;
use crate::random;
use crate::router::{Counted, Need, Router};
use crate::text::Pieces;

mod attempt;
mod event;
mod pump;

use attempt::{Attempt, Broken};
pub(crate) use event::{Ended, Event, TokensOut};
pub(crate) use pump::Pump;

/// How often one answer is admitted somewhere: more would let one request that kills workers kill many.
const MOST_ATTEMPTS: u32 = 3;

/// Pauses while a broken answer has nowhere to go; each doubles the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long an answer waits for others, its deadline aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From sending a request to the worker's Accepted.
    pub(crate) accept: Duration,
    /// From losing a worker to finding a place for the rest.
    pub(crate) replay: Duration,
}

/// A request with everything resolved that decides its text.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) model: Arc<Model>,
    pub(crate) request: Request,
    pub(crate) deadline: Instant,
}

/// One choice on its way. Dropping it cancels the worker's part.
#[derive(Debug)]
pub(crate) struct Answer {
    router: Arc<Router>,
    patience: Patience,
    model: Arc<Model>,
    /// As the next worker would get it: `committed` holds all that was delivered.
    request: Request,
    deadline: Instant,
    /// Taken when the answer ends.
    pieces: Option<Pieces>,
    attempt: Option<Attempt>,
    admitted: u32,
    tried: Vec<NodeId>,
    fingerprint: String,
    drafter: Option<Counted>,
    /// What one message of the worker gave, at most three events.
    ready: VecDeque<Event>,
    over: bool,
    _permit: Permit,
}

impl Answer {
    /// Places the request and waits for its first token, so that whatever is wrong until then is the
    /// whole answer.
    pub(crate) async fn begin(
        router: Arc<Router>,
        patience: Patience,
        prepared: Prepared,
        permit: Permit,
    ) -> Result<Self, Failure> {
        let Prepared { model, request, deadline } = prepared;
        let pieces = Some(Pieces::after(&model.text, &request.committed));
        let mut answer = Self {
            router,
            patience,
            model,
            request,
            deadline,
            pieces,
            attempt: None,
            admitted: 0,
            tried: Vec::new(),
            fingerprint: String::new(),
            drafter: None,
            ready: VecDeque::new(),
            over: false,
            _permit: permit,
        };
        answer.place(deadline).await?;
        while answer.ready.is_empty() {
            answer.advance().await?;
        }
        Ok(answer)
    }

    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(crate) fn seed(&self) -> u64 {
        self.request.sampling.seed
    }

    /// The next event; `None` after `Ended` or a failure.
    pub(crate) async fn next(&mut self) -> Option<Result<Event, Failure>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            if let Err(failure) = self.advance().await {
                self.close();
                return Some(Err(failure));
            }
        }
    }

    /// One message of the worker, or one step towards having a worker.
    async fn advance(&mut self) -> Result<(), Failure> {
        let Some(attempt) = &mut self.attempt else { return self.place_again().await };
        match timeout_at(self.deadline, attempt.next()).await {
            Ok(Ok(Said::Accepted { .. })) => self.lose("sent Accepted twice"),
            Ok(Ok(Said::Tokens { index, ids, drafted })) => {
                self.deliver(index, ids, drafted).or_else(|why| self.lose(&why))
            }
            Ok(Ok(Said::Finish { finish, usage, speculation })) => self.finish(finish, usage, speculation),
            Ok(Err(Broken::Lost(why))) => self.lose(&why),
            Ok(Err(Broken::Refused(failure) | Broken::Final(failure))) => Err(failure),
            Err(_) => Err(self.too_late()),
        }
    }

    /// Asks candidates until one admits the request or the time is up. The error is the most telling
    /// refusal, and the deadline's once that has passed.
    async fn place(&mut self, by: Instant) -> Result<(), Failure> {
        let mut refused: Option<Failure> = None;
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
                tried: &self.tried,
                prefer: Some(self.fingerprint.as_str()).filter(|f| !f.is_empty()),
            };
            let placed = match self.router.place(&need, random::draw()?) {
                Ok(placed) => placed,
                Err(nowhere) => return Err(refused.unwrap_or(nowhere)),
            };
            let worker = placed.worker.id.clone();
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
                    failure::new(Reason::NoWorker, format!("worker {worker} {why}"))
                }
                Err(_) => failure::new(
                    Reason::NoWorker,
                    format!(
                        "worker {worker} did not answer within {:?}",
                        until.saturating_duration_since(asked)
                    ),
                ),
            };
            tracing::debug!(request = %self.request.id, %worker, reason = %failure.reason, why = %failure, "refused");
            self.tried.push(worker);
            // A full worker says when to come back; one that is not there does not.
            if refused.as_ref().is_none_or(|r| r.reason != Reason::Overloaded) {
                refused = Some(failure);
            }
        }
    }

    fn admit(&mut self, attempt: Attempt) {
        self.admitted += 1;
        let fingerprint = attempt.fingerprint();
        if self.fingerprint != fingerprint {
            // Without text there is nothing to cross from.
            if self.admitted > 1 && !self.request.committed.is_empty() {
                tracing::warn!(
                    request = %self.request.id, from = %self.fingerprint, to = fingerprint,
                    "answer crosses to other numerics"
                );
                self.ready.push_back(Event::Crossed { fingerprint: fingerprint.to_owned() });
            }
            fingerprint.clone_into(&mut self.fingerprint);
        }
        self.drafter = attempt.drafter().map(|id| self.router.count_drafter(id));
        self.attempt = Some(attempt);
    }

    /// Finds a place for the rest of a broken answer: another worker, else the same one if it is back.
    async fn place_again(&mut self) -> Result<(), Failure> {
        let until = self.deadline.min(Instant::now() + self.patience.replay);
        let mut pause = FIRST_PAUSE;
        loop {
            let failure = match self.place(until).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let passing = matches!(failure.reason, Reason::NoWorker | Reason::Overloaded | Reason::Draining);
            if !passing || Instant::now() + pause >= until {
                return Err(failure);
            }
            self.tried.clear();
            // Jitter: the answers of a lost worker must not come back in step.
            sleep(pause / 2 + (pause / 2).mul_f64(random::share()?)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes what the worker committed. The error says what is wrong with it.
    fn deliver(&mut self, index: u32, ids: Vec<TokenId>, drafted: Vec<bool>) -> Result<(), String> {
        let have = self.request.committed.len();
        if index as usize != have {
            return Err(format!("sent output {index} where {have} was due"));
        }
        if have + ids.len() > self.request.limits.max_tokens as usize {
            return Err(format!("sent more than {} tokens", self.request.limits.max_tokens));
        }
        if let Some(id) = ids.iter().find(|id| id.0 >= self.model.text.vocab_len()) {
            return Err(format!("sent token {id}, beyond the vocabulary"));
        }
        let stop_ids = &self.request.limits.stop_ids;
        let stops = |id: &TokenId| stop_ids.contains(id);
        if self.request.committed.last().is_some_and(stops)
            || ids.split_last().is_some_and(|(_, ids)| ids.iter().any(stops))
        {
            return Err("sent tokens after a stop token".into());
        }
        let mut pieces = Vec::new();
        if let Some(text) = &mut self.pieces {
            for (id, drafted) in ids.iter().zip(&drafted) {
                text.push(*id, *drafted, &mut pieces);
            }
        }
        self.request.committed.extend(&ids);
        self.ready.push_back(Event::Tokens(TokensOut { index, ids, drafted, pieces }));
        Ok(())
    }

    fn finish(&mut self, finish: Finish, usage: Usage, speculation: SpeculationStats) -> Result<(), Failure> {
        match finish {
            Finish::Stop | Finish::Length => {
                let (due, counted) = (self.request.finished(), self.usage());
                if due != Some(finish) || usage != counted {
                    return self.lose(&format!(
                        "ended with {finish:?} and {usage:?} where {due:?} and {counted:?} were due"
                    ));
                }
                self.end(finish, speculation);
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

    fn end(&mut self, finish: Finish, speculation: SpeculationStats) {
        let usage = self.usage();
        let strategy = strategy(&self.request.speculation, &speculation);
        if let Some(rest) = self.pieces.take().and_then(Pieces::finish) {
            let index = self.request.committed.len().try_into().unwrap_or(u32::MAX);
            self.ready.push_back(Event::Tokens(TokensOut {
                index,
                pieces: vec![rest],
                ..TokensOut::default()
            }));
        }
        tracing::info!(
            request = %self.request.id, model = self.model.name, prompt = usage.prompt_tokens,
            output = usage.completion_tokens, ?finish, admitted = self.admitted, strategy, "answered"
        );
        self.ready.push_back(Event::Ended(Ended {
            finish,
            usage,
            speculation,
            seed: self.request.sampling.seed,
            strategy,
            most_drafts: most_drafts(&self.request.speculation),
        }));
        self.close();
    }

    /// The worker broke. What it delivered stands; the rest is placed again, unless nothing is missing
    /// but the word that it ended.
    fn lose(&mut self, why: &str) -> Result<(), Failure> {
        let Some(attempt) = self.attempt.take() else { return Ok(()) };
        self.drafter = None;
        let worker = attempt.worker().clone();
        let (id, delivered) = (&self.request.id, self.request.committed.len());
        tracing::warn!(request = %id, %worker, delivered, why, "worker lost");
        if let Some(finish) = self.request.finished() {
            self.end(finish, SpeculationStats::default());
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
        self.request.attempt = self.request.attempt.saturating_add(1);
        self.tried = vec![worker];
        Ok(())
    }

    /// Of what was delivered, whatever the worker says.
    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.request.prompt.len().try_into().unwrap_or(u32::MAX),
            completion_tokens: self.request.committed.len().try_into().unwrap_or(u32::MAX),
        }
    }

    fn close(&mut self) {
        self.over = true;
        self.attempt = None;
        self.drafter = None;
    }

    fn too_late(&self) -> Failure {
        failure::new(
            Reason::Deadline,
            format!(
                "the deadline passed after {} tokens; ask for fewer tokens or allow more time",
                self.request.committed.len()
            ),
        )
    }
}

fn positions(request: &Request) -> u32 {
    let prompt = request.prompt.len().try_into().unwrap_or(u32::MAX);
    request.limits.max_tokens.saturating_add(prompt)
}

/// What took part: a drafter that was named, or even granted a session, may have had nothing verified.
fn strategy(asked: &Speculation, did: &SpeculationStats) -> &'static str {
    match asked.strategy {
        _ if did.drafts == 0 => "none",
        Strategy::Lockstep { .. } => "lockstep",
        _ => "draft",
    }
}

fn most_drafts(speculation: &Speculation) -> u32 {
    match speculation.strategy {
        Strategy::None => 0,
        Strategy::Lockstep { k, .. } => speculation.max_draft.map_or(k, |m| m.min(k)),
        _ => speculation.max_draft.unwrap_or(Speculation::MAX_DRAFT),
    }
}
