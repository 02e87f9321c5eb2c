use super::{NOTHING_KEPT, Neutral, Table};

/// `POST /v1/responses`.
pub(in super::super) const RESPONSES: Table = Table {
    path: "/v1/responses",
    honoured: &[OWN],
    no_effect: &[NOTHING_KEPT, NO_EFFECT],
    refused: &[REFUSED],
};

const OWN: &[(&str, &str)] = &[
    ("model", "a name or alias from /v1/models"),
    ("input", "a string, or items: messages of text parts, function_call, function_call_output"),
    ("instructions", "a system message before the input"),
    ("max_output_tokens", "most output tokens; default as in chat completions"),
    ("temperature", "0, or 0.01 to 2; default 1"),
    ("top_p", "above 0, at most 1; default 1"),
    ("top_logprobs", "0 to 20 alternatives a token; with include message.output_text.logprobs"),
    (
        "include",
        "message.output_text.logprobs; reasoning.encrypted_content, of which there is none; nothing else",
    ),
    ("text", "format text, json_object or json_schema"),
    ("tools", "up to 128 functions; strict (default true) holds calls of one to its schema"),
    ("tool_choice", "none, auto, required or one function"),
    ("parallel_tool_calls", "false: at most one call an answer; default true"),
    ("stream", "true: server-sent events"),
    ("seed", "as in chat completions (not OpenAI's here)"),
    ("priority", "as in chat completions (not OpenAI's here)"),
    ("cache_salt", "as in chat completions (not OpenAI's here)"),
    ("quality", "as in chat completions (not OpenAI's here)"),
    ("speculation", "as in chat completions (not OpenAI's here)"),
];

const NO_EFFECT: &[(&str, &str)] =
    &[("truncation", "an input that does not fit is refused"), ("stream_options", "events are not padded")];

const REFUSED: &[(&str, Neutral, &str)] = &[
    ("previous_response_id", Neutral::Null, "send the whole conversation as input: responses are not stored"),
    ("conversation", Neutral::Null, "send the whole conversation as input: nothing is stored"),
    ("background", Neutral::False, "stream"),
    ("background_options", Neutral::Null, "-"),
    ("prompt", Neutral::Null, "instructions and input: no prompts are stored"),
    ("reasoning", Neutral::Empty, "-"),
    ("max_tool_calls", Neutral::Null, "parallel_tool_calls"),
    ("context_management", Neutral::Empty, "send less input"),
    ("moderation", Neutral::Null, "-"),
    ("image", Neutral::Null, "-"),
    ("access_programs", Neutral::Null, "-"),
];
