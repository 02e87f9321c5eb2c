use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::error::Doing;
use super::{CudaError, Device};

/// Device memory. Its bytes are whatever the kernels take them for.
pub(crate) struct Buffer {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Buffer {
    /// `bytes` bytes of zeros; an error says how much is free.
    pub(crate) fn zeros(device: &Device, what: &'static str, bytes: usize) -> Result<Self, CudaError> {
        device.bind()?;
        // SAFETY: plain device memory, freed once by `drop`. An allocation of no bytes is refused by the driver.
        let allocated = unsafe { result::malloc_sync(bytes.max(16)) };
        let address = allocated.map_err(|source| match result::mem_get_info() {
            Ok((free, _)) if free < bytes => CudaError::Memory {
                what,
                bytes: bytes as u64,
                free: free as u64,
                advice: "use fewer pages, a smaller model or another GPU",
            },
            _ => CudaError::Driver { what, source },
        })?;
        let buffer = Self { address, bytes, context: Arc::clone(&device.context) };
        // SAFETY: inside the allocation.
        unsafe { result::memset_d8_async(address, 0, bytes, device.stream.cu_stream()) }.doing(what)?;
        Ok(buffer)
    }

    /// A copy of `values` on the device.
    pub(crate) fn of<T: Plain>(device: &Device, what: &'static str, values: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::zeros(device, what, size_of_val(values))?;
        buffer.write(device, 0, values)?;
        Ok(buffer)
    }

    /// Copies `values` to byte offset `at`, behind all queued work; `values` may be changed when it returns.
    pub(crate) fn write<T: Plain>(
        &mut self,
        device: &Device,
        at: usize,
        values: &[T],
    ) -> Result<(), CudaError> {
        let bytes = size_of_val(values);
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "a write beyond the buffer");
        device.bind()?;
        // SAFETY: the range is inside the allocation, and `values` is plain data. Pageable memory is staged by the
        // driver before the call returns.
        unsafe { result::memcpy_htod_async(self.address + at as u64, values, device.stream.cu_stream()) }
            .doing("copying to the GPU")
    }

    /// Waits for all queued work and copies `count` values from byte offset `at`.
    pub(crate) fn read<T: Plain>(
        &self,
        device: &Device,
        at: usize,
        count: usize,
    ) -> Result<Vec<T>, CudaError> {
        let bytes = count * size_of::<T>();
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.bytes), "a read beyond the buffer");
        let mut values = vec![T::default(); count];
        device.bind()?;
        // SAFETY: the range is inside the allocation; any bytes are a value of a `Plain` type.
        unsafe {
            result::memcpy_dtoh_async(&mut values, self.address + at as u64, device.stream.cu_stream())
        }
        .doing("copying from the GPU")?;
        device.synchronize()?;
        Ok(values)
    }

    /// Its address plus `offset` bytes, for a kernel.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.bytes);
        self.address + offset as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `zeros`, freed once; the driver waits for kernels that still use it. A failure
            // leaks it, which is all that can be done here.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Values that are their bytes, any bytes.
pub(crate) trait Plain: Copy + Default {}

impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for half::bf16 {}
impl Plain for half::f16 {}
