use super::{Architecture, Bias, RopeStyle};

/// Llama 1 to 3, SmolLM2, Mistral without window: files whose architecture is `llama`.
pub(super) static ARCHITECTURE: Architecture =
    Architecture { name: "llama", rope: RopeStyle::Adjacent, qkv_bias: Bias::IfPresent };
