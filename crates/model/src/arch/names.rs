//! How tensors are called.

/// Whose names a model's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Gguf,
    HuggingFace,
}

/// The tensors of a decoder by their role; `Layer` ones come once a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    Norm,
    Head,
    /// Divisors of the RoPE frequencies; GGUF only.
    RopeFactors,
    AttentionNorm(usize),
    Q(usize),
    QBias(usize),
    QNorm(usize),
    K(usize),
    KBias(usize),
    KNorm(usize),
    V(usize),
    VBias(usize),
    O(usize),
    FeedForwardNorm(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
    /// What its output passes before the final norm when a draft leaves behind it.
    Early(usize),
}

impl Names {
    /// The name of a tensor.
    pub(crate) fn of(self, part: Part) -> String {
        let (layer, gguf, folder) = match part {
            Part::Embedding => (None, "token_embd.weight", "model.embed_tokens.weight"),
            Part::Norm => (None, "output_norm.weight", "model.norm.weight"),
            Part::Head => (None, "output.weight", "lm_head.weight"),
            Part::RopeFactors => (None, "rope_freqs.weight", "rope_freqs.weight"),
            Part::AttentionNorm(i) => (Some(i), "attn_norm.weight", "input_layernorm.weight"),
            Part::Q(i) => (Some(i), "attn_q.weight", "self_attn.q_proj.weight"),
            Part::QBias(i) => (Some(i), "attn_q.bias", "self_attn.q_proj.bias"),
            Part::QNorm(i) => (Some(i), "attn_q_norm.weight", "self_attn.q_norm.weight"),
            Part::K(i) => (Some(i), "attn_k.weight", "self_attn.k_proj.weight"),
            Part::KBias(i) => (Some(i), "attn_k.bias", "self_attn.k_proj.bias"),
            Part::KNorm(i) => (Some(i), "attn_k_norm.weight", "self_attn.k_norm.weight"),
            Part::V(i) => (Some(i), "attn_v.weight", "self_attn.v_proj.weight"),
            Part::VBias(i) => (Some(i), "attn_v.bias", "self_attn.v_proj.bias"),
            Part::O(i) => (Some(i), "attn_output.weight", "self_attn.o_proj.weight"),
            Part::FeedForwardNorm(i) => (Some(i), "ffn_norm.weight", "post_attention_layernorm.weight"),
            Part::Gate(i) => (Some(i), "ffn_gate.weight", "mlp.gate_proj.weight"),
            Part::Up(i) => (Some(i), "ffn_up.weight", "mlp.up_proj.weight"),
            Part::Down(i) => (Some(i), "ffn_down.weight", "mlp.down_proj.weight"),
            Part::Early(i) => (Some(i), "early.weight", "early.weight"),
        };
        match (self, layer) {
            (Self::Gguf, None) => gguf.to_owned(),
            (Self::HuggingFace, None) => folder.to_owned(),
            (Self::Gguf, Some(i)) => format!("blk.{i}.{gguf}"),
            (Self::HuggingFace, Some(i)) => format!("model.layers.{i}.{folder}"),
        }
    }

    /// Whether a tensor is in files although nothing is computed with it.
    pub(crate) fn is_idle(self, name: &str) -> bool {
        // Old checkpoints keep the RoPE frequencies, which the config gives.
        self == Self::HuggingFace && name.ends_with(".rotary_emb.inv_freq")
    }
}
