use request::{Adjustments, Penalties, SamplingParams, TokenId};

use crate::error::{WireError, at_most};
use crate::v1;

/// One message says both how logits are changed and how a token is drawn from them.
pub(crate) fn to_wire(params: SamplingParams, adjust: &Adjustments) -> v1::SamplingParams {
    let Penalties { repetition, presence, frequency } = adjust.penalties;
    v1::SamplingParams {
        temperature: Some(params.temperature),
        top_k: Some(params.top_k),
        top_p: Some(params.top_p),
        min_p: Some(params.min_p),
        typical_p: Some(params.typical_p),
        presence_penalty: Some(presence),
        frequency_penalty: Some(frequency),
        repetition_penalty: Some(repetition),
        logit_bias: adjust.logit_bias.iter().map(|(token, bias)| (token.0, *bias)).collect(),
    }
}

/// Absent fields take the defaults that `sampling.proto` names: temperature 1, no filter, no change.
pub(crate) fn from_wire(
    from: Option<v1::SamplingParams>,
) -> Result<(SamplingParams, Adjustments), WireError> {
    let from = from.unwrap_or_default();
    let (plain, neutral) = (SamplingParams::at(1.0), Penalties::default());
    let params = SamplingParams {
        temperature: from.temperature.unwrap_or(plain.temperature),
        top_k: from.top_k.unwrap_or(plain.top_k),
        top_p: from.top_p.unwrap_or(plain.top_p),
        min_p: from.min_p.unwrap_or(plain.min_p),
        typical_p: from.typical_p.unwrap_or(plain.typical_p),
    };
    params.validate()?;
    at_most("logit_bias", from.logit_bias.len(), Adjustments::MOST_BIASES)?;
    // A map has no order of its own; edits are applied in one.
    let mut logit_bias: Vec<_> = from.logit_bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect();
    logit_bias.sort_unstable_by_key(|(id, _)| *id);
    let penalties = Penalties {
        repetition: from.repetition_penalty.unwrap_or(neutral.repetition),
        presence: from.presence_penalty.unwrap_or(neutral.presence),
        frequency: from.frequency_penalty.unwrap_or(neutral.frequency),
    };
    let adjust = Adjustments { logit_bias, penalties };
    adjust.validate()?;
    Ok((params, adjust))
}
