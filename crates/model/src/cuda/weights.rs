//! A decoder's weights on the device: read from a model's files, or made up.

use std::ops::Range;
use std::rc::Rc;
use std::slice;

use rayon::prelude::*;

use super::elementwise::{Elementwise, Filled};
use super::linear::Dense;
use super::matrix::{DeviceMatrix, Weights};
use super::quantised::Quantised;
use super::shard::Shard;
use super::{Buffer, CudaError, Device, Dtype};
use crate::LoadError;
use crate::arch::{Architecture, Bias, Decoder, Layer, Linear, Parameters};
use crate::quant::Format;
use crate::weights::Matrix;

/// A rank's part of a decoder on the device. Q, K and V are one matrix, and so are gate and up; vectors are f32.
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
    /// A rank's part of the matrices of a decoder; those that are not quantised are of `dtype`.
    pub(crate) fn upload(
        device: &Device,
        dtype: Dtype,
        weights: Weights,
        decoder: &Decoder,
        tied: bool,
        shard: Shard,
    ) -> Result<Self, CudaError> {
        let embedding = Rc::new(dense(device, dtype, &[Cut::whole(&decoder.embedding)])?);
        let head = if tied && shard.ranks == 1 {
            Rc::clone(&embedding)
        } else {
            let columns = shard.columns(decoder.head.outputs);
            Rc::new(dense(device, dtype, &[Cut { outputs: columns, ..Cut::whole(&decoder.head) }])?)
        };
        let layers =
            decoder.layers.iter().map(|layer| DeviceLayer::upload(device, dtype, weights, layer, shard));
        Ok(Self {
            embedding,
            layers: layers.collect::<Result<_, _>>()?,
            norm: vector(device, &decoder.norm)?,
            head,
        })
    }

    /// A rank's part of weights of the right shapes that follow from `seed`: what a model takes and how fast it is do
    /// not depend on what it says. Sizes keep activations near 1 through any number of layers. All ranks together
    /// hold the weights that one would.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn dummy(
        device: &Device,
        elementwise: &Elementwise,
        dtype: Dtype,
        weights: Weights,
        p: &Parameters,
        architecture: &Architecture,
        seed: u64,
        shard: Shard,
    ) -> Result<Self, CudaError> {
        let numbered = |number: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number << 40);
        let scale = |inputs: usize| (3.0 / inputs as f32).sqrt();
        // Rows of the matrix with this number and so many inputs, of which some are taken.
        let made = |number: u64, rows: &[Range<usize>], inputs: usize, taken: Range<usize>| {
            let (outputs, width): (usize, _) = (rows.iter().map(Range::len).sum(), taken.len());
            let weights = Buffer::zeros(device, "weights", outputs * width * dtype.bytes())?;
            let mut at = 0;
            for rows in rows {
                let first = rows.start * inputs + taken.start;
                let part = Filled { at, rows: rows.len(), width, stride: inputs, first };
                elementwise.fill(device, &weights, part, numbered(number), scale(inputs))?;
                at += rows.len() * width;
            }
            Ok::<_, CudaError>(Dense { weights, outputs: outputs as u32, inputs: width as u32 })
        };
        // A quantised matrix is whole.
        let matrix = |number: u64, rows: &[Range<usize>], inputs: usize, taken: Range<usize>| {
            if weights == Weights::Dequantised {
                return made(number, rows, inputs, taken).map(DeviceMatrix::Dense);
            }
            let outputs = rows.iter().map(Range::len).sum();
            let values = made_up(outputs * inputs, numbered(number), scale(inputs));
            Quantised::fp8(device, &values, outputs, inputs).map(DeviceMatrix::Quantised)
        };
        let constant = |len: usize, value: f32| vector(device, &vec![value; len]);
        let moved = |range: Range<usize>, by: usize| range.start + by..range.end + by;
        let (queries, keys, inner) = (p.heads * p.head_dim, p.kv_heads * p.head_dim, p.feed_forward);
        let (q, k, f) = (shard.of(queries), shard.of(keys), shard.of(inner));
        let qkv = [q.clone(), moved(k.clone(), queries), moved(k.clone(), queries + keys)];
        let biased = (q.len() + 2 * k.len(), architecture.qkv_bias == Bias::Required);
        let embedding = Rc::new(made(1, slice::from_ref(&(0..p.vocab)), p.hidden, 0..p.hidden)?);
        let mut layers = Vec::new();
        for layer in 0..p.layers as u64 {
            let number = |n: u64| 2 + 4 * layer + n;
            layers.push(DeviceLayer {
                attention_norm: constant(p.hidden, 1.0)?,
                qkv: matrix(number(0), &qkv, p.hidden, 0..p.hidden)?,
                bias: if biased.1 { Some(constant(biased.0, 0.0)?) } else { None },
                qk_norm: if architecture.qk_norm {
                    Some((constant(p.head_dim, 1.0)?, constant(p.head_dim, 1.0)?))
                } else {
                    None
                },
                o: matrix(number(1), slice::from_ref(&(0..p.hidden)), queries, q.clone())?,
                feed_forward_norm: constant(p.hidden, 1.0)?,
                gate_up: matrix(number(2), &[f.clone(), moved(f.clone(), inner)], p.hidden, 0..p.hidden)?,
                down: matrix(number(3), slice::from_ref(&(0..p.hidden)), inner, f.clone())?,
            });
        }
        let tied = p.tied == Some(true);
        let head = if tied && shard.ranks == 1 {
            Rc::clone(&embedding)
        } else {
            let number = if tied { 1 } else { 2 + 4 * p.layers as u64 };
            Rc::new(made(number, &[shard.columns(p.vocab)], p.hidden, 0..p.hidden)?)
        };
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
    fn upload<'a>(
        device: &Device,
        dtype: Dtype,
        weights: Weights,
        layer: &'a Layer,
        shard: Shard,
    ) -> Result<Self, CudaError> {
        let linears = [&layer.q, &layer.k, &layer.v];
        let bias = if linears.iter().any(|l| l.bias.is_some()) {
            let of = |l: &Linear| {
                let rows = shard.of(l.matrix.outputs);
                l.bias.as_ref().map_or_else(|| vec![0.0; rows.len()], |bias| bias[rows.clone()].to_vec())
            };
            Some(vector(device, &linears.map(of).concat())?)
        } else {
            None
        };
        let qk_norm = match &layer.qk_norm {
            Some(norm) => Some((vector(device, &norm.q)?, vector(device, &norm.k)?)),
            None => None,
        };
        let outputs = |m: &'a Matrix| Cut { outputs: shard.of(m.outputs), ..Cut::whole(m) };
        let inputs = |m: &'a Matrix| Cut { inputs: shard.of(m.inputs), ..Cut::whole(m) };
        Ok(Self {
            attention_norm: vector(device, &layer.attention_norm)?,
            qkv: matrix(device, dtype, weights, &linears.map(|l| outputs(&l.matrix)))?,
            bias,
            qk_norm,
            o: matrix(device, dtype, weights, &[inputs(&layer.o)])?,
            feed_forward_norm: vector(device, &layer.feed_forward_norm)?,
            gate_up: matrix(device, dtype, weights, &[outputs(&layer.gate), outputs(&layer.up)])?,
            down: matrix(device, dtype, weights, &[inputs(&layer.down)])?,
        })
    }
}

