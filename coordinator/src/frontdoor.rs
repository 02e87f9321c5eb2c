//! The one way in, for both APIs: admit, prepare, generate.

use std::sync::Arc;
use std::time::Duration;

use cluster::View;
use request::RequestId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::{Admission, Permit};
use crate::failure::{Failure, from_field};
use crate::generate::{Answers, Patience, Prepared};
use crate::models::{Model, Models};
use crate::question::{Question, Spelling};
use crate::router::{Router, Serving};
use crate::text::Aside;

mod prepare;

/// What all requests share. Cheap to clone behind its `Arc`; holds no request.
#[derive(Debug)]
pub(crate) struct FrontDoor {
    pub(crate) models: Models,
    pub(crate) admission: Admission,
    router: Arc<Router>,
    /// For work on long texts.
    pub(crate) aside: Aside,
    patience: Patience,
    default_max_tokens: u32,
    request_timeout: Duration,
}

impl FrontDoor {
    pub(crate) fn new(config: &crate::Config, models: Models, router: Router) -> Self {
        Self {
            models,
            admission: Admission::new(config.max_in_flight),
            router: Arc::new(router),
            aside: Aside::default(),
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
        question: Question,
        spelling: Spelling,
        deadline: Instant,
    ) -> Result<Prepared, Failure> {
        prepare::prepare(self, question, spelling, deadline).await
    }

    /// Places all choices and resolves with the first token of one, or with what is wrong.
    pub(crate) async fn generate(&self, prepared: Prepared, permit: Permit) -> Result<Answers, Failure> {
        Answers::begin(Arc::clone(&self.router), self.patience, prepared, permit).await
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
}

/// Names a request whose client did not. Drawn first, so that whatever fails can be found in the log.
pub(crate) fn request_id() -> Result<RequestId, Failure> {
    RequestId::new(&format!("chatcmpl-{}", uuid::Uuid::new_v4().simple())).map_err(|e| from_field(&e))
}
