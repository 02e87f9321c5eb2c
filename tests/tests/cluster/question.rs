//! Questions to a worker, the answers that are right, and those that come.

use std::time::Duration;

use engine::toy_logits;
use proto::worker::{GenerateRequest, GenerateResponse};
use proto::{Answer, Candidate, Placed};
use request::{
    Finish, Limits, Request, RequestId, Sampling, SamplingParams, SpeculationStats, Strategy, TokenId, Usage,
};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::nodes::{MODEL, MODEL_SEED, Target, VOCAB};
use crate::support::HANG;

/// A request as a coordinator would place it: greedy and plain unless told otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Question(pub(crate) Placed);

impl Question {
    pub(crate) fn new(prompt: &[u32], max_tokens: u32) -> Self {
        Self(Placed {
            model: MODEL.into(),
            request: Request::new(
                RequestId::new("question").unwrap(),
                prompt.iter().copied().map(TokenId).collect(),
                Sampling::GREEDY,
                Limits::new(max_tokens, Vec::new()),
            ),
            drafters: Vec::new(),
            prefill: None,
        })
    }

    /// Prompts of different lengths and tokens, by number; every other one is sampled at 0.8.
    pub(crate) fn numbered(n: u32, max_tokens: u32) -> Self {
        let prompt: Vec<u32> = (0..1 + n * 7 % 40).map(|i| (n * 5 + i * i + 1) % VOCAB).collect();
        let question = Self::new(&prompt, max_tokens);
        if n.is_multiple_of(2) { question } else { question.sampled(0.8, 1000 + u64::from(n)) }
    }

    /// By these and nobody else: under `auto` a draft may come from what was said before instead.
    pub(crate) fn drafted_by(mut self, drafters: &[Candidate]) -> Self {
        self.0.drafters = drafters.to_vec();
        let strategy = &mut self.0.request.speculation.strategy;
        if *strategy == Strategy::Auto && !drafters.is_empty() {
            *strategy = Strategy::Draft;
        }
        self
    }

    pub(crate) fn prefilled_by(mut self, worker: &Target) -> Self {
        self.0.prefill = Some(Candidate::from(&worker.node.record));
        self
    }

    pub(crate) fn sampled(mut self, temperature: f32, seed: u64) -> Self {
        self.0.request.sampling = Sampling { params: SamplingParams::at(temperature), seed, choice: 0 };
        self
    }

    pub(crate) fn strategy(mut self, strategy: Strategy) -> Self {
        self.0.request.speculation.strategy = strategy;
        self
    }

    pub(crate) fn stop_at(mut self, token: u32) -> Self {
        self.0.request.limits.stop_ids.push(TokenId(token));
        self
    }

    /// The answer, from the toy's law alone.
    pub(crate) fn answer(&self) -> (Vec<TokenId>, Finish) {
        let request = &self.0.request;
        let (mut known, first) = (request.known(), request.prompt.len());
        while known.len() - first < request.limits.max_tokens as usize {
            let logits = toy_logits(MODEL_SEED, &known, VOCAB);
            let token = sampling::pick(&logits, &request.sampling, known.len() as u32).unwrap();
            known.push(token);
            if request.limits.stop_ids.contains(&token) {
                return (known.split_off(first), Finish::Stop);
            }
        }
        (known.split_off(first), Finish::Length)
    }

    /// As it goes over the wire, to be spoiled by a test.
    pub(crate) fn wire(&self) -> GenerateRequest {
        self.0.clone().into()
    }

    pub(crate) async fn ask(self, worker: &Target) -> Reading {
        let stream = send(worker, self.wire()).await.unwrap();
        Reading { question: self, stream, text: Vec::new(), drafted: Vec::new(), end: None }
    }
}

/// Sends a request that may be malformed.
pub(crate) async fn send(
    worker: &Target,
    request: GenerateRequest,
) -> Result<Streaming<GenerateResponse>, Status> {
    let mut client = worker.client.clone();
    let answer = timeout(HANG, client.generate(request)).await.expect("the worker is stuck");
    answer.map(tonic::Response::into_inner)
}

