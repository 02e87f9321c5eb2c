//! Weights and arithmetic: a GGUF file or a Hugging Face folder becomes an [`engine::Model`] on the CPU.
//!
//! [`CpuModel::load`] maps the files, reads what their metadata means (`arch`), and executes steps: rows
//! of any sequences flattened into one batch, keys and values in pages (`cache`). The kernels
//! multiply the files' blocks, packed sixteen outputs side by side, and obey the arithmetic contract written
//! in `quant`: the bits of a row's logits do not depend on batch, chunking, threads or processor.
//!
//! Not here: reading the GGUF header (`gguf`), which page is whose (`kvcache`), which rows run
//! (`scheduler`), drawing from logits (`sampling`), text (`text`).
//! Start at [`CpuModel`], then `cpu/forward.rs`, then `quant.rs`.
// Mapping files and calling instructions that were detected at run time cannot be said in safe Rust;
// each block carries its reason.
#![allow(unsafe_code)]

mod arch;
mod cache;
mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod description;
mod early;
mod error;
mod files;
mod fingerprint;
mod pattern;
mod quant;
mod simd;
mod weights;

pub use arch::refuse_split;
pub use cache::KvDtype;
pub use cpu::{Asked, CpuModel, CpuOptions, Group, GroupError, GroupPlan, memory_bandwidth};
#[cfg(feature = "cuda")]
pub use cuda::{
    Ceilings, CudaError, CudaModel, CudaOptions, Dtype, HandOff, KvKept, Mode, Moved, PageMove, Persist,
    Shape, Timing, TransferRate, Weights, ceilings, device_count, exchange_timings, host_rates,
    kernel_timings, transfer_rates,
};
pub use description::{Description, TensorType};
pub use error::LoadError;
pub use fingerprint::{Fingerprint, fingerprint};
pub use pattern::{Pattern, PatternError};
pub use simd::Level;

use kvcache::HeadMap;

/// Part of the numerics fingerprint: changes whenever the same weights and tokens could give other
/// logits.
pub const ARITHMETIC_VERSION: u32 = 2;

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most positions of one sequence; `None` takes the model's own.
    pub context: Option<u32>,
    /// Ids that the tokenizer knows; those beyond are padding of the output layer (Qwen has 151665 of
    /// 151936) and are neither taken nor drawn. `None` takes the layer's width.
    pub vocab: Option<u32>,
    /// Sequences that run at once.
    pub slots: u32,
    /// Room for keys and values.
    pub pages: PageBudget,
    /// Threads that compute; the result does not depend on it.
    pub threads: usize,
    /// Which heads look back how far; `None`: as the model's files say. Anything else is approximate.
    pub heads: Option<HeadMap>,
}

/// Room for keys and values of all sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageBudget {
    /// Pages of 16 positions.
    Pages(u32),
    /// As many pages as fit.
    Bytes(u64),
    /// So many per cent of the device memory that is free when the weights are loaded; GPUs only.
    Free(u8),
}

impl Options {
    /// More would only contend for memory; a typing error is likelier.
    const MOST_THREADS: usize = 1024;
    const MOST_SLOTS: u32 = 65_536;

    fn validate(&self) -> Result<(), LoadError> {
        let bad = |option, why: String| Err(LoadError::BadOption { option, why });
        if self.context == Some(0) {
            return bad("context", "must be at least 1".to_owned());
        }
        if !(1..=Self::MOST_SLOTS).contains(&self.slots) {
            return bad("slots", format!("{} is not between 1 and {}", self.slots, Self::MOST_SLOTS));
        }
        if !(1..=Self::MOST_THREADS).contains(&self.threads) {
            return bad("threads", format!("{} is not between 1 and {}", self.threads, Self::MOST_THREADS));
        }
        Ok(())
    }
}
