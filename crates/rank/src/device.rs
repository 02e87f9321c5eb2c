//! Where a rank computes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `cpu`, or `cuda:` and the numbers of the GPUs that share the model (`cuda` alone: the first).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    #[default]
    Cpu,
    /// At least one, none twice.
    Cuda(Vec<u32>),
}

/// What weights, activations and KV are kept in on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    #[default]
    Bf16,
    F16,
    F32,
}

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// On a CPU; on a GPU the dtype.
    #[default]
    F16,
    /// On a CPU: half the memory, approximate text.
    Int8,
    /// FP8 (E4M3), on a GPU: the same of BF16.
    Fp8,
}

/// What a GPU keeps the matrices of layers in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// All in the dtype.
    #[default]
    Dequantised,
    /// The Q4_K and Q8_0 blocks of a GGUF file as they are, the others in the dtype.
    Kept,
    /// FP8 (E4M3), quantised at load: other text than the model's own.
    Fp8,
}

/// A device that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device; use cpu, cuda, cuda:1, or cuda:0,1 for two GPUs that share the model")]
pub struct NoDevice(String);

impl Device {
    /// Most rows of one step when nothing is said: how long a prompt may hold up others. A GPU computes a long chunk in
    /// less time than a CPU a short one.
    pub fn token_budget(&self) -> u32 {
        match self {
            Self::Cpu => 128,
            Self::Cuda(_) => 2048,
        }
    }
}

impl FromStr for Device {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        let no = || NoDevice(text.to_owned());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(vec![0])),
            Some(("cuda", numbers)) => {
                let gpus: Result<Vec<u32>, _> = numbers.split(',').map(str::parse).collect();
                let gpus = gpus.map_err(|_| no())?;
                let twice = (1..gpus.len()).any(|i| gpus[..i].contains(&gpus[i]));
                if twice { Err(no()) } else { Ok(Self::Cuda(gpus)) }
            }
            _ => Err(no()),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = NoDevice;

    fn try_from(text: String) -> Result<Self, NoDevice> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpus) => {
                let gpus: Vec<String> = gpus.iter().map(u32::to_string).collect();
                write!(f, "cuda:{}", gpus.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(vec![0])),
            ("cuda:3", Device::Cuda(vec![3])),
            ("cuda:0,1", Device::Cuda(vec![0, 1])),
        ] {
            let read: Device = text.parse().unwrap();
            assert_eq!(read, device);
            assert_eq!(read.to_string().parse::<Device>().unwrap(), device);
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:0,0", "cuda:-1", "cpu:0", "CUDA"] {
            let error = bad.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("use cpu, cuda"), "{error}");
        }
    }
}
