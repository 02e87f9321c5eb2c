use std::collections::VecDeque;
use std::sync::Arc;

use cluster::NodeId;
use proto::Answer as Said;
use request::{Request, TokenId, TokenLogprobs};
use tokio::time::{Instant, timeout_at};

use super::attempt::{Attempt, Broken};
use super::figures::Figures;
use super::{Event, Patience, Prepared, TokensOut};
use crate::failure::Failure;
use crate::models::Model;
use crate::router::{Counted, Router};
use crate::text::Pieces;

/// One choice on its way. Dropping it cancels the worker's part.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) router: Arc<Router>,
    pub(super) patience: Patience,
    pub(super) model: Arc<Model>,
    /// As the next worker would get it: `committed` holds all that was delivered.
    pub(super) request: Request,
    pub(super) named_stop_ids: Vec<TokenId>,
    pub(super) deadline: Instant,
    pub(super) pieces: Pieces,
    pub(super) attempt: Option<Attempt>,
    pub(super) admitted: u32,
    pub(super) tried: Vec<NodeId>,
    pub(super) fingerprint: String,
    /// What the client was told of numerics; `None` as long as nothing was.
    pub(super) told: Option<String>,
    pub(super) drafter: Option<Counted>,
    /// What verifying did and what the cache served, in attempts that are over.
    pub(super) figures: Figures,
    /// The same of the attempt under way, in case that its worker never tells.
    pub(super) so_far: Figures,
    /// What one message of the worker gave, at most three events.
    pub(super) ready: VecDeque<Event>,
    over: bool,
}

impl Choice {
    pub(super) fn new(router: Arc<Router>, patience: Patience, prepared: &Prepared, index: u32) -> Self {
        let mut request = prepared.request.clone();
        request.sampling.choice = index;
        Self {
            router,
            patience,
            model: Arc::clone(&prepared.model),
            request,
            named_stop_ids: prepared.named_stop_ids.clone(),
            deadline: prepared.deadline,
            pieces: prepared.pieces.clone(),
            attempt: None,
            admitted: 0,
            tried: Vec::new(),
            fingerprint: String::new(),
            told: None,
            drafter: None,
            figures: Figures::default(),
            so_far: Figures::default(),
            ready: VecDeque::new(),
            over: false,
        }
    }

    /// Places it, or ends it when the client has all of it already.
    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        let Some(finish) = self.finished() else { return self.place(self.deadline).await };
        let serving = self.router.serving(&self.model.name, self.model.text.vocab_hash());
        self.fingerprint = serving.fingerprints.into_iter().next().unwrap_or_default();
        self.end(finish);
        Ok(())
    }

    pub(super) fn index(&self) -> u32 {
        self.request.sampling.choice
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The client is told of these numerics: others are a crossing from now on, and workers of these
    /// are preferred.
    pub(super) fn tell(&mut self, fingerprint: &str) {
        self.told = Some(fingerprint.to_owned());
        if self.fingerprint.is_empty() {
            fingerprint.clone_into(&mut self.fingerprint);
        }
    }

    /// The next event; `None` after `Ended` or a failure.
    pub(super) async fn next(&mut self) -> Option<Result<Event, Failure>> {
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
            Ok(Ok(Said::Tokens { index, ids, drafted, logprobs, verified, predicted, cached_tokens })) => {
                self.so_far.step(&drafted, verified, predicted, cached_tokens);
                self.deliver(index, ids, drafted, logprobs).or_else(|why| self.lose(&why))
            }
            Ok(Ok(Said::Finish { finish, usage, speculation })) => self.finish(finish, usage, speculation),
            Ok(Err(Broken::Lost(why))) => self.lose(&why),
            Ok(Err(Broken::Refused(failure) | Broken::Final(failure))) => Err(failure),
            Err(_) => Err(self.too_late()),
        }
    }

    /// Takes what the worker committed. The error says what is wrong with it.
    fn deliver(
        &mut self,
        index: u32,
        mut ids: Vec<TokenId>,
        mut drafted: Vec<bool>,
        mut logprobs: Vec<TokenLogprobs>,
    ) -> Result<(), String> {
        let have = self.request.committed.len();
        if index as usize != have {
            return Err(format!("sent output {index} where {have} was due"));
        }
        if have + ids.len() > self.request.limits.max_tokens as usize {
            return Err(format!("sent more than {} tokens", self.request.limits.max_tokens));
        }
        let vocab = self.model.text.vocab_len();
        let alternatives = logprobs.iter().flat_map(|l| &l.top).map(|(id, _)| id);
        if let Some(id) = ids.iter().chain(alternatives).find(|id| id.0 >= vocab) {
            return Err(format!("sent token {id}, beyond the vocabulary"));
        }
        let due = if self.request.logprobs.is_some() { ids.len() } else { 0 };
        if logprobs.len() != due {
            return Err(format!("sent {} log-probabilities where {due} were due", logprobs.len()));
        }
        let stop_ids = &self.request.limits.stop_ids;
        let stops = |id: &TokenId| stop_ids.contains(id);
        if self.request.committed.last().is_some_and(stops)
            || ids.split_last().is_some_and(|(_, ids)| ids.iter().any(stops))
        {
            return Err("sent tokens after a stop token".into());
        }
        let mut pieces = Vec::new();
        let mut taken = 0;
        for (id, drafted) in ids.iter().zip(&drafted) {
            self.pieces.push(*id, *drafted, &mut pieces);
            taken += 1;
            if self.pieces.stopped().is_some() {
                break;
            }
        }
        // Nothing after the token that completes a stop string is part of the answer.
        ids.truncate(taken);
        drafted.truncate(taken);
        logprobs.truncate(taken);
        self.request.committed.extend(&ids);
        self.ready.push_back(Event::Tokens(TokensOut { index, ids, drafted, logprobs, pieces }));
        if self.stopped_by_string() {
            // The worker does not know of stop strings; the dropped stream tells it.
            self.end(request::Finish::Stop);
        }
        Ok(())
    }

    pub(super) fn close(&mut self) {
        self.over = true;
        self.attempt = None;
        self.drafter = None;
    }
}
