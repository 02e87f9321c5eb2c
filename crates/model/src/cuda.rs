//! The CUDA back end: a model on one NVIDIA GPU, or on several that share it.
//!
//! [`CudaModel`] executes steps as the CPU's model does. Its rows lie in device arrays (`batch`), go through the layers
//! (`forward`: products in `matrix`, by `linear`, `blas` and `quantised`, the rest in `elementwise` and `attention`; few
//! rows of large layers by `persistent`, a batch of them by `streamed` and `wide`) over keys and values in pages (`kv`, of `cells`
//! and, in FP8, `fine`; rows of draft trees by `trees`), and are drawn where they are (`draw`). Kernels are in `kernels/`,
//! each with its launcher here and a reference on the CPU in the launcher's tests.
//!
//! Several GPUs (`ranks`) hold a part of each layer (`shard`) and sum their results (`exchange`, `nccl`). Pages go from
//! one model to another by `handoff`, and layer by layer to other processes and the tier by `host_pages`.
//!
//! The fast mode uses whatever is fastest for a number of rows; the invariant mode gives a row the same bits alone and
//! in any batch ([`Mode`]).

mod attention;
mod batch;
mod blas;
mod buffer;
mod ceilings;
mod cells;
mod device;
mod draw;
mod dtype;
mod early;
mod elementwise;
mod error;
mod exchange;
mod fine;
mod forward;
mod handoff;
mod host_pages;
mod kv;
mod linear;
mod matrix;
mod model;
mod nccl;
mod pages;
mod persistent;
mod pinned;
mod quantised;
mod ranks;
mod shard;
mod streamed;
mod tensor_map;
#[cfg(test)]
mod testing;
mod timing;
mod trees;
mod weights;
mod wide;

pub(crate) use buffer::{Buffer, HostMemory};
pub use ceilings::{Ceilings, Shape, ceilings, kernel_timings};
pub use cells::KvKept;
pub(crate) use cells::{Cells, FP8_OF_OTHERS};
pub use device::device_count;
pub(crate) use device::{Arg, Device, Kernel, Launch, Module};
pub use dtype::Dtype;
pub use error::CudaError;
pub use exchange::exchange_timings;
pub use handoff::{HandOff, Moved, PageMove, TransferRate, host_rates, transfer_rates};
pub use linear::Mode;
pub use matrix::Weights;
pub use model::{CudaModel, CudaOptions};
pub use persistent::Persist;
pub(crate) use pinned::Pinned;
pub use timing::Timing;
