//! `suffix`: the prompt of a gap, where the model was trained with tokens for that.

use ::request::TokenId;

use crate::failure::{Failure, invalid, not_built};
use crate::models::Model;
use crate::question::Prompt;

/// What stands before the prefix, before the suffix and before the middle (arXiv 2207.14255; Qwen and
/// Code Gemma, StarCoder and SantaCoder, DeepSeek).
const MARKERS: [[&str; 3]; 3] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
];

/// The prompts with the suffix behind their gap.
pub(super) fn gaps(prompts: Vec<Prompt>, suffix: &str, model: &Model) -> Result<Vec<Prompt>, Failure> {
    const FIELD: &str = "suffix";
    let tokenizer = model.text.tokenizer();
    let marker = |text: &str| match tokenizer.encode(text, true).ok()?.as_slice() {
        [id] if tokenizer.vocabulary().token(*id) == Some(text) => Some(*id),
        _ => None,
    };
    let found = MARKERS
        .iter()
        .find_map(|[prefix, suffix, middle]| Some([marker(prefix)?, marker(suffix)?, marker(middle)?]));
    let Some([before, behind, middle]) = found else {
        return Err(not_built(
            FIELD,
            format!(
                "{FIELD}: {} has no tokens for filling a gap; leave it out or use another model",
                model.name
            ),
        ));
    };
    let plain = |text: &str, field| {
        tokenizer.encode(text, false).map_err(|e| invalid(field, format!("{field}: {e}")))
    };
    let suffix = plain(suffix, FIELD)?;
    let gap = |prompt| {
        let prefix: Vec<TokenId> = match prompt {
            Prompt::Tokens(ids) => ids,
            Prompt::Text(text) => plain(&text, "prompt")?,
            Prompt::Chat(_) => return Err(invalid("prompt", "prompt: a conversation has no gap")),
        };
        Ok(Prompt::Tokens([&[before][..], &prefix, &[behind], &suffix, &[middle]].concat()))
    };
    prompts.into_iter().map(gap).collect()
}
