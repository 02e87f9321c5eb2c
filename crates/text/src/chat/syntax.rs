use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Conversation, Message, Tool, ToolCall};
use crate::template::python_json;

/// How a model writes a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSyntax {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, once a call: Hermes, Qwen2.5, Qwen3,
    /// and every model whose template knows no tools.
    Hermes,
    /// `{"name": .., "parameters": {..}}` as the whole answer, or anywhere after `<|python_tag|>`;
    /// several with `;` between: Llama 3.1 and later.
    Llama,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`, in later versions
    /// `[TOOL_CALLS]name[ARGS]{..}` once a call: Mistral.
    Mistral,
}

/// Whether a template writes tools itself, and in which syntax the answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToolUse {
    pub(crate) syntax: ToolSyntax,
    /// `false`: tools are explained in the system message, calls and results are written as text.
    pub(crate) native: bool,
}

impl ToolSyntax {
    /// What begins a call, where something does.
    pub fn marker(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// Mistral's templates refuse ids of any other form than nine letters and digits.
    pub fn short_ids(self) -> bool {
        self == Self::Mistral
    }
}

impl ToolUse {
    /// By what the template's source mentions. A template of tools in a syntax that we do not parse
    /// gets the generic way, as one without tools does: its own way would give calls that nobody reads.
    pub(crate) fn of(source: &str) -> Self {
        let has = |what: &str| source.contains(what);
        // Qwen3-Coder and GLM put XML elements inside of <tool_call>.
        let hermes = has("<tool_call>") && !has("<function=") && !has("<arg_key>");
        let known = [
            (ToolSyntax::Hermes, hermes),
            (ToolSyntax::Mistral, has("[TOOL_CALLS]")),
            (ToolSyntax::Llama, has("<|python_tag|>") || (has("\"parameters\"") && has("ipython"))),
        ];
        match known.into_iter().find(|(_, fits)| *fits && has("tools")) {
            Some((syntax, _)) => Self { syntax, native: true },
            None => Self { syntax: ToolSyntax::Hermes, native: false },
        }
    }
}

/// The conversation for a template that knows no tools: roles system, user and assistant only.
pub(super) fn without_tools(conversation: Conversation) -> Conversation {
    let Conversation { messages, tools } = conversation;
    let mut plain: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    let mut after_result = false;
    for message in messages {
        let is_result = message.role == "tool";
        let content = message.content.unwrap_or_default();
        if is_result {
            let result = format!("<tool_response>\n{content}\n</tool_response>");
            // Results of parallel calls are one turn: many templates want turns to alternate.
            match plain.last_mut().filter(|_| after_result) {
                Some(Message { content: Some(last), .. }) => {
                    last.push('\n');
                    last.push_str(&result);
                }
                _ => plain.push(Message::new("user", result)),
            }
        } else {
            let calls = message.tool_calls.iter().map(call);
            let parts: Vec<String> =
                Some(content).filter(|c| !c.is_empty()).into_iter().chain(calls).collect();
            plain.push(Message { name: message.name, ..Message::new(message.role, parts.join("\n")) });
        }
        after_result = is_result;
    }
    if !tools.is_empty() {
        let how = instructions(&tools);
        match plain.first_mut() {
            Some(Message { role, content: Some(content), .. }) if role == "system" => {
                content.push_str("\n\n");
                content.push_str(&how);
            }
            _ => plain.insert(0, Message::new("system", how)),
        }
    }
    plain.into()
}

fn call(call: &ToolCall) -> String {
    #[derive(Serialize)]
    struct Call<'a> {
        name: &'a str,
        arguments: &'a Map<String, Value>,
    }
    let call = python_json(&Call { name: &call.name, arguments: &call.arguments });
    format!("<tool_call>\n{call}\n</tool_call>")
}

fn instructions(tools: &[Tool]) -> String {
    let list: Vec<String> = tools.iter().map(python_json).collect();
    let form = python_json(&json!({"name": "the function's name", "arguments": {}}));
    format!(
        "# Tools\n\nYou can call functions to answer the user. Their signatures, one JSON object a line:\n\
         <tools>\n{}\n</tools>\n\nTo call a function, write its name and a JSON object of its arguments in this \
         form, once for each call:\n<tool_call>\n{form}\n</tool_call>",
        list.join("\n")
    )
}
