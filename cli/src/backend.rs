//! What computes a rank's model: the CPU, or GPUs where this binary has them built in.

use std::path::Path;

use anyhow::Result;
use engine::Model;
use model::{CpuModel, CpuOptions, Options, PageBudget};

use crate::group::{NoGroup, Place};

/// A back end and how it is set up.
#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    Cpu(CpuOptions),
    /// A part of a model that several processes share.
    Group(CpuOptions, Box<Place>),
    #[cfg(feature = "cuda")]
    Cuda {
        options: model::CudaOptions,
        /// Made-up weights of this shape instead of the model's.
        dummy: Option<std::path::PathBuf>,
    },
}

/// KV cache of a CPU when nothing is said.
const KV_BYTES: u64 = 1 << 30;
/// Of the GPU memory that is free when the weights are there.
#[cfg(feature = "cuda")]
const KV_PERCENT: u8 = 90;
/// Of made-up weights.
#[cfg(feature = "cuda")]
const DUMMY_SEED: u64 = 1;

impl Backend {
    /// What a rank's configuration asks for; `shortlist` holds the tokens that its `shortlist` comes to.
    pub fn of(config: &rank::Config, shortlist: Option<Vec<u32>>) -> Result<Self> {
        match &config.device {
            rank::Device::Cpu => {
                let kv = match config.kv_dtype {
                    rank::KvDtype::F16 => model::KvDtype::F16,
                    rank::KvDtype::Int8 => model::KvDtype::Int8,
                    rank::KvDtype::Fp8 => anyhow::bail!("rank.kv_dtype: fp8 is built for GPUs only"),
                };
                Ok(Self::Cpu(CpuOptions { cores: config.cores.clone().unwrap_or_default(), shortlist, kv }))
            }
            rank::Device::Cuda(gpus) => Self::cuda(gpus, config),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(gpus: &[u32], config: &rank::Config) -> Result<Self> {
        let options = model::CudaOptions {
            ordinals: gpus.iter().map(|&gpu| gpu as usize).collect(),
            dtype: match config.dtype {
                rank::Dtype::Bf16 => model::Dtype::Bf16,
                rank::Dtype::F16 => model::Dtype::F16,
                rank::Dtype::F32 => model::Dtype::F32,
            },
            weights: match config.weights {
                rank::Weights::Dequantised => model::Weights::Dequantised,
                rank::Weights::Kept => model::Weights::Kept,
                rank::Weights::Fp8 => model::Weights::Fp8,
            },
            kv: match config.kv_dtype {
                rank::KvDtype::F16 => model::KvKept::Dtype,
                rank::KvDtype::Fp8 => model::KvKept::Fp8,
                rank::KvDtype::Int8 => anyhow::bail!("rank.kv_dtype: int8 is built for CPUs only"),
            },
            mode: if config.batch_invariant { model::Mode::Invariant } else { model::Mode::Fast },
            ..model::CudaOptions::default()
        };
        Ok(Self::Cuda { options, dummy: config.dummy_weights.clone() })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: &[u32], config: &rank::Config) -> Result<Self> {
        anyhow::bail!(
            "rank.device is {}, and this binary was built without GPUs; build it with `make cuda`",
            config.device
        )
    }

    /// The same as a part of a group.
    pub fn within(self, place: Place) -> Result<Self> {
        match self {
            Self::Cpu(cpu) => Ok(Self::Group(cpu, Box::new(place))),
            _ => anyhow::bail!("rank.group is built for CPUs"),
        }
    }

    /// Its place in a group, if it has one.
    pub fn group(&self) -> Option<(Place, CpuOptions)> {
        match self {
            Self::Group(cpu, place) => Some(((**place).clone(), cpu.clone())),
            _ => None,
        }
    }

    /// Loads a model.
    pub fn load(&self, path: &Path, options: &Options) -> Result<Box<dyn Model>, NoGroup> {
        match self {
            Self::Cpu(cpu) => Ok(Box::new(CpuModel::load_as(path, options, cpu)?)),
            Self::Group(cpu, place) => Ok(Box::new(place.load(path, options, cpu)?)),
            #[cfg(feature = "cuda")]
            Self::Cuda { options: cuda, dummy: None } => {
                Ok(Box::new(warm(model::CudaModel::load(path, options, cuda)?)?))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda { options: cuda, dummy: Some(config) } => {
                Ok(Box::new(warm(model::CudaModel::dummy(config, DUMMY_SEED, options, cuda)?)?))
            }
        }
    }

    /// Room for keys and values when nothing is said.
    pub fn pages(&self) -> PageBudget {
        match self {
            Self::Cpu(_) | Self::Group(..) => PageBudget::Bytes(KV_BYTES),
            #[cfg(feature = "cuda")]
            Self::Cuda { .. } => PageBudget::Free(KV_PERCENT),
        }
    }

    /// What the arithmetic adds to the numerics fingerprint: a GPU's bits are not the CPU's, and in the fast mode they
    /// are not even its own in another batch.
    pub fn arithmetic(&self) -> String {
        match self {
            Self::Cpu(cpu) | Self::Group(cpu, ..) => match cpu.kv {
                model::KvDtype::F16 => String::new(),
                model::KvDtype::Int8 => "+kv-int8".to_owned(),
            },
            #[cfg(feature = "cuda")]
            Self::Cuda { options: cuda, dummy } => {
                let mode = match cuda.mode {
                    model::Mode::Fast => "fast",
                    model::Mode::Invariant => "invariant",
                };
                let weights = match cuda.weights {
                    model::Weights::Dequantised => "",
                    model::Weights::Kept => "-kept",
                    model::Weights::Fp8 => "-fp8",
                };
                let kv = match cuda.kv {
                    model::KvKept::Dtype => "",
                    model::KvKept::Fp8 => "-kvfp8",
                };
                let made_up = if dummy.is_some() { "+dummy" } else { "" };
                format!("+cuda-{}{weights}{kv}-{mode}{made_up}", cuda.dtype.name())
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn warm(mut model: model::CudaModel) -> Result<model::CudaModel, model::LoadError> {
    model.warm()?;
    Ok(model)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_keeps_is_in_its_fingerprint() {
        let of = |kv_dtype, weights, batch_invariant| {
            let device = rank::Device::Cuda(vec![0]);
            let config =
                rank::Config { device, kv_dtype, weights, batch_invariant, ..rank::Config::default() };
            Backend::of(&config, None).map(|backend| backend.arithmetic())
        };
        let (whole, codes) = (rank::Weights::Dequantised, rank::Weights::Fp8);
        assert_eq!(of(rank::KvDtype::F16, whole, false).unwrap(), "+cuda-bf16-fast");
        assert_eq!(of(rank::KvDtype::Fp8, whole, false).unwrap(), "+cuda-bf16-kvfp8-fast");
        assert_eq!(of(rank::KvDtype::Fp8, whole, true).unwrap(), "+cuda-bf16-kvfp8-invariant");
        assert_eq!(of(rank::KvDtype::Fp8, codes, false).unwrap(), "+cuda-bf16-fp8-kvfp8-fast");
        assert!(of(rank::KvDtype::Int8, whole, false).unwrap_err().to_string().contains("kv_dtype"));
    }
}
