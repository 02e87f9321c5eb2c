//! What computes a rank's model: the CPU, or GPUs where this binary has them built in.

use std::path::Path;

use anyhow::Result;
use engine::Model;
use model::{CpuModel, LoadError, Options, PageBudget};

/// A back end and how it is set up.
#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(model::CudaOptions),
}

/// KV cache of a CPU when nothing is said.
const KV_BYTES: u64 = 1 << 30;
/// Of the GPU memory that is free when the weights are there.
#[cfg(feature = "cuda")]
const KV_PERCENT: u8 = 90;

impl Backend {
    /// What a rank's configuration asks for.
    pub fn of(config: &rank::Config) -> Result<Self> {
        match &config.device {
            rank::Device::Cpu => Ok(Self::Cpu),
            rank::Device::Cuda(gpus) => Self::cuda(gpus, config),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(gpus: &[u32], config: &rank::Config) -> Result<Self> {
        let [ordinal] = gpus else {
            anyhow::bail!(
                "rank.device: a model over several GPUs is not built into `worker` yet; name one GPU"
            );
        };
        Ok(Self::Cuda(model::CudaOptions {
            ordinal: *ordinal as usize,
            dtype: match config.dtype {
                rank::Dtype::Bf16 => model::Dtype::Bf16,
                rank::Dtype::F16 => model::Dtype::F16,
                rank::Dtype::F32 => model::Dtype::F32,
            },
            mode: if config.batch_invariant { model::Mode::Invariant } else { model::Mode::Fast },
            ..model::CudaOptions::default()
        }))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: &[u32], config: &rank::Config) -> Result<Self> {
        anyhow::bail!(
            "rank.device is {}, and this binary was built without GPUs; build it with `make cuda`",
            config.device
        )
    }

    /// Loads a model.
    pub fn load(&self, path: &Path, options: &Options) -> Result<Box<dyn Model>, LoadError> {
        match self {
            Self::Cpu => Ok(Box::new(CpuModel::load(path, options)?)),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Ok(Box::new(model::CudaModel::load(path, options, cuda)?)),
        }
    }

    /// Room for keys and values when nothing is said.
    pub fn pages(&self) -> PageBudget {
        match self {
            Self::Cpu => PageBudget::Bytes(KV_BYTES),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => PageBudget::Free(KV_PERCENT),
        }
    }

    /// What the arithmetic adds to the numerics fingerprint: a GPU's bits are not the CPU's, and in the fast mode they
    /// are not even its own in another batch.
    pub fn arithmetic(&self) -> String {
        match self {
            Self::Cpu => String::new(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => {
                let mode = match cuda.mode {
                    model::Mode::Fast => "fast",
                    model::Mode::Invariant => "invariant",
                };
                format!("+cuda-{}-{mode}", cuda.dtype.name())
            }
        }
    }
}
