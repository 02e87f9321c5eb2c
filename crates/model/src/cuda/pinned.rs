//! Memory of the host that a GPU copies many bytes from and to by itself. Small things that kernels read in place are in
//! [`super::HostMemory`].

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use super::error::Doing;
use super::{Buffer, CudaError, Device};

/// Memory of the host that a GPU copies from and to by itself.
pub(crate) struct Pinned {
    address: *mut u8,
    bytes: usize,
    stream: Arc<CudaStream>,
    /// A copy may be under way.
    is_busy: bool,
}

impl Pinned {
    /// `bytes` bytes of zeros, for copies on the stream of `device`.
    pub(crate) fn zeros(device: &Device, what: &'static str, bytes: usize) -> Result<Self, CudaError> {
        device.bind()?;
        // SAFETY: plain memory, freed once by `drop`. No bytes would be refused.
        let address: *mut u8 = unsafe { result::malloc_host(bytes.max(16), 0) }.doing(what)?.cast();
        // SAFETY: the allocation has so many bytes, and nobody else knows of it.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Self { address, bytes, stream: Arc::clone(&device.stream), is_busy: false })
    }

    /// Queues a copy of the first `bytes` bytes of `from` to the beginning of this.
    pub(crate) fn receive(&mut self, from: &Buffer, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        assert!(bytes <= self.bytes && bytes <= from.bytes(), "a copy beyond the memory");
        self.stream.context().bind_to_thread().doing("binding the GPU to the thread")?;
        self.is_busy = true;
        // SAFETY: inside both allocations. The slice is not used but for its address and length; nobody reads or writes
        // these bytes before `bytes` has waited.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.address, bytes);
            result::memcpy_dtoh_async(to, from.at(0), self.stream.cu_stream())
        }
        .doing("copying from the GPU")
    }

    /// Queues a copy of the first `bytes` bytes of this to the beginning of `to`.
    pub(crate) fn send(&mut self, to: &Buffer, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        assert!(bytes <= self.bytes && bytes <= to.bytes(), "a copy beyond the memory");
        self.stream.context().bind_to_thread().doing("binding the GPU to the thread")?;
        self.is_busy = true;
        // SAFETY: inside both allocations; nobody writes these bytes before `bytes` has waited.
        unsafe {
            let from = std::slice::from_raw_parts(self.address, bytes);
            result::memcpy_htod_async(to.at(0), from, self.stream.cu_stream())
        }
        .doing("copying to the GPU")
    }

    /// Waits for the copies under way.
    pub(crate) fn bytes(&mut self) -> Result<&mut [u8], CudaError> {
        if self.is_busy {
            self.stream.synchronize().doing("waiting for the GPU")?;
            self.is_busy = false;
        }
        // SAFETY: allocated and written by `zeros`, borrowed with `self`, and no GPU uses them now.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A GPU that cannot be waited for may still write here: the memory is leaked then.
        if self.stream.context().bind_to_thread().is_ok() && self.bytes().is_ok() {
            // SAFETY: allocated by `zeros`, freed once, and no copy is under way.
            let _ = unsafe { result::free_host(self.address.cast()) };
        }
    }
}
