use crate::InvalidField;

/// How a token is drawn from the model's distribution. Neutral values switch a filter off.
///
/// Order of the filters: temperature, top-k, top-p, min-p (as vLLM), typical-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches it; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is closest to the expected one until their probability reaches it
    /// (locally typical sampling, arXiv 2202.00666); 1 keeps all.
    pub typical_p: f32,
}

impl SamplingParams {
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };

    /// Plain sampling at a temperature, no filter.
    pub const fn at(temperature: f32) -> Self {
        Self { temperature, ..Self::GREEDY }
    }

    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    pub fn validate(&self) -> Result<(), InvalidField> {
        if !(self.temperature == 0.0 || (0.01..=2.0).contains(&self.temperature)) {
            return Err(InvalidField::new(
                "temperature",
                format!("{} is not 0 or between 0.01 and 2", self.temperature),
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(InvalidField::new("top_p", format!("{} is not above 0 and at most 1", self.top_p)));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(InvalidField::new("min_p", format!("{} is not between 0 and 1", self.min_p)));
        }
        if !(self.typical_p > 0.0 && self.typical_p <= 1.0) {
            return Err(InvalidField::new(
                "typical_p",
                format!("{} is not above 0 and at most 1", self.typical_p),
            ));
        }
        Ok(())
    }
}

/// Parameters plus the key of the noise: with the logits and a position, they decide the token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub params: SamplingParams,
    pub seed: u64,
    /// Index of the choice (`n` > 1 gives each choice noise of its own).
    pub choice: u32,
}

impl Sampling {
    pub const GREEDY: Self = Self { params: SamplingParams::GREEDY, seed: 0, choice: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_parameters_name_their_field() {
        let ok = SamplingParams::at(0.8);
        assert!(ok.validate().is_ok());
        assert!(SamplingParams::GREEDY.validate().is_ok());
        for (bad, field) in [
            (SamplingParams { temperature: -1.0, ..ok }, "temperature"),
            (SamplingParams { temperature: f32::NAN, ..ok }, "temperature"),
            (SamplingParams { temperature: 2.1, ..ok }, "temperature"),
            (SamplingParams { top_p: 0.0, ..ok }, "top_p"),
            (SamplingParams { top_p: f32::NAN, ..ok }, "top_p"),
            (SamplingParams { min_p: 1.5, ..ok }, "min_p"),
            (SamplingParams { typical_p: 0.0, ..ok }, "typical_p"),
        ] {
            assert_eq!(bad.validate().unwrap_err().field, field);
        }
    }
}
