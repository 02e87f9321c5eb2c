//! How tokens are drawn and when they end: the fields that chat and legacy completions share.

use proto::bounds::MAX_CHOICES;
use request::{Adjustments, Penalties, Quality, SamplingParams, TokenId};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::{shown, typed};
use super::constraint::RawStructuredOutputs;
use super::speculation::RawSpeculation;
use crate::failure::{Failure, from_field, invalid};
use crate::question::{Prediction, Question, Stop};

/// The fields as they are spelled.
#[derive(Deserialize)]
pub(super) struct RawSampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<Map<String, Value>>,
    seed: Option<Seed>,
    n: Option<u64>,
    stop: Option<Stops>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    ignore_eos: Option<bool>,
    min_tokens: Option<u32>,
    pub(super) structured_outputs: Option<RawStructuredOutputs>,
    prediction: Option<RawPrediction>,
    priority: Option<i32>,
    cache_salt: Option<String>,
    quality: Option<RawQuality>,
    speculation: Option<RawSpeculation>,
}

/// OpenAI's seeds are signed; ours are not. A negative one names the same noise as its two's complement.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a 64-bit integer")]
enum Seed {
    Unsigned(u64),
    Signed(i64),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Stops {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrediction {
    r#type: PredictionType,
    content: RawText,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PredictionType {
    Content,
}

/// A string, or text parts that are one text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of parts {\"type\": \"text\", \"text\": ..}")]
enum RawText {
    Whole(String),
    Parts(Vec<TextPart>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextPart {
    #[serde(rename = "type")]
    _type: TextType,
    text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum TextType {
    Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawQuality {
    Exact,
    Approximate,
}

impl RawSampling {
    pub(super) fn read(fields: &Value) -> Result<Self, Failure> {
        typed(fields)
    }

    /// Fills in everything but the prompt, the constraint and the length.
    pub(super) fn apply(self, question: &mut Question) -> Result<(), Failure> {
        question.params = self.params()?;
        question.adjust = Adjustments { penalties: self.penalties(), logit_bias: self.biases()? };
        question.adjust.validate().map_err(|e| from_field(&e))?;
        question.seed = self.seed.map(|seed| match seed {
            Seed::Unsigned(seed) => seed,
            Seed::Signed(seed) => seed.cast_unsigned(),
        });
        question.n = self.n.map_or(Ok(1), |n| {
            u32::try_from(n)
                .ok()
                .filter(|n| (1..=MAX_CHOICES).contains(n))
                .ok_or_else(|| invalid("n", format!("n: {n} is not between 1 and {MAX_CHOICES}")))
        })?;
        question.stop = Stop {
            strings: match self.stop {
                None => Vec::new(),
                Some(Stops::One(stop)) => vec![stop],
                Some(Stops::Many(stops)) => stops,
            },
            ids: self.stop_token_ids.unwrap_or_default().into_iter().map(TokenId).collect(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            include_in_output: self.include_stop_str_in_output.unwrap_or(false),
        };
        question.min_tokens = self.min_tokens.unwrap_or(0);
        question.prediction = self.prediction.map(|prediction| {
            let PredictionType::Content = prediction.r#type;
            Prediction::Text(match prediction.content {
                RawText::Whole(text) => text,
                RawText::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
            })
        });
        question.priority = self.priority.unwrap_or(0);
        question.cache_salt = self.cache_salt.unwrap_or_default();
        question.quality = match self.quality {
            Some(RawQuality::Approximate) => Quality::Approximate,
            Some(RawQuality::Exact) | None => Quality::Exact,
        };
        if let Some(speculation) = self.speculation {
            question.speculation = speculation.check(&question.params)?;
        }
        Ok(())
    }

    fn params(&self) -> Result<SamplingParams, Failure> {
        let top_k = match self.top_k {
            None | Some(-1) => 0,
            Some(k) => u32::try_from(k).map_err(|_| {
                invalid("top_k", format!("top_k: {k} is not -1 or between 0 and {}", u32::MAX))
            })?,
        };
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            typical_p: self.typical_p.unwrap_or(1.0),
        };
        params.validate().map_err(|e| from_field(&e))?;
        Ok(params)
    }

    fn penalties(&self) -> Penalties {
        let neutral = Penalties::default();
        Penalties {
            repetition: self.repetition_penalty.unwrap_or(neutral.repetition),
            presence: self.presence_penalty.unwrap_or(neutral.presence),
            frequency: self.frequency_penalty.unwrap_or(neutral.frequency),
        }
    }

    fn biases(&self) -> Result<Vec<(TokenId, f32)>, Failure> {
        let Some(biases) = &self.logit_bias else { return Ok(Vec::new()) };
        let bias = |(id, bias): (&String, &Value)| {
            let field = format!("logit_bias.{}", shown(id));
            // Only the plain spelling: "+1" and "01" would name a token twice.
            let token = id.parse::<u32>().ok().filter(|token| token.to_string() == *id);
            let token = token.ok_or_else(|| invalid(&field, format!("{field}: the key is no token id")))?;
            let bias = bias.as_f64().ok_or_else(|| invalid(&field, format!("{field}: must be a number")))?;
            Ok((TokenId(token), bias as f32))
        };
        biases.iter().map(bias).collect()
    }
}
