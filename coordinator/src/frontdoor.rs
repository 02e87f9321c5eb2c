//! The one way in, for both APIs: admit, prepare, generate.

use std::sync::Arc;
use std::time::Duration;

use cluster::View;
use proto::Asked;
use request::{Limits, Request, RequestId, Sampling, TokenId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::{Admission, Permit};
use crate::failure::{self, Failure, Reason, from_field, invalid};
use crate::generate::{Answer, Patience, Prepared};
use crate::models::{Model, Models};
use crate::random;
use crate::router::{Router, Serving};
use crate::text::Tokenizing;

/// What all requests share. Cheap to clone behind its `Arc`; holds no request.
#[derive(Debug)]
pub(crate) struct FrontDoor {
    pub(crate) models: Models,
    pub(crate) admission: Admission,
    router: Arc<Router>,
    tokenizing: Tokenizing,
    patience: Patience,
    default_max_tokens: u32,
    request_timeout: Duration,
}

/// How an API spells the fields that only the model can judge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling {
    pub(crate) prompt: &'static str,
    pub(crate) max_tokens: &'static str,
}

impl FrontDoor {
    pub(crate) fn new(config: &crate::Config, models: Models, router: Router) -> Self {
        Self {
            models,
            admission: Admission::new(config.max_in_flight),
            router: Arc::new(router),
            tokenizing: Tokenizing::default(),
            patience: Patience { accept: config.accept_timeout, replay: config.replay_timeout },
            default_max_tokens: config.default_max_tokens,
            request_timeout: config.request_timeout,
        }
    }

    /// Takes a place among the requests under way, or says when to come back.
    pub(crate) fn admit(&self) -> Result<Permit, Failure> {
        self.admission.admit()
    }

    /// The deadline of a request that begins now; a client may ask for less.
    pub(crate) fn deadline(&self, asked: Option<Duration>) -> Instant {
        Instant::now() + asked.map_or(self.request_timeout, |asked| asked.min(self.request_timeout))
    }

    /// Resolves what decides the text: model, prompt tokens, seed, limits.
    pub(crate) async fn prepare(
        &self,
        asked: Asked,
        spelling: Spelling,
        deadline: Instant,
    ) -> Result<Prepared, Failure> {
        let model = Arc::clone(self.models.find(&asked.model)?);
        let context = self.router.context(&model.name, model.text.vocab_hash())?;
        let prompt = self.tokenizing.tokens(&model, asked.prompt, spelling.prompt, deadline).await?;
        known_ids("committed", &asked.committed, &model)?;
        let max_tokens = self.max_tokens(asked.max_tokens, prompt.len(), context, &model.name, spelling)?;
        let request = Request {
            id: match asked.id {
                Some(id) => id,
                None => request_id()?,
            },
            attempt: asked.attempt,
            prompt,
            committed: asked.committed,
            sampling: Sampling {
                params: asked.params,
                seed: match asked.seed {
                    Some(seed) => seed,
                    None => random::seed()?,
                },
                choice: 0,
            },
            limits: Limits { max_tokens, stop_ids: model.text.stop_ids().to_vec() },
            quality: asked.quality,
            speculation: asked.speculation,
        };
        request.validate().map_err(|e| from_field(&e))?;
        Ok(Prepared { model, request, deadline })
    }

    /// Places the request and resolves with its first token, or with what is wrong.
    pub(crate) async fn generate(&self, prepared: Prepared, permit: Permit) -> Result<Answer, Failure> {
        Answer::begin(Arc::clone(&self.router), self.patience, prepared, permit).await
    }

    pub(crate) fn serving(&self, model: &Model) -> Serving {
        self.router.serving(&model.name, model.text.vocab_hash())
    }

    /// Models without a worker that takes requests.
    pub(crate) fn unserved(&self) -> Vec<&str> {
        let unserved = self.models.all().iter().filter(|m| self.serving(m).ready_workers == 0);
        unserved.map(|m| m.name.as_str()).collect()
    }

    /// Wakes when who serves what may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<View> {
        self.router.changes()
    }

    fn max_tokens(
        &self,
        asked: Option<u32>,
        prompt: usize,
        context: u32,
        model: &str,
        spelling: Spelling,
    ) -> Result<u32, Failure> {
        let too_long = |field: &str, why: String| Failure {
            field: Some(field.into()),
            ..failure::new(Reason::ContextLengthExceeded, format!("{field}: {why}"))
        };
        let left =
            u32::try_from(prompt).ok().and_then(|prompt| context.checked_sub(prompt)).filter(|l| *l > 0);
        let Some(left) = left else {
            return Err(too_long(
                spelling.prompt,
                format!(
                    "the prompt has {prompt} tokens and the context of {model} is {context}, which must hold at \
                     least one token of answer; shorten the prompt"
                ),
            ));
        };
        match asked {
            None => Ok(self.default_max_tokens.min(left)),
            Some(asked) if asked <= left => Ok(asked),
            Some(asked) => Err(too_long(
                spelling.max_tokens,
                format!(
                    "{asked} tokens were asked for; the prompt has {prompt} and the context of {model} is \
                     {context}, which leaves {left}"
                ),
            )),
        }
    }
}

/// Ids that came from outside must be entries of the vocabulary.
pub(crate) fn known_ids(field: &'static str, ids: &[TokenId], model: &Model) -> Result<(), Failure> {
    let vocab = model.text.vocab_len();
    match ids.iter().position(|id| id.0 >= vocab) {
        None => Ok(()),
        Some(at) => Err(invalid(
            field,
            format!(
                "{field}[{at}]: {} is not below {vocab}, the size of {}'s vocabulary",
                ids[at], model.name
            ),
        )),
    }
}

/// Names a request whose client did not. Drawn first, so that whatever fails can be found in the log.
pub(crate) fn request_id() -> Result<RequestId, Failure> {
    RequestId::new(&format!("chatcmpl-{}", uuid::Uuid::new_v4().simple())).map_err(|e| from_field(&e))
}
