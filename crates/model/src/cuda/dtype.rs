use half::{bf16, f16};

use super::buffer::Plain;
use super::{Buffer, CudaError, Device};

/// What activations, weights and KV are kept in on the GPU. Sums are float in all of them, and so is the residual
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// `values` on the device, rounded to this type.
    pub(crate) fn upload(
        self,
        device: &Device,
        what: &'static str,
        values: &[f32],
    ) -> Result<Buffer, CudaError> {
        let mut buffer = Buffer::zeros(device, what, values.len() * self.bytes())?;
        self.write(device, &mut buffer, 0, values)?;
        Ok(buffer)
    }

    /// Writes `values`, rounded to this type, from element `at` on.
    pub(crate) fn write(
        self,
        device: &Device,
        to: &mut Buffer,
        at: usize,
        values: &[f32],
    ) -> Result<(), CudaError> {
        fn rounded<T: Plain>(values: &[f32], round: impl Fn(f32) -> T) -> Vec<T> {
            values.iter().copied().map(round).collect()
        }
        let at = at * self.bytes();
        match self {
            Self::F32 => to.write(device, at, values),
            Self::Bf16 => to.write(device, at, &rounded(values, bf16::from_f32)),
            Self::F16 => to.write(device, at, &rounded(values, f16::from_f32)),
        }
    }

    /// `count` elements from element `at` on, as f32.
    #[cfg(test)]
    pub(crate) fn download(
        self,
        device: &Device,
        from: &Buffer,
        at: usize,
        count: usize,
    ) -> Result<Vec<f32>, CudaError> {
        let at = at * self.bytes();
        Ok(match self {
            Self::F32 => from.read(device, at, count)?,
            Self::Bf16 => from.read::<bf16>(device, at, count)?.into_iter().map(f32::from).collect(),
            Self::F16 => from.read::<f16>(device, at, count)?.into_iter().map(f32::from).collect(),
        })
    }

    /// What a value becomes when it is stored.
    #[cfg(test)]
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Bf16 => bf16::from_f32(value).into(),
            Self::F16 => f16::from_f32(value).into(),
        }
    }
}
