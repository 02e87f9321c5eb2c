//! The matrices of layers, dense or quantised, and their products.

use super::blas::Shape;
use super::linear::{Dense, Linear, Norm};
use super::quantised::{Epilogue, Products, Quantised};
use super::{Buffer, CudaError, Device, Dtype, Mode};
use crate::LoadError;

/// What the matrices of layers are kept in; embedding and output layer are always in the dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// All in the dtype.
    #[default]
    Dequantised,
    /// Those that a GGUF file stores as Q4_K or Q8_0 in their blocks, others in the dtype. Q, K and V are one matrix,
    /// and so are gate and up: they are kept where all parts are of one kind.
    Kept,
    /// In FP8 (E4M3) with a scale an output, quantised at load.
    Fp8,
}

/// A matrix of a layer.
pub(crate) enum DeviceMatrix {
    Dense(Dense),
    Quantised(Quantised),
}

/// The products of one model's matrices.
pub(crate) struct Matmul {
    pub(crate) dense: Linear,
    /// Where a matrix is quantised.
    fused: Option<Fused>,
    dtype: Dtype,
}

struct Fused {
    products: Products,
    /// Room for the largest of them in the dtype.
    whole: Buffer,
}

/// Rows that the fused kernels multiply, in pieces of what they take at once: on an H200 four pieces of a 14336 x 4096
/// matrix take 89 to 100 us; dequantising it takes 71 to 89 us, and reading the result 29 us at the least.
const MOST_FUSED: u32 = 4 * Products::MOST_ROWS;

impl Weights {
    pub fn name(self) -> &'static str {
        match self {
            Self::Dequantised => "dequantised",
            Self::Kept => "kept",
            Self::Fp8 => "fp8",
        }
    }

    /// Refuses what `mode` cannot hold: few rows of a quantised matrix have other bits than many. And blocks that lie
    /// across two GPUs.
    pub(crate) fn check(self, mode: Mode, gpus: usize) -> Result<(), LoadError> {
        if self == Self::Dequantised || (mode == Mode::Fast && gpus == 1) {
            return Ok(());
        }
        if gpus > 1 {
            let why = format!("{} is not built for a model over several GPUs; use dequantised", self.name());
            return Err(LoadError::BadOption { option: "weights", why });
        }
        let why = format!(
            "{} is not built for the batch-invariant mode, where weights must be dequantised",
            self.name()
        );
        Err(LoadError::BadOption { option: "weights", why })
    }
}

impl DeviceMatrix {
    /// Bytes that a product reads.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Dense(dense) => dense.weights.bytes() as u64,
            Self::Quantised(quantised) => quantised.bytes() as u64,
        }
    }
}

