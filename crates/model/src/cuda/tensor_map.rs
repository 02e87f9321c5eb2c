//! What the TMA unit of Hopper has to know of a matrix whose tiles it copies.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys;

use super::CudaError;
use super::error::Doing;

/// A row-major matrix of 16-bit elements, cut into boxes of some rows by [`TensorMap::COLUMNS`] columns, which lie in shared
/// memory with their 16-byte pieces swizzled over 128 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Columns of a box: 128 bytes.
    pub(crate) const COLUMNS: u32 = 64;

    /// Of BF16 `rows` by `columns` (a multiple of 8) at a device address that is a multiple of 16. What a box holds beyond the
    /// last row is zero.
    pub(crate) fn of(address: u64, rows: u32, columns: u32, box_rows: u32) -> Result<Self, CudaError> {
        let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
        let sizes = [u64::from(columns), u64::from(rows)];
        let strides = [u64::from(columns) * 2];
        let boxes = [Self::COLUMNS, box_rows];
        let steps = [1, 1];
        // SAFETY: all arrays have an entry a dimension (strides one less) and live until the call returns, which only
        // writes the map. The address is not followed.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        made.result().doing("describing a matrix to the GPU")?;
        // SAFETY: the call succeeded and has written the map.
        Ok(Self(unsafe { map.assume_init() }))
    }

    pub(super) fn raw(&self) -> *const c_void {
        (&raw const self.0).cast()
    }
}
