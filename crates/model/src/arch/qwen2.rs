use super::{Architecture, Bias, RopeStyle};

/// Qwen 2 and 2.5, Coder included (dense).
pub(super) static ARCHITECTURE: Architecture =
    Architecture { name: "qwen2", rope: RopeStyle::Halves, qkv_bias: Bias::Required };
