//! The CUDA back end: one rank's model on one NVIDIA GPU.

mod buffer;
mod device;
mod error;
#[cfg(test)]
mod testing;

pub(crate) use buffer::Buffer;
pub(crate) use device::{Arg, Device, Kernel, Launch, Module};
pub use device::device_count;
pub use error::CudaError;
