//! A decoder's weights on the device: read from a model's files, or made up.

use std::rc::Rc;

use rayon::prelude::*;

use super::elementwise::Elementwise;
use super::linear::Dense;
use super::{Buffer, CudaError, Device, Dtype};
use crate::arch::{Architecture, Bias, Decoder, Layer, Linear, Parameters};
use crate::weights::Matrix;

/// A decoder on the device. Q, K and V are one matrix, and so are gate and up; vectors are f32.
pub(crate) struct DeviceDecoder {
    pub(crate) embedding: Rc<Dense>,
    pub(crate) layers: Vec<DeviceLayer>,
    pub(crate) norm: Buffer,
    /// The embedding again when they are tied.
    pub(crate) head: Rc<Dense>,
}

pub(crate) struct DeviceLayer {
    pub(crate) attention_norm: Buffer,
    pub(crate) qkv: Dense,
    /// Of q, k and v.
    pub(crate) bias: Option<Buffer>,
    /// Of q and of k.
    pub(crate) qk_norm: Option<(Buffer, Buffer)>,
    pub(crate) o: Dense,
    pub(crate) feed_forward_norm: Buffer,
    pub(crate) gate_up: Dense,
    pub(crate) down: Dense,
}

/// Elements that are dequantised and copied at a time.
const PIECE: usize = 1 << 24;

impl DeviceDecoder {
    /// Dequantises the matrices of a decoder to `dtype`.
    pub(crate) fn upload(
        device: &Device,
        dtype: Dtype,
        decoder: &Decoder,
        tied: bool,
    ) -> Result<Self, CudaError> {
        let embedding = Rc::new(dense(device, dtype, &[&decoder.embedding])?);
        let head =
            if tied { Rc::clone(&embedding) } else { Rc::new(dense(device, dtype, &[&decoder.head])?) };
        let layers = decoder.layers.iter().map(|layer| DeviceLayer::upload(device, dtype, layer));
        Ok(Self {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            norm: vector(device, &decoder.norm)?,
            head,
        })
    }

    /// Weights of the right shapes that follow from `seed`: what a model takes and how fast it is do not depend on
    /// what it says. Sizes keep activations near 1 through any number of layers.
    pub(crate) fn dummy(
        device: &Device,
        elementwise: &Elementwise,
        dtype: Dtype,
        p: &Parameters,
        architecture: &Architecture,
        seed: u64,
    ) -> Result<Self, CudaError> {
        let mut made = 0;
        let mut matrix = |outputs: usize, inputs: usize| -> Result<Dense, CudaError> {
            made += 1;
            let weights = Buffer::zeros(device, "weights", outputs * inputs * dtype.bytes())?;
            let scale = (3.0 / inputs as f32).sqrt();
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(made << 40);
            elementwise.fill(device, &weights, (outputs * inputs) as u64, seed, 0.0, scale)?;
            Ok(Dense { weights, outputs: outputs as u32, inputs: inputs as u32 })
        };
        let constant = |len: usize, value: f32| vector(device, &vec![value; len]);
        let (queries, keys) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
        let embedding = Rc::new(matrix(p.vocab, p.hidden)?);
        let mut layers = Vec::new();
        for _ in 0..p.layers {
            layers.push(DeviceLayer {
                attention_norm: constant(p.hidden, 1.0)?,
                qkv: matrix(queries + 2 * keys, p.hidden)?,
                bias: match architecture.qkv_bias {
                    Bias::Required => Some(constant(queries + 2 * keys, 0.0)?),
                    Bias::IfPresent | Bias::Never => None,
                },
                qk_norm: if architecture.qk_norm {
                    Some((constant(p.head_dim, 1.0)?, constant(p.head_dim, 1.0)?))
                } else {
                    None
                },
                o: matrix(p.hidden, queries)?,
                feed_forward_norm: constant(p.hidden, 1.0)?,
                gate_up: matrix(2 * p.feed_forward, p.hidden)?,
                down: matrix(p.hidden, p.feed_forward)?,
            });
        }
        let head =
            if p.tied == Some(true) { Rc::clone(&embedding) } else { Rc::new(matrix(p.vocab, p.hidden)?) };
        Ok(Self { embedding, layers, norm: constant(p.hidden, 1.0)?, head })
    }

    /// Bytes of weights that a step reads, whatever its rows: all but the embedding.
    pub(crate) fn step_bytes(&self, dtype: Dtype) -> u64 {
        let bytes = |m: &Dense| u64::from(m.outputs) * u64::from(m.inputs) * dtype.bytes() as u64;
        let layer = |l: &DeviceLayer| bytes(&l.qkv) + bytes(&l.o) + bytes(&l.gate_up) + bytes(&l.down);
        bytes(&self.head) + self.layers.iter().map(layer).sum::<u64>()
    }
}

impl DeviceLayer {
    fn upload(device: &Device, dtype: Dtype, layer: &Layer) -> Result<Self, CudaError> {
        let linears = [&layer.q, &layer.k, &layer.v];
        let bias = if linears.iter().any(|l| l.bias.is_some()) {
            let of = |l: &Linear| l.bias.clone().unwrap_or_else(|| vec![0.0; l.matrix.outputs]);
            Some(vector(device, &linears.map(of).concat())?)
        } else {
            None
        };
        let qk_norm = match &layer.qk_norm {
            Some(norm) => Some((vector(device, &norm.q)?, vector(device, &norm.k)?)),
            None => None,
        };
        Ok(Self {
            attention_norm: vector(device, &layer.attention_norm)?,
            qkv: dense(device, dtype, &linears.map(|l| &l.matrix))?,
            bias,
            qk_norm,
            o: dense(device, dtype, &[&layer.o])?,
            feed_forward_norm: vector(device, &layer.feed_forward_norm)?,
            gate_up: dense(device, dtype, &[&layer.gate, &layer.up])?,
            down: dense(device, dtype, &[&layer.down])?,
        })
    }
}

/// Matrices of the same inputs, one below the other, dequantised.
fn dense(device: &Device, dtype: Dtype, matrices: &[&Matrix]) -> Result<Dense, CudaError> {
    let inputs = matrices.first().map_or(0, |m| m.inputs);
    let outputs: usize = matrices.iter().map(|m| m.outputs).sum();
    let mut weights = Buffer::zeros(device, "weights", outputs * inputs * dtype.bytes())?;
    let (mut at, rows) = (0, (PIECE / inputs.max(1)).max(1));
    let mut piece = Vec::new();
    for matrix in matrices {
        for first in (0..matrix.outputs).step_by(rows) {
            let count = rows.min(matrix.outputs - first);
            piece.resize(count * inputs, 0.0);
            piece
                .par_chunks_exact_mut(inputs)
                .enumerate()
                .for_each(|(row, to)| matrix.dequantise_row(first + row, to));
            dtype.write(device, &mut weights, at, &piece)?;
            at += count * inputs;
        }
    }
    Ok(Dense { weights, outputs: outputs as u32, inputs: inputs as u32 })
}

fn vector(device: &Device, values: &[f32]) -> Result<Buffer, CudaError> {
    Buffer::of(device, "weights", values)
}
