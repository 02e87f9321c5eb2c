use super::{Architecture, Bias, Names, Parameters, Part, Scaling};
use crate::LoadError;
use crate::weights::{Matrix, Weights};

/// The weights of a decoder, by their role.
pub(crate) struct Decoder {
    /// One row a token.
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    /// The embedding again when they are tied.
    pub(crate) head: Matrix,
}

pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) qk_norm: Option<QkNorm>,
    pub(crate) o: Matrix,
    pub(crate) feed_forward_norm: Vec<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
    /// Of an exit that has one: what its drafts pass before the final norm.
    pub(crate) early: Option<Matrix>,
}

pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Weights of the norms over each head of q and of k.
pub(crate) struct QkNorm {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
}

impl Decoder {
    /// Takes every tensor of the model; shapes must fit the parameters. Where the scaling of RoPE is a
    /// tensor, it becomes a parameter.
    pub(crate) fn take(
        weights: &mut Weights,
        architecture: &Architecture,
        p: &mut Parameters,
    ) -> Result<Self, LoadError> {
        if weights.names() == Names::Gguf && weights.has(Part::RopeFactors) {
            // Not covered by a metadata key: Llama 3.1 files scale RoPE by this tensor alone.
            let factors = weights.vector(Part::RopeFactors, p.rope.dims / 2)?;
            let name = weights.name(Part::RopeFactors);
            if p.rope.scaling != Scaling::None {
                let found = "a tensor beside another RoPE scaling".to_owned();
                return Err(LoadError::NotBuilt { key: name, found, what: "more than one RoPE scaling" });
            }
            if let Some(bad) = factors.iter().find(|f| **f <= 0.0) {
                let why = "the divisor of a RoPE frequency must be above 0".to_owned();
                return Err(LoadError::BadParameter { key: name, found: bad.to_string(), why });
            }
            p.rope.scaling = Scaling::Factors(factors);
        }
        let embedding = weights.matrix(Part::Embedding, p.hidden, p.vocab)?;
        let mut layers = Vec::new();
        for i in 0..p.layers {
            layers.push(Layer::take(weights, architecture, p, i)?);
        }
        let norm = weights.vector(Part::Norm, p.hidden)?;
        let tied = p.tied.unwrap_or_else(|| !weights.has(Part::Head));
        let head = if tied { embedding.clone() } else { weights.matrix(Part::Head, p.hidden, p.vocab)? };
        if tied {
            // A copy that the config says is not the one to use.
            weights.pass_over(Part::Head);
        }
        Ok(Self { embedding, layers, norm, head })
    }
}

impl Layer {
    fn take(
        weights: &mut Weights,
        architecture: &Architecture,
        p: &Parameters,
        i: usize,
    ) -> Result<Self, LoadError> {
        let (queries, keys) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
        let mut linear = |part: Part, bias: Part, outputs: usize| -> Result<Linear, LoadError> {
            let biased = match architecture.qkv_bias {
                Bias::Required => true,
                Bias::IfPresent => weights.has(bias),
                Bias::Never => false,
            };
            Ok(Linear {
                matrix: weights.matrix(part, p.hidden, outputs)?,
                bias: if biased { Some(weights.vector(bias, outputs)?) } else { None },
            })
        };
        let (q, k, v) = (
            linear(Part::Q(i), Part::QBias(i), queries)?,
            linear(Part::K(i), Part::KBias(i), keys)?,
            linear(Part::V(i), Part::VBias(i), keys)?,
        );
        let qk_norm = if architecture.qk_norm {
            let (q, k) =
                (weights.vector(Part::QNorm(i), p.head_dim)?, weights.vector(Part::KNorm(i), p.head_dim)?);
            Some(QkNorm { q, k })
        } else {
            None
        };
        let early = if weights.has(Part::Early(i)) {
            Some(weights.matrix(Part::Early(i), p.hidden, p.hidden)?)
        } else {
            None
        };
        Ok(Self {
            early,
            q,
            k,
            v,
            qk_norm,
            o: weights.matrix(Part::O(i), queries, p.hidden)?,
            attention_norm: weights.vector(Part::AttentionNorm(i), p.hidden)?,
            feed_forward_norm: weights.vector(Part::FeedForwardNorm(i), p.hidden)?,
            gate: weights.matrix(Part::Gate(i), p.hidden, p.feed_forward)?,
            up: weights.matrix(Part::Up(i), p.hidden, p.feed_forward)?,
            down: weights.matrix(Part::Down(i), p.feed_forward, p.hidden)?,
        })
    }
}
