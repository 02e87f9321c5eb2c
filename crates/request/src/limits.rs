use crate::{InvalidField, TokenId};

/// When an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most output tokens, the `committed` ones of a replay included.
    pub max_tokens: u32,
    /// Tokens that end the answer (the model's end-of-turn tokens); they are committed, not shown.
    pub stop_ids: Vec<TokenId>,
}

impl Limits {
    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.max_tokens == 0 {
            return Err(InvalidField::new("max_tokens", "must be at least 1"));
        }
        if self.stop_ids.len() > 64 {
            return Err(InvalidField::new("stop_ids", "at most 64 stop tokens are taken"));
        }
        Ok(())
    }
}
