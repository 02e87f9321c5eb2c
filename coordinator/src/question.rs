//! A request in the words that both APIs share: checked as far as that needs no model.

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
    /// Choices, 1 to [`Question::MOST_CHOICES`].
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
    pub(crate) const MOST_CHOICES: u32 = 128;

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
    pub(crate) fn validate(&self) -> Result<(), Failure> {
        if !(1..=Self::MOST_CHOICES).contains(&self.n) {
            return Err(invalid("n", format!("n: {} is not between 1 and {}", self.n, Self::MOST_CHOICES)));
        }
        if self.n > 1 && !self.committed.is_empty() {
            return Err(invalid(
                "committed",
                "committed: an answer of several choices cannot be continued; send one request a choice",
            ));
        }
        self.stop.validate()
    }
}

impl Stop {
    /// OpenAI takes 4, vLLM any number.
    pub(crate) const MOST_STRINGS: usize = 16;
    pub(crate) const MOST_BYTES: usize = 1024;

    fn validate(&self) -> Result<(), Failure> {
        if self.strings.len() > Self::MOST_STRINGS {
            let (has, most) = (self.strings.len(), Self::MOST_STRINGS);
            return Err(invalid("stop", format!("stop: has {has} strings; at most {most} are taken")));
        }
        for (i, string) in self.strings.iter().enumerate() {
            if string.is_empty() {
                return Err(invalid(format!("stop[{i}]"), format!("stop[{i}]: is empty")));
            }
            if string.len() > Self::MOST_BYTES {
                let (has, most) = (string.len(), Self::MOST_BYTES);
                let why = format!("stop[{i}]: has {has} bytes; at most {most} are taken");
                return Err(invalid(format!("stop[{i}]"), why));
            }
        }
        Ok(())
    }
}