impl Matmul {
    /// For products with `matrices`.
    pub(crate) fn new<'a>(
        device: &Device,
        dtype: Dtype,
        mode: Mode,
        matrices: impl Iterator<Item = &'a DeviceMatrix>,
    ) -> Result<Self, CudaError> {
        let largest = matrices.filter_map(|matrix| match matrix {
            DeviceMatrix::Dense(_) => None,
            DeviceMatrix::Quantised(w) => Some(w.outputs as usize * w.inputs as usize),
        });
        let fused = match largest.max() {
            None => None,
            Some(elements) => Some(Fused {
                products: Products::new(device, dtype)?,
                whole: Buffer::zeros(device, "a dequantised matrix", elements * dtype.bytes())?,
            }),
        };
        Ok(Self { dense: Linear::new(device, dtype, mode)?, fused, dtype })
    }

    /// Whether [`Self::norm_store`] and [`Self::norm_gate`] take so many rows of this matrix.
    pub(crate) fn norms(&self, matrix: &DeviceMatrix, rows: u32) -> bool {
        match matrix {
            DeviceMatrix::Dense(w) => self.dense.norms(w, rows),
            DeviceMatrix::Quantised(_) => false,
        }
    }

    /// out (of the dtype) = x W^T.
    pub(crate) fn store(
        &self,
        device: &Device,
        matrix: &DeviceMatrix,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        match matrix {
            DeviceMatrix::Dense(w) => self.dense.store(device, w, x, out, rows),
            DeviceMatrix::Quantised(w) => self.quantised(device, w, [x, out], rows, Epilogue::Store),
        }
    }

    /// out (of float) = x W^T, of a dense matrix: a rank's part of a sum.
    pub(crate) fn store_float(
        &self,
        device: &Device,
        matrix: &DeviceMatrix,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        self.dense.store_float(device, dense(matrix)?, x, out, rows)
    }

    /// residual (of float) += x W^T.
    pub(crate) fn add(
        &self,
        device: &Device,
        matrix: &DeviceMatrix,
        x: u64,
        residual: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        match matrix {
            DeviceMatrix::Dense(w) => self.dense.add(device, w, x, residual, rows),
            DeviceMatrix::Quantised(w) => self.quantised(device, w, [x, residual], rows, Epilogue::Residual),
        }
    }

    /// As [`Linear::norm_store`]; only where [`Self::norms`].
    pub(crate) fn norm_store(
        &self,
        device: &Device,
        matrix: &DeviceMatrix,
        norm: Norm,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        self.dense.norm_store(device, dense(matrix)?, norm, x, out, rows)
    }

    /// As [`Linear::norm_gate`]; only where [`Self::norms`].
    pub(crate) fn norm_gate(
        &self,
        device: &Device,
        matrix: &DeviceMatrix,
        norm: Norm,
        x: u64,
        out: u64,
        rows: u32,
    ) -> Result<(), CudaError> {
        self.dense.norm_gate(device, dense(matrix)?, norm, x, out, rows)
    }

    /// Chooses the algorithms of a product of many rows beforehand, by the matrices of all layers, which have one shape;
    /// what `out` holds is lost.
    pub(crate) fn tune(
        &self,
        device: &Device,
        matrices: &[&DeviceMatrix],
        addresses: [u64; 2],
        rows: u32,
        out: Dtype,
        add: bool,
    ) -> Result<(), CudaError> {
        // Layers may be kept in different formats.
        let dense: Vec<&Dense> = matrices.iter().copied().filter_map(|m| dense(m).ok()).collect();
        self.dense.tune(device, &dense, addresses, rows, out, add)?;
        let quantised = matrices.iter().find_map(|matrix| match matrix {
            DeviceMatrix::Quantised(w) => Some(w).filter(|_| rows > MOST_FUSED),
            DeviceMatrix::Dense(_) => None,
        });
        let Some(w) = quantised else { return Ok(()) };
        let whole = self.fused()?.whole.at(0);
        self.dense.blas.tune(device, self.shape(w, rows, out, add), &[whole], addresses)
    }

    /// Few rows by the fused kernels; for more the matrix is dequantised, which is read anew each time.
    fn quantised(
        &self,
        device: &Device,
        w: &Quantised,
        [x, y]: [u64; 2],
        rows: u32,
        epilogue: Epilogue,
    ) -> Result<(), CudaError> {
        let Fused { products, whole } = self.fused()?;
        let (out, add) = match epilogue {
            Epilogue::Store => (self.dtype, false),
            Epilogue::Residual => (Dtype::F32, true),
        };
        if rows > MOST_FUSED {
            products.dequantise(device, w, whole.at(0))?;
            return self.dense.blas.multiply(device, self.shape(w, rows, out, add), [whole.at(0), x, y]);
        }
        for first in (0..rows).step_by(Products::MOST_ROWS as usize) {
            let at = |address: u64, width: u32, of: Dtype| {
                address + u64::from(first) * u64::from(width) * of.bytes() as u64
            };
            let (x, y) = (at(x, w.inputs, self.dtype), at(y, w.outputs, out));
            products.product(device, w, x, y, (rows - first).min(Products::MOST_ROWS), epilogue)?;
        }
        Ok(())
    }

    fn shape(&self, w: &Quantised, rows: u32, out: Dtype, add: bool) -> Shape {
        Shape { rows, inputs: w.inputs, outputs: w.outputs, dtype: self.dtype, out, add }
    }

    fn fused(&self) -> Result<&Fused, CudaError> {
        self.fused.as_ref().ok_or(CudaError::NotBuilt { what: "a quantised product in a model without any" })
    }
}

/// A matrix where only dense ones are built: with a norm inside the product, and for partial sums.
fn dense(matrix: &DeviceMatrix) -> Result<&Dense, CudaError> {
    match matrix {
        DeviceMatrix::Dense(w) => Ok(w),
        DeviceMatrix::Quantised(_) => {
            Err(CudaError::NotBuilt { what: "this product with a quantised matrix" })
        }
    }
}
