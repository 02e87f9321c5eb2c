use crate::{InvalidField, TokenId};

/// When an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most output tokens, the `committed` ones of a replay included.
    pub max_tokens: u32,
    /// No stop token is drawn before this many output tokens; a constraint that is at its end goes first.
    pub min_tokens: u32,
    /// Tokens that end the answer (the model's end-of-turn tokens); they are committed, not shown.
    pub stop_ids: Vec<TokenId>,
}

impl Limits {
    /// At most `max_tokens`, ended by these tokens.
    pub fn new(max_tokens: u32, stop_ids: Vec<TokenId>) -> Self {
        Self { max_tokens, min_tokens: 0, stop_ids }
    }

    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.max_tokens == 0 {
            return Err(InvalidField::new("max_tokens", "must be at least 1"));
        }
        if self.min_tokens > self.max_tokens {
            return Err(InvalidField::new(
                "min_tokens",
                format!("{} is more than max_tokens {}", self.min_tokens, self.max_tokens),
            ));
        }
        if self.stop_ids.len() > 64 {
            return Err(InvalidField::new("stop_ids", "at most 64 stop tokens are taken"));
        }
        Ok(())
    }
}
