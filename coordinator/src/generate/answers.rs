use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{self, BoxStream, SelectAll};
use futures::{StreamExt as _, stream::select_all};
use tracing::Span;

use super::choice::Choice;
use super::{Event, Patience, Prepared};
use crate::admission::Permit;
use crate::failure::{self, Failure, Reason};
use crate::observe::Observer;
use crate::router::Router;

/// All choices of one question, as their events come. Dropping it cancels the workers' parts.
pub(crate) struct Answers {
    choices: SelectAll<BoxStream<'static, (u32, Result<Event, Failure>)>>,
    /// What came while the first token was waited for.
    early: VecDeque<(u32, Event)>,
    fingerprint: String,
    seed: u64,
    over: bool,
    /// Of what the client is told.
    observer: Option<Observer>,
    _permit: Permit,
}

impl Answers {
    /// Places every choice and waits for the first token of one, so that whatever is wrong until then
    /// is the whole answer. The first choice is placed alone: the others prefer its numerics.
    pub(crate) async fn begin(
        router: Arc<Router>,
        patience: Patience,
        prepared: Prepared,
        permit: Permit,
    ) -> Result<Self, Failure> {
        let observer = Observer::new(telemetry::meters(), &prepared);
        match Self::place(router, patience, prepared, permit).await {
            Ok(answers) => Ok(Self { observer: Some(observer), ..answers }),
            Err(failure) => {
                observer.refused(&failure);
                Err(failure)
            }
        }
    }

    async fn place(
        router: Arc<Router>,
        patience: Patience,
        prepared: Prepared,
        permit: Permit,
    ) -> Result<Self, Failure> {
        let (n, seed) = (prepared.n, prepared.request.sampling.seed);
        permit.widen(n)?;
        let mut first = Choice::new(Arc::clone(&router), patience, &prepared, 0);
        first.start().await?;
        let fingerprint = first.fingerprint().to_owned();
        let others = (1..n).map(|index| {
            let mut choice = Choice::new(Arc::clone(&router), patience, &prepared, index);
            choice.tell(&fingerprint);
            async {
                choice.start().await?;
                Ok::<_, Failure>(choice)
            }
        });
        let others = try_join_all(others).await?;
        first.tell(&fingerprint);
        let choices = select_all(std::iter::once(first).chain(others).map(events));
        let early = VecDeque::new();
        let mut answers =
            Self { choices, early, fingerprint, seed, over: false, observer: None, _permit: permit };
        loop {
            match answers.pull().await {
                // Nobody was told of the numerics that it crosses from.
                Some(Ok((_, Event::Crossed { fingerprint }))) if n == 1 => answers.fingerprint = fingerprint,
                Some(Ok((index, event))) => {
                    let crossed = matches!(event, Event::Crossed { .. });
                    answers.early.push_back((index, event));
                    if !crossed {
                        return Ok(answers);
                    }
                }
                Some(Err(failure)) => return Err(failure),
                None => return Err(failure::new(Reason::Internal, "the answer ended without a word")),
            }
        }
    }

    /// Numerics fingerprint of the workers; empty when no worker was needed and none is there.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Of the request, for who goes on reading after its handler has returned.
    pub(crate) fn span(&self) -> Span {
        self.observer.as_ref().map_or_else(Span::none, |observer| observer.span().clone())
    }

    /// The next event and the index of its choice; `None` when all have ended, or after a failure,
    /// which is every choice's.
    pub(crate) async fn next(&mut self) -> Option<Result<(u32, Event), Failure>> {
        let next = self.pull().await;
        if let Some(observer) = &mut self.observer {
            match &next {
                Some(Ok((choice, event))) => observer.event(*choice, event),
                Some(Err(failure)) => observer.broke(failure),
                None => {}
            }
        }
        next
    }

    /// Reads on until then and keeps what comes. A worker gives up an answer that nobody reads, and
    /// meanwhile holds a slot for it that others may be waiting for.
    pub(crate) async fn hold(&mut self, until: impl Future<Output = ()>) -> Result<(), Failure> {
        let mut until = pin!(until);
        let mut held = std::mem::take(&mut self.early);
        loop {
            tokio::select! {
                () = &mut until => break,
                next = self.pull(), if !self.over => held.extend(next.transpose()?),
            }
        }
        self.early = held;
        Ok(())
    }

    async fn pull(&mut self) -> Option<Result<(u32, Event), Failure>> {
        if let Some(early) = self.early.pop_front() {
            return Some(Ok(early));
        }
        if self.over {
            return None;
        }
        let next = self.choices.next().await;
        if let Some((index, Ok(event))) = next {
            return Some(Ok((index, event)));
        }
        self.over = true;
        self.choices.clear();
        next.map(|(_, event)| event.map(|event| (0, event)))
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("under_way", &self.choices.len()).finish_non_exhaustive()
    }
}

fn events(choice: Choice) -> BoxStream<'static, (u32, Result<Event, Failure>)> {
    stream::unfold(choice, |mut choice| async {
        let event = choice.next().await?;
        Some(((choice.index(), event), choice))
    })
    .boxed()
}
