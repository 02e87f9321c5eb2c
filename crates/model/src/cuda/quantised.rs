//! Products of up to 16 rows with matrices that stay quantised, and those matrices whole for larger products.

pub(super) mod fp8;
mod pack;
#[cfg(test)]
mod tests;

use pack::Kept;

use super::timing::{Timing, time};
use super::{Arg, Buffer, CudaError, Device, Dtype, Kernel, Launch, Module};

/// A quantised matrix on the device: `outputs` rows of `inputs` weights.
pub(crate) struct Quantised {
    packed: Buffer,
    /// f32, one an output, for [`Kept::Fp8`].
    scales: Buffer,
    kept: Kept,
    pub(crate) outputs: u32,
    pub(crate) inputs: u32,
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// Stored in the dtype.
    Store,
    /// Added to floats.
    Residual,
}

/// The kernels for one dtype.
pub(crate) struct Products {
    _module: Module,
    dtype: Dtype,
    q4_k: Kernels,
    q8_0: Kernels,
    fp8: Kernels,
}

struct Kernels {
    eight: Kernel,
    sixteen: Kernel,
    whole: Kernel,
}

/// Outputs of a block of the products on tensor cores, and its most warps.
const OUTPUTS: u32 = 32;
const MOST_WARPS: u32 = 16;
/// Shared memory of a block: the sums of all its warps for 16 rows.
const MOST_SHARED: u32 = MOST_WARPS * 2 * 2 * 4 * 32 * 4;
/// From so many blocks on, warps of several blocks hide each other's waiting, and each does more.
const MANY_BLOCKS: u32 = 256;

