use request::SamplingParams;

use crate::error::WireError;
use crate::v1;

impl From<SamplingParams> for v1::SamplingParams {
    fn from(params: SamplingParams) -> Self {
        Self {
            temperature: Some(params.temperature),
            top_k: Some(params.top_k),
            top_p: Some(params.top_p),
            min_p: Some(params.min_p),
            ..Self::default()
        }
    }
}

impl TryFrom<v1::SamplingParams> for SamplingParams {
    type Error = WireError;

    /// Absent fields take the defaults that `sampling.proto` names: temperature 1, no filter.
    fn try_from(from: v1::SamplingParams) -> Result<Self, WireError> {
        neutral("presence_penalty", from.presence_penalty, 0.0)?;
        neutral("frequency_penalty", from.frequency_penalty, 0.0)?;
        neutral("repetition_penalty", from.repetition_penalty, 1.0)?;
        if !from.logit_bias.is_empty() {
            return Err(WireError::not_built("logit_bias"));
        }
        let plain = Self::at(1.0);
        let params = Self {
            temperature: from.temperature.unwrap_or(plain.temperature),
            top_k: from.top_k.unwrap_or(plain.top_k),
            top_p: from.top_p.unwrap_or(plain.top_p),
            min_p: from.min_p.unwrap_or(plain.min_p),
        };
        params.validate()?;
        Ok(params)
    }
}

fn neutral(field: &'static str, value: Option<f32>, neutral: f32) -> Result<(), WireError> {
    match value {
        Some(v) if !v.is_finite() => Err(WireError::invalid(field, format!("{v} is not a finite number"))),
        Some(v) if v != neutral => Err(WireError::not_built(field)),
        _ => Ok(()),
    }
}
