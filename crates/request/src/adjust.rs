use crate::{InvalidField, TokenId};

/// Changes to the logits before a token is drawn, in this order: bias, then penalties (as vLLM).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adjustments {
    /// Added to the logit of a token; -100 bans it in practice, `f32::NEG_INFINITY` is not taken.
    pub logit_bias: Vec<(TokenId, f32)>,
    pub penalties: Penalties,
}

/// Penalties for tokens that appeared before. Output that was delivered by an earlier attempt counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Positive logits of tokens in prompt or output are divided by it, others multiplied
    /// (arXiv 1909.05858). 1 is neutral.
    pub repetition: f32,
    /// Subtracted once from the logit of every token in the output. 0 is neutral.
    pub presence: f32,
    /// Subtracted for every occurrence in the output. 0 is neutral.
    pub frequency: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Penalties {
    pub fn is_neutral(&self) -> bool {
        *self == Self::default()
    }
}

impl Adjustments {
    /// Most biased tokens; OpenAI takes as many.
    pub const MOST_BIASES: usize = 1024;

    pub fn is_neutral(&self) -> bool {
        self.logit_bias.is_empty() && self.penalties.is_neutral()
    }

    pub fn validate(&self) -> Result<(), InvalidField> {
        let Penalties { repetition, presence, frequency } = self.penalties;
        // A much smaller one would turn logits into infinities.
        if !(0.01..=10.0).contains(&repetition) {
            return Err(InvalidField::new(
                "repetition_penalty",
                format!("{repetition} is not between 0.01 and 10"),
            ));
        }
        for (value, field) in [(presence, "presence_penalty"), (frequency, "frequency_penalty")] {
            if !(-2.0..=2.0).contains(&value) {
                return Err(InvalidField::new(field, format!("{value} is not between -2 and 2")));
            }
        }
        if self.logit_bias.len() > Self::MOST_BIASES {
            return Err(InvalidField::new(
                "logit_bias",
                format!(
                    "{} tokens are named; at most {} are taken",
                    self.logit_bias.len(),
                    Self::MOST_BIASES
                ),
            ));
        }
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, b)| !(-100.0..=100.0).contains(b)) {
            return Err(InvalidField::new(
                "logit_bias",
                format!("{bias} of token {token} is not between -100 and 100"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_adjustments_name_their_field() {
        let with = |penalties| Adjustments { penalties, ..Adjustments::default() };
        assert!(Adjustments::default().validate().is_ok());
        for (bad, field) in [
            (with(Penalties { repetition: 0.0, ..Penalties::default() }), "repetition_penalty"),
            (with(Penalties { repetition: 1e-38, ..Penalties::default() }), "repetition_penalty"),
            (with(Penalties { repetition: f32::NAN, ..Penalties::default() }), "repetition_penalty"),
            (with(Penalties { presence: 2.5, ..Penalties::default() }), "presence_penalty"),
            (with(Penalties { frequency: f32::INFINITY, ..Penalties::default() }), "frequency_penalty"),
            (Adjustments { logit_bias: vec![(TokenId(3), 101.0)], ..Adjustments::default() }, "logit_bias"),
            (
                Adjustments { logit_bias: vec![(TokenId(3), 0.0); 1025], ..Adjustments::default() },
                "logit_bias",
            ),
        ] {
            assert_eq!(bad.validate().unwrap_err().field, field);
        }
    }
}