/// An answer that is being read; dropping it is how a client leaves.
pub(crate) struct Reading {
    question: Question,
    stream: Streaming<GenerateResponse>,
    pub(crate) text: Vec<TokenId>,
    /// One per token: whether it was an accepted draft.
    pub(crate) drafted: Vec<bool>,
    end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    pub(crate) stats: SpeculationStats,
}

impl Reading {
    /// Reads one message; `false` when the stream ended. Checks what holds for every answer.
    pub(crate) async fn next(&mut self) -> bool {
        self.try_next().await.unwrap()
    }

    async fn try_next(&mut self) -> Result<bool, Status> {
        let message = timeout(HANG, self.stream.message()).await.expect("the answer is stuck")?;
        let Some(message) = message else { return Ok(false) };
        assert_eq!(self.end, None, "something after Finish");
        match Answer::try_from(message).unwrap() {
            Answer::Accepted { drafter, .. } => {
                assert!(self.text.is_empty());
                let first = self.question.0.drafters.first().map(|c| c.id.clone());
                let plain = !self.question.0.request.speculation.strategy.takes_drafter();
                assert_eq!(drafter, first.filter(|_| !plain));
            }
            Answer::Tokens { index, ids, drafted, .. } => {
                assert_eq!(index as usize, self.text.len(), "no gap, no repeat");
                self.text.extend(ids);
                self.drafted.extend(drafted);
            }
            Answer::Finish { finish, usage, speculation } => {
                self.end = Some(End { finish, usage, stats: speculation });
            }
        }
        Ok(true)
    }

    /// Reads on until the answer so far is as wanted; panics with `what` when it ends before.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            assert!(self.next().await && self.end.is_none(), "the answer ended before {what}");
        }
    }

    pub(crate) async fn until_drafted(&mut self) {
        self.until("a draft was accepted", |r| r.drafted.contains(&true)).await;
    }

    /// Reads `more` tokens.
    pub(crate) async fn on(&mut self, more: usize) {
        let enough = self.text.len() + more;
        self.until("it was long enough", |r| r.text.len() >= enough).await;
    }

    /// Reads to the end, whatever it is; `None` when the stream ended without Finish.
    pub(crate) async fn end(&mut self) -> Option<End> {
        while self.next().await {}
        self.end.clone()
    }

    /// As [`Self::end`], when the worker may be gone.
    pub(crate) async fn end_or_break(&mut self) -> Option<End> {
        while let Ok(true) = self.try_next().await {}
        self.end.clone()
    }

    /// Reads to the end and requires that the answer is the right one.
    pub(crate) async fn right(self) -> SpeculationStats {
        self.right_end().await.stats
    }

    /// The same, with all that the worker said at the end.
    pub(crate) async fn right_end(mut self) -> End {
        let End { finish, usage, stats } = self.end().await.expect("the answer ended without Finish");
        let (text, expected) = self.question.answer();
        assert_eq!(self.text, text, "{usage:?} {stats:?} {:?}", self.question);
        assert_eq!(finish, expected);
        assert_eq!(usage.prompt_tokens as usize, self.question.0.request.prompt.len());
        assert_eq!(usage.completion_tokens as usize, text.len());
        // The last step's accepted drafts may be cut off by the limit or a stop token.
        let shown = self.drafted.iter().filter(|d| **d).count() as u64;
        assert!(shown <= stats.accepted_tokens, "{shown} shown as drafted, {stats:?}");
        assert_eq!(stats.histogram.iter().sum::<u64>(), stats.drafts);
        End { finish, usage, stats }
    }
}

/// Never waits for long in a test: so lockstep is seen to wait, and to stop waiting.
pub(crate) const LOCKSTEP: Strategy = Strategy::Lockstep { k: 4, deadline: Duration::from_millis(200) };