/// Some outputs and inputs of a matrix.
struct Cut<'a> {
    matrix: &'a Matrix,
    outputs: Range<usize>,
    inputs: Range<usize>,
}

impl<'a> Cut<'a> {
    fn whole(matrix: &'a Matrix) -> Self {
        Self { matrix, outputs: 0..matrix.outputs, inputs: 0..matrix.inputs }
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
    cuts: &[Cut<'_>],
) -> Result<DeviceMatrix, CudaError> {
    if weights == Weights::Dequantised {
        return Ok(DeviceMatrix::Dense(dense(device, dtype, cuts)?));
    }
    // Quantised matrices are on one GPU, whole.
    let matrices: Vec<&Matrix> = cuts.iter().map(|cut| cut.matrix).collect();
    let inputs = matrices.first().map_or(0, |m| m.inputs);
    let outputs: usize = matrices.iter().map(|m| m.outputs).sum();
    let blocks = || matrices.iter().map(|m| m.bytes()).collect::<Vec<_>>().concat();
    let quantised = match (weights, kept(&matrices)) {
        (Weights::Kept, Some(Format::Q4_K)) => Quantised::q4_k(device, &blocks(), outputs, inputs)?,
        (Weights::Kept, Some(_)) => Quantised::q8_0(device, &blocks(), outputs, inputs)?,
        (Weights::Fp8, _) => {
            let mut rows = vec![0.0; outputs * inputs];
            let mut rest = rows.as_mut_slice();
            for matrix in &matrices {
                let (own, others) = rest.split_at_mut(matrix.outputs * inputs);
                own.par_chunks_exact_mut(inputs)
                    .enumerate()
                    .for_each(|(row, to)| matrix.dequantise_row(row, to));
                rest = others;
            }
            Quantised::fp8(device, &rows, outputs, inputs)?
        }
        (Weights::Kept | Weights::Dequantised, _) => {
            return Ok(DeviceMatrix::Dense(dense(device, dtype, cuts)?));
        }
    };
    Ok(DeviceMatrix::Quantised(quantised))
}

/// Matrices of as many inputs, one below the other, dequantised.
fn dense(device: &Device, dtype: Dtype, cuts: &[Cut<'_>]) -> Result<Dense, CudaError> {
    let inputs = cuts.first().map_or(0, |cut| cut.inputs.len());
    let outputs: usize = cuts.iter().map(|cut| cut.outputs.len()).sum();
    let mut weights = Buffer::zeros(device, "weights", outputs * inputs * dtype.bytes())?;
    let (mut at, rows) = (0, (PIECE / inputs.max(1)).max(1));
    let mut piece = Vec::new();
    for cut in cuts {
        for first in cut.outputs.clone().step_by(rows) {
            let count = rows.min(cut.outputs.end - first);
            piece.resize(count * inputs, 0.0);
            piece.par_chunks_exact_mut(inputs).enumerate().for_each_init(
                || vec![0.0; cut.matrix.inputs],
                |whole, (row, to)| {
                    if inputs == whole.len() {
                        cut.matrix.dequantise_row(first + row, to);
                    } else {
                        cut.matrix.dequantise_row(first + row, whole);
                        to.copy_from_slice(&whole[cut.inputs.clone()]);
                    }
                },
            );
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
