//! The CUDA back end: one rank's model on one NVIDIA GPU.

mod buffer;
mod device;
mod draw;
mod dtype;
mod error;
#[cfg(test)]
mod testing;
mod timing;

pub(crate) use buffer::Buffer;
pub(crate) use device::{Arg, Device, Kernel, Launch, Module};
pub use device::device_count;
pub use dtype::Dtype;
pub use error::CudaError;
pub use timing::Timing;
