use super::{NOTHING_KEPT, Neutral, SAMPLING, Table, VLLM};

/// `POST /v1/chat/completions`.
pub(in super::super) const CHAT: Table = Table {
    path: "/v1/chat/completions",
    honoured: &[OWN, SAMPLING],
    no_effect: &[NOTHING_KEPT],
    refused: &[REFUSED, VLLM],
};

const OWN: &[(&str, &str)] = &[
    ("model", "a name or alias from /v1/models"),
    (
        "messages",
        "roles system, developer (as system), user, assistant with tool_calls, tool; content is a string or text \
         parts",
    ),
    (
        "max_completion_tokens",
        "most output tokens; default: what the context leaves, at most the server's default_max_tokens",
    ),
    ("max_tokens", "the older name of max_completion_tokens; both may be sent when they agree"),
    ("logprobs", "true reports each token's log-probability, of the model's own distribution"),
    ("top_logprobs", "0 to 20 alternatives a token; only with logprobs"),
    ("response_format", "text, json_object or json_schema; a schema is always kept strictly"),
    ("tools", "up to 128 functions; strict holds calls of one to its schema"),
    ("tool_choice", "none, auto, required or one function"),
    ("parallel_tool_calls", "false: at most one call an answer; default true"),
    ("prediction", "content, a string or text parts: drafts that cost nothing when wrong, never other text"),
];

const REFUSED: &[(&str, Neutral, &str)] = &[
    ("functions", Neutral::Empty, "tools (functions is deprecated)"),
    ("function_call", Neutral::Words(&["none", "auto"]), "tool_choice (function_call is deprecated)"),
    ("audio", Neutral::Null, "-"),
    ("modalities", Neutral::TextOnly, "-"),
    ("reasoning_effort", Neutral::Words(&["none"]), "-"),
    ("verbosity", Neutral::Words(&["medium"]), "say it in a message"),
    ("web_search_options", Neutral::Null, "-"),
    ("moderation", Neutral::Null, "-"),
    ("echo", Neutral::False, "/v1/completions"),
    ("add_generation_prompt", Neutral::True, "/v1/completions"),
    ("continue_final_message", Neutral::False, "/v1/completions"),
    ("documents", Neutral::Empty, "put them into a message"),
    ("chat_template", Neutral::Null, "/v1/completions"),
    ("chat_template_kwargs", Neutral::Empty, "-"),
    ("include_reasoning", Neutral::True, "-"),
];
