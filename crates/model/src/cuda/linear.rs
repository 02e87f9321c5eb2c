//! Products with dense matrices: few rows by kernels of our own, many by cuBLASLt.

use super::blas::{Blas, Shape};
use super::{Arg, Buffer, CudaError, Device, Dtype, Kernel, Launch, Module};

/// A dense matrix on the device: `outputs` rows of `inputs` weights.
pub(crate) struct Dense {
    pub(crate) weights: Buffer,
    pub(crate) outputs: u32,
    pub(crate) inputs: u32,
}

/// The products of one model.
pub(crate) struct Linear {
    _module: Module,
    dtype: Dtype,
    few: Option<Few>,
    pub(crate) blas: Blas,
    mode: Mode,
}

/// How the bits of a row may depend on the rows beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Whatever is fastest for the number of rows.
    Fast,
    /// Always the same algorithm over the same number of rows, padded: a row has the same bits alone and in any
    /// batch.
    Invariant,
}

/// Kernels for at most [`Linear::MOST_FEW`] rows.
struct Few {
    store: Kernel,
    store_float: Kernel,
    add: Kernel,
    norm: Option<Normed>,
}

/// With the RMS norm before the product.
struct Normed {
    store: Kernel,
    gate: Kernel,
}

/// An RMS norm before a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// Its weights, of f32.
    pub(crate) weight: u64,
    pub(crate) epsilon: f32,
}

const WARPS: u32 = 8;
/// k that a warp takes at once.
const GROUP: u32 = 64;
/// Outputs of a block.
const TILE: u32 = 16;
/// Every block norms all rows anew: with more rows than this a kernel that norms them once is faster.
const MOST_NORMED: u32 = 2;
/// A feed-forward's matrices are wide enough for cuBLASLt to reach the speed of memory from a few rows on.
const WIDE: u32 = 16_384;
/// Shared memory for normed inputs; more would leave room for one block on a multiprocessor.
const MOST_SHARED: u32 = 100 << 10;
/// A matrix with more tiles than this (an output layer) is walked by fewer blocks, which keep their inputs.
const MANY_TILES: u32 = 4096;

impl Linear {
    /// Rows that the kernels for few rows take.
    pub(crate) const MOST_FEW: u32 = 8;
    /// Rows of every product in [`Mode::Invariant`]: as many as cost no more than reading the weights.
    pub(crate) const INVARIANT_ROWS: u32 = 128;

    pub(crate) fn new(device: &Device, dtype: Dtype, mode: Mode) -> Result<Self, CudaError> {
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/linear.fatbin")))?;
        let few = match dtype {
            Dtype::F32 => None,
            Dtype::F16 => Some(Few {
                store: module.kernel("linear_store_f16", 0)?,
                store_float: module.kernel("linear_store_float_f16", 0)?,
                add: module.kernel("linear_add_f16", 0)?,
                norm: None,
            }),
            Dtype::Bf16 => Some(Few {
                store: module.kernel("linear_store_bf16", 0)?,
                store_float: module.kernel("linear_store_float_bf16", 0)?,
                add: module.kernel("linear_add_bf16", 0)?,
                norm: Some(Normed {
                    store: module.kernel("linear_norm_store_bf16", MOST_SHARED)?,
                    gate: module.kernel("linear_norm_gate_bf16", MOST_SHARED)?,
                }),
            }),
        };
        Ok(Self { _module: module, dtype, few, blas: Blas::new(device)?, mode })
    }

    /// Rows that a buffer must have room for when `rows` are asked for: invariant products pad.
    pub(crate) fn padded(mode: Mode, rows: u32) -> u32 {
        match mode {
            Mode::Fast => rows,
            Mode::Invariant => rows.next_multiple_of(Self::INVARIANT_ROWS),
        }
    }

    /// Whether [`Self::norm_store`] and [`Self::norm_gate`] take so many rows of this matrix.
    pub(crate) fn norms(&self, matrix: &Dense, rows: u32) -> bool {
        self.normed(matrix, rows).is_ok()
    }

    /// out (of the dtype) = x W^T.
    pub(crate) fn store(
        &self,
        device: &Device,
        w: &Dense,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        match self.few(w, rows) {
            Some(few) => self.launch(device, few.store, w, x, None, out, rows, w.outputs),
            None => self.many(device, w, x, out, rows, self.dtype, false),
        }
    }

    /// out (of float) = x W^T.
    pub(crate) fn store_float(
        &self,
        device: &Device,
        w: &Dense,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        match self.few(w, rows) {
            Some(few) => self.launch(device, few.store_float, w, x, None, out, rows, w.outputs),
            None => self.many(device, w, x, out, rows, Dtype::F32, false),
        }
    }

    /// residual (of float) += x W^T.
    pub(crate) fn add(
        &self,
        device: &Device,
        w: &Dense,
        x: u64,
        residual: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        match self.few(w, rows) {
            Some(few) => self.launch(device, few.add, w, x, None, residual, rows, w.outputs),
            None => self.many(device, w, x, residual, rows, Dtype::F32, true),
        }
    }

