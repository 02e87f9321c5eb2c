//! The CUDA back end: one rank's model on one NVIDIA GPU.

mod buffer;
mod device;
mod draw;
mod dtype;
mod error;
mod pages;
mod quantised;
#[cfg(test)]
mod testing;
mod timing;

pub(crate) use buffer::Buffer;
pub use device::device_count;
pub(crate) use device::{Arg, Device, Kernel, Launch, Module};
pub use dtype::Dtype;
pub use error::CudaError;
pub use timing::Timing;
