use request::TokenId;
use sampling::Mask;

/// What a sequence's output is held to, token by token. Crate `grammar` has the real one.
///
/// Stop tokens are never passed in: the answer ends with them, whatever the constraint thinks.
pub trait Constraint: Send + std::fmt::Debug {
    /// Takes output tokens. `Err` names the first that is not allowed; nothing is taken then.
    fn commit(&mut self, ids: &[TokenId]) -> Result<(), TokenId>;

    /// Takes back the last `tokens` of what was committed.
    fn rollback(&mut self, tokens: usize);

    /// How many of `drafts` are allowed, from the first on. Changes nothing.
    fn allowed(&mut self, drafts: &[TokenId]) -> usize;

    /// What may come after `drafts[..i]`, for i = 0 to `drafts.len()`; all drafts are allowed. Changes
    /// nothing. `Err` says why no mask can be computed: the sequence then ends.
    fn masks(&mut self, drafts: &[TokenId]) -> Result<Vec<Mask>, String>;
}
