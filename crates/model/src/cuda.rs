//! The CUDA back end: one rank's model on one NVIDIA GPU.

mod attention;
mod blas;
mod buffer;
mod device;
mod dtype;
mod elementwise;
mod error;
mod linear;
#[cfg(test)]
mod testing;
mod timing;

pub(crate) use buffer::Buffer;
pub use device::device_count;
pub(crate) use device::{Arg, Device, Kernel, Launch, Module};
pub use dtype::Dtype;
pub use error::CudaError;
pub use linear::Mode;
pub use timing::Timing;
