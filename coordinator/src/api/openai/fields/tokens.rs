use super::{Neutral, Table};

/// `POST /tokenize`.
pub(in super::super) const TOKENIZE: Table = Table {
    path: "/tokenize",
    honoured: &[&[
        ("model", "a name or alias from /v1/models; may be left out where one model is served"),
        ("prompt", "a string; its tokens are those that /v1/completions takes it for"),
        ("messages", "as in chat completions, instead of prompt"),
        ("tools", "as in chat completions; only with messages"),
        ("add_special_tokens", "false leaves out the BOS that the model wants before a prompt; default true"),
        ("return_token_strs", "true returns the tokens as the vocabulary spells them, too"),
    ]],
    no_effect: &[],
    refused: &[&[
        ("add_generation_prompt", Neutral::True, "-"),
        ("continue_final_message", Neutral::False, "prompt"),
        ("chat_template", Neutral::Null, "prompt"),
        ("chat_template_kwargs", Neutral::Empty, "-"),
    ]],
};

/// `POST /detokenize`.
pub(in super::super) const DETOKENIZE: Table = Table {
    path: "/detokenize",
    honoured: &[&[
        ("model", "a name or alias from /v1/models; may be left out where one model is served"),
        ("tokens", "a list of token ids; control tokens are spelled out"),
    ]],
    no_effect: &[],
    refused: &[],
};
