/// Who goes first when decodes and prompts both want rows.
///
/// Real ranks run [`Policy::Sarathi`]; the others are what it is measured against (`paceline bench
/// schedule`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Every step holds all decodes; prompts take what the budget leaves, in chunks (Sarathi-Serve, arXiv
    /// 2403.02310).
    #[default]
    Sarathi,
    /// While a prompt is there, a step holds whole prompts and nothing else: decodes stall. As vLLM did
    /// before chunked prefill.
    PrefillFirst,
    /// While a sequence decodes, no prompt runs; then all that have a slot do, whole. Batching by
    /// requests, as FasterTransformer did.
    DecodeFirst,
}

impl Policy {
    /// Whether a prompt is computed in one step, however long it is.
    pub(crate) fn whole_prompts(self) -> bool {
        self != Self::Sarathi
    }
}
