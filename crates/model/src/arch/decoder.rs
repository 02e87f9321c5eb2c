use super::{Architecture, Bias, Parameters};
use crate::LoadError;
use crate::weights::{Matrix, Weights};

/// The weights of a decoder, by their role.
pub(crate) struct Decoder {
    /// One row a token.
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    /// The embedding again when the file stores no head of its own (tied).
    pub(crate) head: Matrix,
}

pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Matrix,
    pub(crate) feed_forward_norm: Vec<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Decoder {
    /// Takes every tensor of the model from the file; shapes must fit the parameters.
    pub(crate) fn take(
        weights: &mut Weights,
        architecture: &Architecture,
        p: &Parameters,
    ) -> Result<Self, LoadError> {
        // Not covered by a metadata key: Llama 3.1 files scale RoPE by this tensor alone.
        if weights.has("rope_freqs.weight") {
            return Err(LoadError::NotBuilt {
                key: "rope_freqs.weight".to_owned(),
                found: "a tensor of the file".to_owned(),
                what: "RoPE scaling",
            });
        }
        let embedding = weights.matrix("token_embd.weight", p.hidden, p.vocab)?;
        let mut layers = Vec::new();
        for i in 0..p.layers {
            layers.push(Layer::take(weights, architecture.qkv_bias, p, i)?);
        }
        let norm = weights.vector("output_norm.weight", p.hidden)?;
        let head = if weights.has("output.weight") {
            weights.matrix("output.weight", p.hidden, p.vocab)?
        } else {
            embedding.clone()
        };
        Ok(Self { embedding, layers, norm, head })
    }
}

impl Layer {
    fn take(weights: &mut Weights, bias: Bias, p: &Parameters, i: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (queries, keys) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
        let mut linear = |part: &str, outputs: usize| -> Result<Linear, LoadError> {
            let bias_name = name(&format!("{part}.bias"));
            let with_bias = bias == Bias::Required || weights.has(&bias_name);
            Ok(Linear {
                matrix: weights.matrix(&name(&format!("{part}.weight")), p.hidden, outputs)?,
                bias: if with_bias { Some(weights.vector(&bias_name, outputs)?) } else { None },
            })
        };
        Ok(Self {
            q: linear("attn_q", queries)?,
            k: linear("attn_k", keys)?,
            v: linear("attn_v", keys)?,
            o: weights.matrix(&name("attn_output.weight"), queries, p.hidden)?,
            attention_norm: weights.vector(&name("attn_norm.weight"), p.hidden)?,
            feed_forward_norm: weights.vector(&name("ffn_norm.weight"), p.hidden)?,
            gate: weights.matrix(&name("ffn_gate.weight"), p.hidden, p.feed_forward)?,
            up: weights.matrix(&name("ffn_up.weight"), p.hidden, p.feed_forward)?,
            down: weights.matrix(&name("ffn_down.weight"), p.feed_forward, p.hidden)?,
        })
    }
}
