//! What pages of keys and values are made of.

use kvcache::PAGE_POSITIONS;

use super::Dtype;
use super::fine::FINE;
use crate::LoadError;

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvKept {
    /// In the dtype.
    #[default]
    Dtype,
    /// In FP8 (E4M3) with a scale for each (position, head), of the key and of the value, and a second code of the columns
    /// in which keys are large: little more than half the bytes, other text. Of models in BF16.
    Fp8,
}

impl KvKept {
    pub fn name(self) -> &'static str {
        match self {
            Self::Dtype => "dtype",
            Self::Fp8 => "fp8",
        }
    }

    /// Refuses what is not built.
    pub(crate) fn check(self, dtype: Dtype) -> Result<(), LoadError> {
        if self == Self::Dtype || dtype == Dtype::Bf16 {
            return Ok(());
        }
        let why = format!("fp8 is built for models in bf16, not in {}", dtype.name());
        Err(LoadError::BadOption { option: "kv", why })
    }

    /// Bytes of a key and a value of `width` elements each.
    pub(crate) fn position_bytes(self, dtype: Dtype, width: usize) -> usize {
        match self {
            Self::Dtype => 2 * width * dtype.bytes(),
            Self::Fp8 => 2 * (width + size_of::<f32>()) + FINE,
        }
    }
}

/// What kernels are not built for; [`KvKept::check`] says it earlier.
pub(crate) const FP8_OF_OTHERS: &str = "FP8 keys and values of a model that is not in BF16";

/// Keys and values of one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cells {
    /// Of queries, and of keys and values before they are kept.
    pub(crate) dtype: Dtype,
    pub(crate) kept: KvKept,
    pub(crate) head_dim: usize,
}

impl Cells {
    /// In the dtype.
    pub(crate) fn whole(dtype: Dtype, head_dim: usize) -> Self {
        Self { dtype, kept: KvKept::Dtype, head_dim }
    }

    /// Bytes of a page's keys and values of a head: `HEAD` in kernels/fp8.cuh.
    pub(crate) fn head(self) -> usize {
        PAGE_POSITIONS as usize * self.kept.position_bytes(self.dtype, self.head_dim)
    }

    /// Of a head's part of a page: where keys, values, second codes and scales of both begin, and their bytes a position.
    #[cfg(test)]
    pub(crate) fn parts(self) -> Vec<(usize, usize)> {
        let (row, positions) = (self.head_dim * self.element(), PAGE_POSITIONS as usize);
        let rows = match self.kept {
            KvKept::Dtype => vec![row, row],
            KvKept::Fp8 => vec![row, row, FINE, 4, 4],
        };
        let mut at = 0;
        let part = |row: usize| {
            at += positions * row;
            (at - positions * row, row)
        };
        rows.into_iter().map(part).collect()
    }

    /// Bytes of a stored element: what kernels count strides in.
    pub(crate) fn element(self) -> usize {
        match self.kept {
            KvKept::Dtype => self.dtype.bytes(),
            KvKept::Fp8 => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_take_little_more_than_half_and_lie_on_lines_of_the_cache() {
        for head_dim in [64, 128] {
            let whole = Cells::whole(Dtype::Bf16, head_dim);
            let codes = Cells { kept: KvKept::Fp8, ..whole };
            assert_eq!(whole.head(), 64 * head_dim);
            // Keys, values, 16 second codes a key, and a scale of four bytes for each.
            assert_eq!(codes.head(), 32 * head_dim + 256 + 128);
            assert!(codes.head().is_multiple_of(128) && codes.head() * 10 < whole.head() * 6);
        }
    }

    #[test]
    fn codes_of_other_models_are_refused_by_name() {
        for dtype in [Dtype::F16, Dtype::F32] {
            KvKept::Dtype.check(dtype).unwrap();
            let error = KvKept::Fp8.check(dtype).unwrap_err().to_string();
            assert!(error.contains("option kv: fp8 is built for models in bf16"), "{error}");
        }
        KvKept::Fp8.check(Dtype::Bf16).unwrap();
    }
}