impl Quantised {
    /// Q4_K as in a GGUF file: `outputs` rows of `inputs / 256` blocks.
    pub(crate) fn q4_k(
        device: &Device,
        blocks: &[u8],
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, CudaError> {
        if !inputs.is_multiple_of(256) {
            return Err(CudaError::NotBuilt { what: "a Q4_K matrix whose width is no multiple of 256" });
        }
        Self::upload(device, Kept::Q4_K, &pack::q4_k(blocks, outputs, inputs), &[], outputs, inputs)
    }

    /// Q8_0 as in a GGUF file: `outputs` rows of `inputs / 32` blocks.
    pub(crate) fn q8_0(
        device: &Device,
        blocks: &[u8],
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, CudaError> {
        if !inputs.is_multiple_of(32) {
            return Err(CudaError::NotBuilt { what: "a Q8_0 matrix whose width is no multiple of 32" });
        }
        Self::upload(device, Kept::Q8_0, &pack::q8_0(blocks, outputs, inputs), &[], outputs, inputs)
    }

    /// Quantises rows of floats to E4M3: each weight keeps four bits, or is off by 2^-10 of its output's scale.
    pub(crate) fn fp8(
        device: &Device,
        rows: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, CudaError> {
        if !inputs.is_multiple_of(8) {
            return Err(CudaError::NotBuilt { what: "an FP8 matrix whose width is no multiple of 8" });
        }
        let (packed, scales) = pack::fp8(rows, outputs, inputs);
        Self::upload(device, Kept::Fp8, &packed, &scales, outputs, inputs)
    }

    fn upload(
        device: &Device,
        kept: Kept,
        packed: &[u8],
        scales: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, CudaError> {
        let what = "a quantised matrix";
        let packed = Buffer::of(device, what, packed)?;
        let scales = Buffer::of(device, what, scales)?;
        Ok(Self { packed, scales, kept, outputs: outputs as u32, inputs: inputs as u32 })
    }

    /// Bytes that a product reads.
    pub(crate) fn bytes(&self) -> usize {
        self.packed.bytes() + self.scales.bytes()
    }
}

macro_rules! kernels {
    ($module:expr, $format:literal, $eight:literal, $dtype:literal) => {
        Kernels {
            eight: $module.kernel(concat!("quantised_", $format, "_", $eight, "_", $dtype), MOST_SHARED)?,
            sixteen: $module.kernel(concat!("quantised_", $format, "_16_", $dtype), MOST_SHARED)?,
            whole: $module.kernel(concat!("dequantise_", $format, "_", $dtype), 0)?,
        }
    };
    ($module:expr, $of:expr, $format:literal) => {
        match $of {
            Dtype::F32 => kernels!($module, $format, "16", "f32"),
            Dtype::Bf16 => kernels!($module, $format, "8", "bf16"),
            Dtype::F16 => kernels!($module, $format, "8", "f16"),
        }
    };
}

impl Products {
    /// Rows that [`Self::product`] takes.
    pub(crate) const MOST_ROWS: u32 = 16;

    pub(crate) fn new(device: &Device, dtype: Dtype) -> Result<Self, CudaError> {
        let module = device.module(include_bytes!(concat!(env!("OUT_DIR"), "/quantised.fatbin")))?;
        Ok(Self {
            q4_k: kernels!(module, dtype, "q4_k"),
            q8_0: kernels!(module, dtype, "q8_0"),
            fp8: kernels!(module, dtype, "fp8"),
            _module: module,
            dtype,
        })
    }

    fn kernels(&self, kept: Kept) -> &Kernels {
        match kept {
            Kept::Q4_K => &self.q4_k,
            Kept::Q8_0 => &self.q8_0,
            Kept::Fp8 => &self.fp8,
        }
    }

    /// out = x W^T for at most [`Self::MOST_ROWS`] rows. x is `[rows][inputs]` of the dtype, 16-byte aligned; out is
    /// `[rows][outputs]` of the dtype, or of f32 with [`Epilogue::Residual`]. A row's bits do not depend on the
    /// number of rows.
    pub(crate) fn product(
        &self,
        device: &Device,
        w: &Quantised,
        x: u64,
        out: u64,
        rows: u32,
        epilogue: Epilogue,
    ) -> Result<(), CudaError> {
        assert!(rows <= Self::MOST_ROWS && x.is_multiple_of(16), "what a quantised product is given");
        if rows == 0 {
            return Ok(());
        }
        let kernels = self.kernels(w.kept);
        let columns = if rows <= 8 { 1 } else { 2 };
        let kernel = if rows <= 8 { kernels.eight } else { kernels.sixteen };
        let args: [Arg; 8] = [
            w.packed.at(0).into(),
            w.scales.at(0).into(),
            x.into(),
            out.into(),
            u32::from(epilogue == Epilogue::Residual).into(),
            rows.into(),
            w.outputs.into(),
            w.inputs.into(),
        ];
        device.launch(kernel, geometry(self.dtype, w.kept, w.outputs, w.inputs, columns), &args)
    }

    /// out (`[outputs][inputs]` of the dtype, 16-byte aligned) = W.
    pub(crate) fn dequantise(&self, device: &Device, w: &Quantised, out: u64) -> Result<(), CudaError> {
        assert!(out.is_multiple_of(16), "a matrix off its grid");
        if w.outputs == 0 || w.inputs == 0 {
            return Ok(());
        }
        let args: [Arg; 5] =
            [w.packed.at(0).into(), w.scales.at(0).into(), out.into(), w.outputs.into(), w.inputs.into()];
        let threads = 128;
        let launch = Launch { grid: [w.outputs, w.inputs.div_ceil(8 * threads), 1], threads, shared: 0 };
        device.launch(self.kernels(w.kept).whole, launch, &args)
    }

    /// The FFN of a Llama-3.1-8B, over so many matrices that none is still in the L2.
    pub(crate) fn timings(device: &Device) -> Result<Vec<Timing>, CudaError> {
        let mut timings = Vec::new();
        let products = Self::new(device, Dtype::Bf16)?;
        for (outputs, inputs) in [(14_336, 4096), (4096, 14_336), (4096, 4096)] {
            for (kernel, kept) in
                [("quantised q4_k", Kept::Q4_K), ("quantised q8_0", Kept::Q8_0), ("quantised fp8", Kept::Fp8)]
            {
                let bytes = kept.bytes(outputs, inputs);
                let packed: Vec<u8> = sample(kept, bytes);
                let copies = (300 << 20) / bytes + 1;
                let scales = vec![0.01f32; if kept == Kept::Fp8 { outputs } else { 0 }];
                let matrices: Result<Vec<Quantised>, _> = (0..copies)
                    .map(|_| Quantised::upload(device, kept, &packed, &scales, outputs, inputs))
                    .collect();
                let matrices = matrices?;
                let x: Vec<f32> =
                    (0..16 * inputs).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
                let x = Dtype::Bf16.upload(device, "inputs", &x)?;
                let out = Buffer::zeros(device, "outputs", 16 * outputs * 4)?;
                for rows in [1, 8, 16] {
                    let turn = std::cell::Cell::new(0);
                    let run = || {
                        turn.set((turn.get() + 1) % copies);
                        let w = &matrices[turn.get()];
                        products.product(device, w, x.at(0), out.at(0), rows, Epilogue::Store)
                    };
                    let microseconds = time(device, 7, 40, run)?;
                    timings.push(Timing {
                        kernel,
                        shape: format!("{rows} x {outputs} x {inputs}"),
                        microseconds,
                        bytes: (bytes + rows as usize * 2 * (inputs + outputs)) as u64,
                        operations: 2 * u64::from(rows) * (inputs * outputs) as u64,
                    });
                }
                let whole = Buffer::zeros(device, "a matrix", outputs * inputs * 2)?;
                let run = || products.dequantise(device, &matrices[0], whole.at(0));
                timings.push(Timing {
                    kernel: "dequantise",
                    shape: format!("{kernel} {outputs} x {inputs}"),
                    microseconds: time(device, 5, 5, run)?,
                    bytes: (bytes + outputs * inputs * 2) as u64,
                    operations: 0,
                });
            }
        }
        Ok(timings)
    }
}

/// Bytes of tiles that are no NaN in any format.
fn sample(kept: Kept, bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let tile = kept.tile_bytes();
    (0..bytes)
        .map(|at| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Below 64: the upper byte of a half that is small, and no NaN of E4M3.
            if at % tile < 2048 && kept != Kept::Fp8 {
                (state >> 33) as u8
            } else {
                (state >> 33) as u8 & 0x9f & 0x3f
            }
        })
        .collect()
}

/// Blocks of 32 outputs whose warps share the tiles along k, with shared memory to add them up; for floats a warp an
/// output.
fn geometry(dtype: Dtype, kept: Kept, outputs: u32, inputs: u32, columns: u32) -> Launch {
    if dtype == Dtype::F32 {
        return Launch { grid: [outputs.div_ceil(8), 1, 1], threads: 256, shared: 0 };
    }
    let (blocks, tiles) = (outputs.div_ceil(OUTPUTS), inputs.div_ceil(kept.inputs() as u32).max(1));
    let most = if blocks >= MANY_BLOCKS { MOST_WARPS / 2 } else { MOST_WARPS };
    // As few warps as take no more turns.
    let warps = tiles.div_ceil(tiles.div_ceil(most));
    Launch { grid: [blocks, 1, 1], threads: warps * 32, shared: warps * 2 * columns * 4 * 32 * 4 }
}
