//! A request in the words that both APIs share: checked as far as that needs no model.

use proto::Asked;
use proto::bounds::{MAX_CHOICES, MAX_OWN_STOP_IDS, MAX_STOP_BYTES, MAX_STOPS};
use request::{Adjustments, Constraint, Quality, RequestId, SamplingParams, Speculation, TokenId};

use crate::failure::{Failure, invalid};

/// What a client asked, whichever API it came by. `frontdoor` resolves it against the model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// `None`: the server draws one.
    pub(crate) id: Option<RequestId>,
    /// How often the client sent it before.
    pub(crate) attempt: u32,
    pub(crate) model: String,
    pub(crate) prompt: Prompt,
    /// Output that the client has already; only with `n` 1.
    pub(crate) committed: Vec<TokenId>,
    pub(crate) params: SamplingParams,
    /// `None`: the server draws one.
    pub(crate) seed: Option<u64>,
    /// Most output tokens of each choice, `committed` included; `None`: the server's default.
    pub(crate) max_tokens: Option<u32>,
    /// Before so many output tokens, no stop token is drawn and no stop string ends the answer.
    pub(crate) min_tokens: u32,
    pub(crate) adjust: Adjustments,
    pub(crate) constraint: Option<Constraint>,
    pub(crate) stop: Stop,
    /// Control tokens that the text of the answer shows as they are spelled, such as those of tool calls.
    pub(crate) shown: Vec<TokenId>,
    /// Choices, 1 to [`MAX_CHOICES`].
    pub(crate) n: u32,
    /// Alternatives reported per token, 0 to 20; `None` reports nothing.
    pub(crate) logprobs: Option<u8>,
    pub(crate) prediction: Option<Prediction>,
    /// Higher is served first.
    pub(crate) priority: i32,
    /// Prefix pages are shared only among requests with the same salt.
    pub(crate) cache_salt: String,
    pub(crate) quality: Quality,
    pub(crate) speculation: Speculation,
}

/// What a prompt is given as; never empty.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// Tokenized as it is, without a template.
    Text(String),
    Tokens(Vec<TokenId>),
    /// Rendered with the model's chat template.
    Chat(text::Conversation),
}

/// What ends an answer besides its length and the model's own end-of-turn tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stop {
    /// Matched on the text of the answer, wherever its tokens begin and end.
    pub(crate) strings: Vec<String>,
    pub(crate) ids: Vec<TokenId>,
    /// The model's end-of-turn tokens are ordinary ones.
    pub(crate) ignore_eos: bool,
    /// Whether the text shows the stop string, or the text of the stop token, that ended it.
    pub(crate) include_in_output: bool,
}

/// Output that the caller guesses: a source of drafts, never more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prediction {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// How an API spells the fields that only the model can judge, or that the APIs name differently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling {
    pub(crate) prompt: &'static str,
    pub(crate) max_tokens: &'static str,
    /// The field of [`Stop::ids`].
    pub(crate) stop_ids: &'static str,
    /// The field of [`Question::prediction`].
    pub(crate) prediction: &'static str,
}

impl Question {
    /// One choice with neutral values for everything else.
    pub(crate) fn new(model: String, prompt: Prompt) -> Self {
        Self {
            id: None,
            attempt: 0,
            model,
            prompt,
            committed: Vec::new(),
            params: SamplingParams::at(1.0),
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            adjust: Adjustments::default(),
            constraint: None,
            stop: Stop::default(),
            shown: Vec::new(),
            n: 1,
            logprobs: None,
            prediction: None,
            priority: 0,
            cache_salt: String::new(),
            quality: Quality::default(),
            speculation: Speculation::default(),
        }
    }

    /// What only the coordinator knows of; the rest is `Request::validate`.
    pub(crate) fn validate(&self, spelling: Spelling) -> Result<(), Failure> {
        if !(1..=MAX_CHOICES).contains(&self.n) {
            return Err(invalid("n", format!("n: {} is not between 1 and {MAX_CHOICES}", self.n)));
        }
        if self.n > 1 && !self.committed.is_empty() {
            return Err(invalid(
                "committed",
                "committed: an answer of several choices cannot be continued; send one request a choice",
            ));
        }
        self.stop.validate(spelling.stop_ids)
    }
}

impl Stop {
    fn validate(&self, ids: &'static str) -> Result<(), Failure> {
        let (strings, most) = (self.strings.len(), MAX_STOPS);
        if strings > most {
            return Err(invalid("stop", format!("stop: has {strings} strings; at most {most} are taken")));
        }
        for (i, string) in self.strings.iter().enumerate() {
            let (field, bytes) = (format!("stop[{i}]"), string.len());
            if bytes == 0 {
                return Err(invalid(&field, format!("{field}: is empty, which would end every answer")));
            }
            if bytes > MAX_STOP_BYTES {
                let why = format!("{field}: has {bytes} bytes; at most {MAX_STOP_BYTES} are taken");
                return Err(invalid(&field, why));
            }
        }
        let (has, most) = (self.ids.len(), MAX_OWN_STOP_IDS);
        if has > most {
            return Err(invalid(ids, format!("{ids}: has {has} tokens; at most {most} are taken")));
        }
        Ok(())
    }
}

impl From<Asked> for Question {
    fn from(asked: Asked) -> Self {
        let prompt = match asked.prompt {
            proto::Prompt::Text(text) => Prompt::Text(text),
            proto::Prompt::Tokens(ids) => Prompt::Tokens(ids),
            proto::Prompt::Chat(turns) => {
                let turns = turns.into_iter().map(|(role, content)| text::Message::new(role, content));
                Prompt::Chat(turns.collect::<Vec<_>>().into())
            }
        };
        let prediction = asked.prediction.map(|prediction| match prediction {
            proto::Prediction::Text(text) => Prediction::Text(text),
            proto::Prediction::Tokens(ids) => Prediction::Tokens(ids),
        });
        Self {
            id: asked.id,
            attempt: asked.attempt,
            committed: asked.committed,
            params: asked.params,
            seed: asked.seed,
            max_tokens: asked.max_tokens,
            min_tokens: asked.min_tokens,
            adjust: asked.adjust,
            constraint: asked.constraint,
            stop: Stop {
                strings: asked.stop,
                ids: asked.stop_ids,
                ignore_eos: asked.ignore_eos,
                include_in_output: false,
            },
            n: asked.n,
            logprobs: asked.logprobs,
            prediction,
            priority: asked.priority,
            cache_salt: asked.cache_salt,
            quality: asked.quality,
            speculation: asked.speculation,
            ..Self::new(asked.model, prompt)
        }
    }
}

impl Prompt {
    /// Bytes of text, roughly: how much work tokenizing is.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Tokens(_) => 0,
            Self::Text(text) => text.len(),
            Self::Chat(chat) => chat.bytes(),
        }
    }
}

impl Prediction {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Tokens(_) => 0,
            Self::Text(text) => text.len(),
        }
    }
}
