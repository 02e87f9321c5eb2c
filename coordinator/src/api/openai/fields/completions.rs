use super::{NOTHING_KEPT, Neutral, SAMPLING, Table, VLLM};

/// `POST /v1/completions`.
pub(in super::super) const COMPLETIONS: Table = Table {
    path: "/v1/completions",
    honoured: &[OWN, SAMPLING],
    no_effect: &[NOTHING_KEPT],
    refused: &[REFUSED, VLLM],
};

const OWN: &[(&str, &str)] = &[
    ("model", "a name or alias from /v1/models"),
    (
        "prompt",
        "a string, a list of strings, a list of token ids or a list of such lists; several give choices prompt * n \
         + i",
    ),
    ("max_tokens", "most output tokens; default 16"),
    ("logprobs", "0 to 20 alternatives a token beside the one drawn (OpenAI takes 5); not with echo"),
    ("echo", "true puts the prompt's text before the answer's"),
    ("suffix", "text behind the gap to fill, where the model has tokens for that; otherwise refused"),
    ("best_of", "1, or the same as n"),
    ("prediction", "as in chat completions (not OpenAI's here)"),
];

const REFUSED: &[(&str, Neutral, &str)] =
    &[("response_format", Neutral::Null, "structured_outputs"), ("prompt_embeds", Neutral::Null, "prompt")];