    /// out (of the dtype) = norm(x) W^T for float x; only where [`Self::norms`].
    pub(crate) fn norm_store(
        &self,
        device: &Device,
        w: &Dense,
        norm: Norm,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        let kernel = self.normed(w, rows)?.store;
        self.launch(device, kernel, w, x, Some(norm), out, rows, w.outputs)
    }

    /// out (of the dtype, half as wide as W has outputs) = silu(first half) * second half of norm(x) W^T; only where
    /// [`Self::norms`].
    pub(crate) fn norm_gate(
        &self,
        device: &Device,
        w: &Dense,
        norm: Norm,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        let kernel = self.normed(w, rows)?.gate;
        self.launch(device, kernel, w, x, Some(norm), out, rows, w.outputs / 2)
    }

    /// Chooses the algorithm of a product of many rows beforehand, by matrices of the same shape; what `out` holds is
    /// lost.
    pub(crate) fn tune(
        &self,
        device: &Device,
        matrices: &[&Dense],
        addresses: [u64; 2],
        rows: u32,
        out: Dtype,
        add: bool,
    ) -> Result<(), CudaError> {
        let Some(w) = matrices.first().filter(|_| self.mode == Mode::Fast) else { return Ok(()) };
        if self.few(w, rows).is_some() {
            return Ok(());
        }
        let all: Vec<u64> = matrices.iter().map(|w| w.weights.at(0)).collect();
        self.blas.tune(device, self.shape(w, rows, out, add), &all, addresses)
    }

    fn few(&self, w: &Dense, rows: u32) -> Option<&Few> {
        let suits = self.mode == Mode::Fast
            && (1..=Self::MOST_FEW).contains(&rows)
            && w.inputs.is_multiple_of(GROUP)
            && w.outputs.is_multiple_of(2 * TILE)
            && (rows <= MOST_NORMED || w.outputs < WIDE || w.outputs / TILE > MANY_TILES);
        self.few.as_ref().filter(|_| suits)
    }

    fn normed(&self, w: &Dense, rows: u32) -> Result<&Normed, CudaError> {
        let kernels = self.few(w, rows).and_then(|few| few.norm.as_ref());
        kernels
            .filter(|_| rows <= MOST_NORMED && shared(rows, w.inputs, self.dtype) <= MOST_SHARED)
            .ok_or(CudaError::NotBuilt { what: "a norm inside this product" })
    }

    #[allow(clippy::too_many_arguments)]
    fn launch(
        &self,
        device: &Device,
        kernel: Kernel,
        w: &Dense,
        x: u64,
        norm: Option<Norm>,
        out: u64,
        rows: u32,
        outputs: u32,
    ) -> Result<(), CudaError> {
        let shared = norm.map(|_| shared(rows, w.inputs, self.dtype));
        let launch = geometry(outputs, shared, device.multiprocessors);
        let norm = norm.unwrap_or(Norm { weight: 0, epsilon: 0.0 });
        let args: [Arg; 8] = [
            w.weights.at(0).into(),
            x.into(),
            norm.weight.into(),
            norm.epsilon.into(),
            out.into(),
            rows.into(),
            w.inputs.into(),
            outputs.into(),
        ];
        device.launch(kernel, launch, &args)
    }

    #[allow(clippy::too_many_arguments)]
    fn many(
        &self,
        device: &Device,
        w: &Dense,
        x: u64,
        out: u64,
        rows: u32,
        to: Dtype,
        add: bool,
    ) -> Result<(), CudaError> {
        if self.mode == Mode::Fast {
            return self.blas.multiply(device, self.shape(w, rows, to, add), [w.weights.at(0), x, out]);
        }
        let shape = self.shape(w, Self::INVARIANT_ROWS, to, add);
        for first in (0..rows).step_by(Self::INVARIANT_ROWS as usize) {
            let at = |address: u64, width: u32, dtype: Dtype| {
                address + u64::from(first) * u64::from(width) * dtype.bytes() as u64
            };
            let (x, out) = (at(x, w.inputs, self.dtype), at(out, w.outputs, to));
            self.blas.multiply(device, shape, [w.weights.at(0), x, out])?;
        }
        Ok(())
    }

    fn shape(&self, w: &Dense, rows: u32, out: Dtype, add: bool) -> Shape {
        Shape { rows, inputs: w.inputs, outputs: w.outputs, dtype: self.dtype, out, add }
    }
}

/// Bytes of shared memory for the normed inputs.
fn shared(rows: u32, inputs: u32, dtype: Dtype) -> u32 {
    rows * (inputs + 32) * dtype.bytes() as u32
}

/// A block a tile of outputs; an output layer is walked by as many blocks as run at once.
fn geometry(outputs: u32, shared: Option<u32>, multiprocessors: u32) -> Launch {
    let tiles = outputs / TILE;
    let blocks = if tiles > MANY_TILES { multiprocessors * 2 } else { tiles };
    Launch { grid: [blocks.max(1), 1, 1], threads: WARPS * 32, shared: shared.unwrap_or(0) }
}

#[cfg(test)]
mod tests;
