use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::config::{ByteSize, Check, Wrong, duration};
use daemon::{grpc, join};
use serde::{Deserialize, Serialize};

use crate::{Device, Dtype, Group, KvDtype, Spill, Weights};

/// One node that computes: where it listens, whom it joins, what it may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the node, unique in the cluster; drawn when it is left out.
    pub node: Option<String>,
    /// A model's name, a path to a .gguf file, or hf:org/repo[:file].
    pub model: Option<String>,
    /// Name under which the model is served; the file's name when it is left out.
    pub served_as: Option<String>,
    /// CPU threads of the model; all cores when it is left out.
    pub threads: Option<usize>,
    /// On a CPU under Linux: a core for each thread, the first for the one that steps.
    pub cores: Option<Vec<usize>>,
    /// On the CPU of a drafter: so many tokens, the most common ones and those that are no text, are all it draws.
    pub shortlist: Option<u32>,
    /// Most tokens of one sequence; the model's own context when it is left out.
    pub context: Option<u32>,
    /// Sequences (worker) or sessions (drafter) that run at once.
    pub slots: u32,
    /// Memory of the KV cache; when it is left out, 1 GiB on a CPU and nearly all that is free on a GPU.
    pub kv_memory: Option<ByteSize>,
    /// What keys and values are kept in: f16 (on a GPU: the dtype), or half the memory, int8 on a CPU and fp8 on a GPU
    /// with the dtype bf16; a worker's text is then approximate.
    pub kv_dtype: KvDtype,
    /// Of a worker: where pages go that the prefix cache has no room for.
    pub kv_spill: Option<Spill>,
    /// Where the model computes.
    pub device: Device,
    /// What a GPU keeps weights and KV in.
    pub dtype: Dtype,
    /// On a GPU: whether the matrices of layers are kept quantised instead of in the dtype: dequantised, kept or fp8.
    pub weights: Weights,
    /// On a GPU: a sequence has the same text alone and in any batch, for some speed.
    pub batch_invariant: bool,
    /// A `config.json`: weights of that shape are made up, and the model's files give the tokenizer alone. On a GPU,
    /// for measurements.
    pub dummy_weights: Option<PathBuf>,
    /// A worker's folder with a DuoAttention pattern: which heads need to see everything. Its answers are
    /// approximate; requests must say `quality: approximate`.
    pub head_map: Option<PathBuf>,
    /// With `head_map`: the share of all heads that see only a window.
    pub sparsity: Option<f64>,
    /// On a worker's CPU: the processes that share its model.
    pub group: Option<Group>,
    /// Bind more than loopback although there is no TLS yet.
    pub insecure: bool,
    /// Address of the admin port; none when it is left out.
    pub admin: Option<SocketAddr>,
    /// `http://host:port` under which others reach this node; the bound address when it is left out.
    pub advertise: Option<String>,
    /// For running answers to finish after a signal.
    #[serde(with = "duration")]
    pub drain: Duration,
    pub grpc: grpc::Config,
    pub join: join::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            model: None,
            served_as: None,
            threads: None,
            cores: None,
            shortlist: None,
            context: None,
            slots: 8,
            kv_memory: None,
            kv_dtype: KvDtype::F16,
            kv_spill: None,
            device: Device::Cpu,
            dtype: Dtype::Bf16,
            weights: Weights::Dequantised,
            batch_invariant: false,
            dummy_weights: None,
            head_map: None,
            sparsity: None,
            group: None,
            insecure: false,
            admin: None,
            advertise: None,
            drain: Duration::from_secs(30),
            grpc: grpc::Config::default(),
            join: join::Config::default(),
        }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        if !(1..=4096).contains(&self.slots) {
            return Err(Wrong::new("slots", "must be 1 to 4096"));
        }
        if self.threads == Some(0) {
            return Err(Wrong::new("threads", "must be at least 1"));
        }
        if let Some(cores) = &self.cores {
            if self.device != Device::Cpu {
                return Err(Wrong::new("cores", "is for CPUs"));
            }
            if cores.is_empty() || self.threads.is_some_and(|threads| threads != cores.len()) {
                return Err(Wrong::new("cores", "must be as many as threads"));
            }
        }
        match (self.kv_dtype, &self.device) {
            (KvDtype::Int8, Device::Cuda(_)) => {
                return Err(Wrong::new("kv_dtype", "int8 is built for CPUs only; a GPU has fp8"));
            }
            (KvDtype::Fp8, Device::Cpu) => {
                return Err(Wrong::new("kv_dtype", "fp8 is built for GPUs only; a CPU has int8"));
            }
            (KvDtype::Fp8, Device::Cuda(_)) if self.dtype != Dtype::Bf16 => {
                return Err(Wrong::new("kv_dtype", "fp8 is built for the dtype bf16 only"));
            }
            _ => {}
        }
        if let Some(tokens) = self.shortlist {
            if self.device != Device::Cpu {
                return Err(Wrong::new("shortlist", "is built for CPUs only"));
            }
            if tokens < 1024 {
                return Err(Wrong::new("shortlist", "must be at least 1024"));
            }
        }
        if self.context == Some(0) {
            return Err(Wrong::new("context", "must be at least 1"));
        }
        if self.kv_memory.is_some_and(|bytes| bytes < ByteSize::mib(1)) {
            return Err(Wrong::new("kv_memory", "must be at least 1MiB"));
        }
        if self.batch_invariant && self.device == Device::Cpu {
            return Err(Wrong::new(
                "batch_invariant",
                "is for GPUs: a CPU's text never depends on the batch",
            ));
        }
        if self.dummy_weights.is_some() && self.device == Device::Cpu {
            return Err(Wrong::new("dummy_weights", "is built for GPUs only"));
        }
        if self.weights != Weights::Dequantised && self.device == Device::Cpu {
            return Err(Wrong::new("weights", "is for GPUs: a CPU multiplies a file's blocks as they are"));
        }
        if self.weights != Weights::Dequantised && self.batch_invariant {
            return Err(Wrong::new("weights", "must be dequantised with batch_invariant"));
        }
        if self.sparsity.is_some_and(|sparsity| !(0.0..=1.0).contains(&sparsity)) {
            return Err(Wrong::new("sparsity", "must be 0 to 1"));
        }
        if self.head_map.is_some() && self.sparsity.is_none() {
            let why = "must be said with head_map: the share of heads that see only a window, such as 0.5";
            return Err(Wrong::new("sparsity", why));
        }
        if self.head_map.is_none() && self.sparsity.is_some() {
            return Err(Wrong::new("sparsity", "is of a head_map, and none is named"));
        }
        if let Some(spill) = &self.kv_spill {
            spill.check().map_err(|w| w.within("kv_spill"))?;
        }
        if let Some(group) = &self.group {
            if self.device != Device::Cpu {
                return Err(Wrong::new("group", "is built for CPUs; GPUs of a machine are named in device"));
            }
            group.check().map_err(|w| w.within("group"))?;
        }
        self.grpc.check().map_err(|w| w.within("grpc"))?;
        self.join.check().map_err(|w| w.within("join"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_kept_in_what_the_device_has() {
        let gpu = || Device::Cuda(vec![0]);
        let check = |device, dtype, kv_dtype| {
            let mut config = Config { device, dtype, kv_dtype, ..Config::default() };
            config.join.coordinators = "127.0.0.1:9090".parse().unwrap();
            config.check().map_err(|wrong| wrong.to_string())
        };
        for (device, dtype, kv_dtype) in [
            (Device::Cpu, Dtype::Bf16, KvDtype::Int8),
            (gpu(), Dtype::Bf16, KvDtype::Fp8),
            (gpu(), Dtype::F32, KvDtype::F16),
        ] {
            assert_eq!(check(device, dtype, kv_dtype), Ok(()));
        }
        for (device, dtype, kv_dtype, why) in [
            (gpu(), Dtype::Bf16, KvDtype::Int8, "a GPU has fp8"),
            (Device::Cpu, Dtype::Bf16, KvDtype::Fp8, "a CPU has int8"),
            (gpu(), Dtype::F16, KvDtype::Fp8, "the dtype bf16 only"),
            (gpu(), Dtype::F32, KvDtype::Fp8, "the dtype bf16 only"),
        ] {
            let error = check(device, dtype, kv_dtype).unwrap_err();
            assert!(error.contains("kv_dtype") && error.contains(why), "{error}");
        }
    }
}
