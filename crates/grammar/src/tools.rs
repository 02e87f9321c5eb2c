//! The grammar of a model's tool calls: what it writes when it must call a tool, or when it may.
//!
//! [`Calls::lark`] gives text for `request::Constraint::Grammar`. Names and punctuation are written as
//! the models were trained to write them (one blank behind `:` and `,`), so a call has little room but
//! in its arguments, which follow the tool's JSON schema.
//!
//! Not here: finding the calls in an answer (`text::CallParser`), prompting for them (`text`).

use request::TokenId;
use serde_json::Value;
use text::ToolSyntax;

use crate::json;

/// A tool as the request offers it.
#[derive(Clone, Copy, Debug)]
pub struct Tool<'a> {
    pub name: &'a str,
    /// JSON schema of its arguments; `None` for any object, as where `strict` is not asked for.
    pub parameters: Option<&'a Value>,
}

/// What the answer has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Free text, then calls if the model begins one.
    Auto,
    /// At least one call of any tool, and nothing else.
    Required,
    /// Calls of this tool, and nothing else.
    Named(&'a str),
}

/// The calls that an answer may hold.
#[derive(Clone, Copy, Debug)]
pub struct Calls<'a> {
    pub syntax: ToolSyntax,
    /// The control token that the model writes for [`ToolSyntax::marker`]; `None` where the marker is
    /// text (an added token such as Qwen's `<tool_call>` is text).
    pub marker: Option<TokenId>,
    pub tools: &'a [Tool<'a>],
    pub choice: Choice<'a>,
    /// Several calls in one answer.
    pub parallel: bool,
}

/// Why there is no grammar of these calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolsError {
    #[error("tools: is empty; a call needs a tool")]
    Empty,
    #[error("tool_choice: names {name:?}, which is not among the tools")]
    Unknown { name: String },
}

impl Calls<'_> {
    /// The grammar, in llguidance's dialect of Lark.
    pub fn lark(&self) -> Result<String, ToolsError> {
        let tools: Vec<&Tool<'_>> = match self.choice {
            Choice::Auto | Choice::Required => self.tools.iter().collect(),
            Choice::Named(name) => self.tools.iter().filter(|tool| tool.name == name).collect(),
        };
        if tools.is_empty() {
            return Err(match self.choice {
                Choice::Named(name) => ToolsError::Unknown { name: name.to_owned() },
                Choice::Auto | Choice::Required => ToolsError::Empty,
            });
        }
        let mut rules = self.around();
        let names: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
        rules.push(format!("call: {}", names.join(" | ")));
        let key = match self.syntax {
            ToolSyntax::Hermes | ToolSyntax::Mistral => "arguments",
            ToolSyntax::Llama => "parameters",
        };
        for (index, tool) in tools.iter().enumerate() {
            let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(tool.name));
            let arguments = tool.parameters.map_or_else(json::any_object, |p| json::bounded(p.clone()));
            rules.push(format!("call_{index}: {} arguments_{index} \"}}\"", literal(&head)));
            rules.push(format!("arguments_{index}: %json {arguments}"));
        }
        Ok(rules.join("\n"))
    }

    /// The rules around `call`, which is one call's object.
    fn around(&self) -> Vec<String> {
        let marker = match self.marker {
            Some(id) => format!("<[{id}]>"),
            None => literal(self.syntax.marker()),
        };
        let more = |again: &str| if self.parallel { format!(" ({again})*") } else { String::new() };
        // What follows the first marker, and whether an answer begins with a marker at all.
        let (behind, marked) = match self.syntax {
            ToolSyntax::Hermes => {
                let again = format!(r#""\n" {marker} block"#);
                (format!("block{}", more(&again)), true)
            }
            ToolSyntax::Mistral => (format!(r#""[" call{} "]""#, more(r#"", " call"#)), true),
            ToolSyntax::Llama => (format!("call{}", more(r#""; " call"#)), false),
        };
        let start = match (self.choice, marked, self.marker) {
            (Choice::Required | Choice::Named(_), true, _) => format!("start: {marker} calls"),
            (Choice::Required | Choice::Named(_), false, _) => "start: calls".to_owned(),
            // The lexer leaves the text at the marker, wherever it comes: it is lazy there.
            (Choice::Auto, true, None) => "start: TEXT? | before calls".to_owned(),
            (Choice::Auto, true, Some(_)) => format!("start: TEXT? | TEXT? {marker} calls"),
            (Choice::Auto, false, _) => "start: TEXT? | calls".to_owned(),
        };
        let mut rules = vec![start, format!("calls: {behind}")];
        if self.syntax == ToolSyntax::Hermes {
            rules.push(r#"block: "\n" call "\n</tool_call>""#.to_owned());
        }
        if self.choice == Choice::Auto {
            // Text that reads as a call, but was not held to a tool's schema, is no text.
            let text = if marked { "(?s:.+)" } else { r"[ \t\r\n]*[^{ \t\r\n](?s:.*)" };
            rules.push(format!("MARKED: /(?s:.*)/ {} /(?s:.*)/", literal(self.syntax.marker())));
            rules.push(format!("TEXT: /{text}/ & ~MARKED"));
            if marked && self.marker.is_none() {
                rules.push(format!("before[suffix={marker}]: /(?s:.*)/"));
            }
        }
        rules
    }
}

/// A literal of Lark, which is spelled as in JSON.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
