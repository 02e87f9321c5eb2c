/// One entry of a model's vocabulary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct TokenId(pub u32);

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Token ids in the raw form that the wire and the tokenizer use.
pub trait Tokens {
    fn to_ids(&self) -> Vec<u32>;
}

impl Tokens for [TokenId] {
    fn to_ids(&self) -> Vec<u32> {
        self.iter().map(|t| t.0).collect()
    }
}
