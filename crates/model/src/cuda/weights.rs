//! A decoder's weights on the device: read from a model's files, or made up.

use std::cell::Cell;
use std::rc::Rc;

use rayon::prelude::*;

use super::elementwise::Elementwise;
use super::linear::Dense;
use super::matrix::{DeviceMatrix, Weights};
use super::quantised::Quantised;
use super::{Buffer, CudaError, Device, Dtype};
use crate::LoadError;
use crate::arch::{Architecture, Bias, Decoder, Layer, Linear, Parameters};
use crate::quant::Format;
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
    pub(crate) qkv: DeviceMatrix,
    /// Of q, k and v.
    pub(crate) bias: Option<Buffer>,
    /// Of q and of k.
    pub(crate) qk_norm: Option<(Buffer, Buffer)>,
    pub(crate) o: DeviceMatrix,
    pub(crate) feed_forward_norm: Buffer,
    pub(crate) gate_up: DeviceMatrix,
    pub(crate) down: DeviceMatrix,
}

/// Elements that are dequantised and copied at a time.
const PIECE: usize = 1 << 24;

impl DeviceDecoder {
    /// The matrices of a decoder; those that are not quantised are of `dtype`.
    pub(crate) fn upload(
        device: &Device,
        dtype: Dtype,
        weights: Weights,
        decoder: &Decoder,
        tied: bool,
    ) -> Result<Self, CudaError> {
        let embedding = Rc::new(dense(device, dtype, &[&decoder.embedding])?);
        let head =
            if tied { Rc::clone(&embedding) } else { Rc::new(dense(device, dtype, &[&decoder.head])?) };
        let layers = decoder.layers.iter().map(|layer| DeviceLayer::upload(device, dtype, weights, layer));
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
        weights: Weights,
        p: &Parameters,
        architecture: &Architecture,
        seed: u64,
    ) -> Result<Self, CudaError> {
        let made = Cell::new(0);
        let next = || {
            made.set(made.get() + 1);
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(made.get() << 40)
        };
        let scale = |inputs: usize| (3.0 / inputs as f32).sqrt();
        let dense = |outputs: usize, inputs: usize| -> Result<Dense, CudaError> {
            let weights = Buffer::zeros(device, "weights", outputs * inputs * dtype.bytes())?;
            elementwise.fill(device, &weights, (outputs * inputs) as u64, next(), 0.0, scale(inputs))?;
            Ok(Dense { weights, outputs: outputs as u32, inputs: inputs as u32 })
        };
        let matrix = |outputs: usize, inputs: usize| -> Result<DeviceMatrix, CudaError> {
            if weights == Weights::Dequantised {
                return Ok(DeviceMatrix::Dense(dense(outputs, inputs)?));
            }
            let rows = made_up(outputs * inputs, next(), scale(inputs));
            Ok(DeviceMatrix::Quantised(Quantised::fp8(device, &rows, outputs, inputs)?))
        };
        let constant = |len: usize, value: f32| vector(device, &vec![value; len]);
        let (queries, keys) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
        let embedding = Rc::new(dense(p.vocab, p.hidden)?);
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
            if p.tied == Some(true) { Rc::clone(&embedding) } else { Rc::new(dense(p.vocab, p.hidden)?) };
        Ok(Self { embedding, layers, norm: constant(p.hidden, 1.0)?, head })
    }

    /// Bytes of weights that a step reads, whatever its rows: all but the embedding.
    pub(crate) fn step_bytes(&self) -> u64 {
        self.head.weights.bytes() as u64 + self.matrices().map(DeviceMatrix::bytes).sum::<u64>()
    }

    /// Of all layers.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &DeviceMatrix> {
        self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down])
    }
}

impl DeviceLayer {
    fn upload(device: &Device, dtype: Dtype, weights: Weights, layer: &Layer) -> Result<Self, CudaError> {
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
            qkv: matrix(device, dtype, weights, &linears.map(|l| &l.matrix))?,
            bias,
            qk_norm,
            o: matrix(device, dtype, weights, &[&layer.o])?,
            feed_forward_norm: vector(device, &layer.feed_forward_norm)?,
            gate_up: matrix(device, dtype, weights, &[&layer.gate, &layer.up])?,
            down: matrix(device, dtype, weights, &[&layer.down])?,
        })
    }
}

/// Refuses to keep the blocks of a model that has none to keep.
pub(crate) fn check(weights: Weights, decoder: &Decoder) -> Result<(), LoadError> {
    let keeps = |l: &Layer| {
        let groups: [&[&Matrix]; 4] =
            [&[&l.q.matrix, &l.k.matrix, &l.v.matrix], &[&l.o], &[&l.gate, &l.up], &[&l.down]];
        groups.into_iter().any(|matrices| kept(matrices).is_some())
    };
    if weights != Weights::Kept || decoder.layers.iter().any(keeps) {
        return Ok(());
    }
    let why = "kept, but no matrix of this model is stored as Q4_K or Q8_0; use dequantised or fp8";
    Err(LoadError::BadOption { option: "weights", why: why.to_owned() })
}

/// The format in which matrices can be kept as one.
fn kept(matrices: &[&Matrix]) -> Option<Format> {
    let format = matrices.first()?.format;
    let suits = matches!(format, Format::Q4_K | Format::Q8_0) && matrices.iter().all(|m| m.format == format);
    suits.then_some(format)
}

/// Matrices of the same inputs, one below the other.
fn matrix(
    device: &Device,
    dtype: Dtype,
    weights: Weights,
    matrices: &[&Matrix],
) -> Result<DeviceMatrix, CudaError> {
    let inputs = matrices.first().map_or(0, |m| m.inputs);
    let outputs: usize = matrices.iter().map(|m| m.outputs).sum();
    let blocks = || matrices.iter().map(|m| m.bytes()).collect::<Vec<_>>().concat();
    let quantised = match (weights, kept(matrices)) {
        (Weights::Kept, Some(Format::Q4_K)) => Quantised::q4_k(device, &blocks(), outputs, inputs)?,
        (Weights::Kept, Some(_)) => Quantised::q8_0(device, &blocks(), outputs, inputs)?,
        (Weights::Fp8, _) => {
            let mut rows = vec![0.0; outputs * inputs];
            let mut rest = rows.as_mut_slice();
            for matrix in matrices {
                let (own, others) = rest.split_at_mut(matrix.outputs * inputs);
                own.par_chunks_exact_mut(inputs)
                    .enumerate()
                    .for_each(|(row, to)| matrix.dequantise_row(row, to));
                rest = others;
            }
            Quantised::fp8(device, &rows, outputs, inputs)?
        }
        (Weights::Kept | Weights::Dequantised, _) => {
            return Ok(DeviceMatrix::Dense(dense(device, dtype, matrices)?));
        }
    };
    Ok(DeviceMatrix::Quantised(quantised))
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

/// What [`Elementwise::fill`] gives, before it is rounded.
fn made_up(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let of = |i: usize| {
        let z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        scale * (((z ^ z >> 31) >> 40) as f32 / 8_388_608.0 - 1.0)
    };
    (0..count).into_par_iter().map(of).collect()
}

fn vector(device: &Device, values: &[f32]) -> Result<Buffer, CudaError> {
    Buffer::of(device, "weights", values)
}
