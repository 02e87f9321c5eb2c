use crate::TensorKind;

/// Where one tensor lies and how it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// 0 to 4 sizes in ggml's order: `dims[0]` runs fastest (a matrix is `[inputs, outputs]`).
    pub dims: Vec<u64>,
    pub kind: TensorKind,
    /// Bytes from [`crate::Header::data_offset`].
    pub offset: u64,
}

impl TensorInfo {
    /// Product of the sizes. Saturates; for a tensor of a [`crate::Header`] it is exact.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1, |n, &dim| n.saturating_mul(dim))
    }

    /// Bytes in the file. Saturates; for a tensor of a [`crate::Header`] it is exact.
    pub fn bytes(&self) -> u64 {
        (self.elements() / self.kind.block_elems()).saturating_mul(self.kind.block_bytes())
    }

    /// What is wrong with the tensor for itself: sizes, blocks, alignment.
    pub(crate) fn fault(&self, alignment: u64) -> Option<String> {
        if self.dims.contains(&0) {
            return Some(format!("has a dimension of size 0 in {:?}", self.dims));
        }
        let elements = self.dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let blocks = elements.map(|n| n / self.kind.block_elems());
        if blocks.and_then(|n| n.checked_mul(self.kind.block_bytes())).is_none() {
            return Some(format!("has sizes {:?}, more than 2^64 bytes", self.dims));
        }
        let row = self.dims.first().copied().unwrap_or(1);
        if !row.is_multiple_of(self.kind.block_elems()) {
            return Some(format!(
                "has rows of {row} elements, not whole {} blocks of {}",
                self.kind,
                self.kind.block_elems()
            ));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Some(format!("starts at {}, not a multiple of the alignment {alignment}", self.offset));
        }
        None
    }
}
