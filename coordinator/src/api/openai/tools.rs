//! The tools of a request: what the model may call, whether it must, and the grammar that holds it to
//! that.

use std::collections::HashSet;

use grammar::tools::{Calls, Choice, Tool as Callable};
use request::{Constraint, TokenId};
use serde::Deserialize;
use serde_json::{Map, Value};
use text::{TokenKind, Tool, ToolSyntax};

use super::body::{missing, shown, within};
use super::constraint::Asked;
use super::speech::Reading;
use crate::failure::{Failure, invalid, not_built};
use crate::models::Model;

/// As OpenAI.
const MOST_TOOLS: usize = 128;

/// Tools with what was said about calling them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Offer {
    tools: Vec<(Tool, Strict)>,
    choice: ToolChoice,
    /// Several calls in one answer.
    parallel: bool,
}

/// Whether calls are held to the tool's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strict {
    Yes,
    No,
    /// Not said: where a call is forced anyway, to the schema as well (as vLLM).
    Unsaid,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum ToolChoice {
    None,
    #[default]
    Auto,
    Required,
    Named(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTool {
    r#type: String,
    function: Option<RawFunction>,
    /// OpenAI's custom tools; read so that they can be refused by type.
    #[serde(rename = "custom")]
    _custom: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFunction {
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

/// As `/v1/responses` spells a tool. What else a tool may have depends on its type ([`no_more`]).
#[derive(Deserialize)]
struct RawFlatTool {
    r#type: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChoice {
    r#type: String,
    function: Option<RawName>,
    /// As `/v1/responses` spells it.
    name: Option<String>,
    #[serde(rename = "allowed_tools")]
    _allowed_tools: Option<Value>,
    #[serde(rename = "custom")]
    _custom: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawName {
    name: String,
}

impl Offer {
    /// `tools`, `tool_choice` and `parallel_tool_calls` of a chat completion.
    pub(super) fn of_chat(
        tools: Option<&Value>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Self, Failure> {
        let raw: Vec<RawTool> = tools.map_or(Ok(Vec::new()), |tools| within(tools, "tools"))?;
        let tools = raw.into_iter().enumerate().map(|(i, tool)| {
            function_only(&tool.r#type, i)?;
            let at = format!("tools[{i}].function");
            let RawFunction { name, description, parameters, strict } =
                tool.function.ok_or_else(|| missing(&at, "send name and parameters"))?;
            let strict = strict.map_or(Strict::Unsaid, Strict::of);
            Ok((Tool { name, description, parameters }, strict, format!("{at}.name")))
        });
        Self::new(tools.collect::<Result<_, Failure>>()?, choice, parallel)
    }

    /// The same fields of `/v1/responses`; there `strict` is the default.
    pub(super) fn of_responses(
        tools: Option<&Value>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Self, Failure> {
        let raw: Vec<RawFlatTool> = tools.map_or(Ok(Vec::new()), |tools| within(tools, "tools"))?;
        let whole = tools.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let tools = raw.into_iter().zip(whole).enumerate().map(|(i, (tool, whole))| {
            function_only(&tool.r#type, i)?;
            no_more(whole, i)?;
            let at = format!("tools[{i}].name");
            let RawFlatTool { name, description, parameters, strict, .. } = tool;
            let name = name.ok_or_else(|| missing(&at, "name the function"))?;
            Ok((Tool { name, description, parameters }, Strict::of(strict.unwrap_or(true)), at))
        });
        Self::new(tools.collect::<Result<_, Failure>>()?, choice, parallel)
    }

    fn new(
        tools: Vec<(Tool, Strict, String)>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Self, Failure> {
        if tools.len() > MOST_TOOLS {
            return Err(invalid(
                "tools",
                format!("tools: has {}; at most {MOST_TOOLS} are taken", tools.len()),
            ));
        }
        let mut names = HashSet::new();
        for (tool, _, at) in &tools {
            let good = (1..=64).contains(&tool.name.len())
                && tool.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
            if !good {
                let name = shown(&tool.name);
                return Err(invalid(at, format!("{at}: {name:?} is not 1 to 64 letters, digits, _, - or .")));
            }
            if !names.insert(tool.name.as_str()) {
                return Err(invalid(at, format!("{at}: {:?} is there twice", tool.name)));
            }
        }
        let choice = choice.map_or(Ok(ToolChoice::Auto), |choice| tool_choice(choice, &names))?;
        if names.is_empty() && choice == ToolChoice::Required {
            return Err(invalid("tool_choice", "tool_choice: \"required\" needs tools"));
        }
        let tools = tools.into_iter().map(|(tool, strict, _)| (tool, strict)).collect();
        Ok(Self { tools, choice, parallel: parallel.unwrap_or(true) })
    }

    /// What the template is told. With `tool_choice` none the tools are left out: a model that does not
    /// know them calls none.
    pub(super) fn told(&self) -> Vec<Tool> {
        if self.choice == ToolChoice::None {
            Vec::new()
        } else {
            self.tools.iter().map(|(t, _)| t.clone()).collect()
        }
    }

    /// The names of what may be called; empty: nothing.
    fn callable(&self) -> Vec<String> {
        match &self.choice {
            ToolChoice::None => Vec::new(),
            ToolChoice::Named(name) => vec![name.clone()],
            ToolChoice::Auto | ToolChoice::Required => {
                self.tools.iter().map(|(t, _)| t.name.clone()).collect()
            }
        }
    }

    /// How the answer's text is read; `None`: nothing may be called.
    pub(super) fn reading(&self, model: &Model) -> Option<Reading> {
        let tools = self.callable();
        let syntax = model.text.chat()?.syntax();
        (!tools.is_empty()).then_some(Reading { syntax, tools, parallel: self.parallel })
    }

    /// Control tokens that the text has to show for calls to be found in it.
    pub(super) fn shown(&self, model: &Model) -> Vec<TokenId> {
        let Some(Reading { syntax, .. }) = self.reading(model) else { return Vec::new() };
        let more = if syntax == ToolSyntax::Mistral { &["[ARGS]", "[CALL_ID]"][..] } else { &[] };
        let tokens = std::iter::once(syntax.marker()).chain(more.iter().copied());
        tokens.filter_map(|token| control(model, token)).collect()
    }

    /// The grammar that the answer is held to, where one is needed: a call is forced, or `strict` was
    /// asked for. `form`: what else the answer is to be.
    pub(super) fn constraint(&self, model: &Model, form: Option<&Asked>) -> Result<Option<Asked>, Failure> {
        if self.callable().is_empty() {
            return Ok(None);
        }
        if let Some(form) = form {
            return Err(not_built(
                form.field,
                format!(
                    "{}: not built together with tools; send tool_choice \"none\" or leave one out",
                    form.field
                ),
            ));
        }
        let forced = matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_));
        if !forced && self.tools.iter().all(|(_, strict)| *strict != Strict::Yes) {
            return Ok(None);
        }
        let Some(syntax) = model.text.chat().map(text::Chat::syntax) else { return Ok(None) };
        let schemas: Vec<Option<Value>> = self
            .tools
            .iter()
            .map(|(tool, strict)| {
                let held = *strict == Strict::Yes || (forced && *strict == Strict::Unsaid);
                tool.parameters.clone().filter(|_| held).map(Value::Object)
            })
            .collect();
        let tools: Vec<Callable<'_>> = self
            .tools
            .iter()
            .zip(&schemas)
            .map(|((tool, _), schema)| Callable { name: &tool.name, parameters: schema.as_ref() })
            .collect();
        let choice = match &self.choice {
            ToolChoice::Required => Choice::Required,
            ToolChoice::Named(name) => Choice::Named(name),
            ToolChoice::None | ToolChoice::Auto => Choice::Auto,
        };
        let marker = control(model, syntax.marker());
        let calls = Calls { syntax, marker, tools: &tools, choice, parallel: self.parallel };
        let lark = calls.lark().map_err(|e| invalid("tools", e.to_string()))?;
        Ok(Some(Asked { constraint: Constraint::Grammar(lark), field: "tools" }))
    }
}

impl Strict {
    fn of(strict: bool) -> Self {
        if strict { Self::Yes } else { Self::No }
    }
}

/// The control token of that spelling: the text does not show it.
fn control(model: &Model, token: &str) -> Option<TokenId> {
    let tokenizer = model.text.tokenizer();
    match tokenizer.encode(token, true).ok()?.as_slice() {
        [id] if tokenizer.vocabulary().kind(*id) == Some(TokenKind::Control) => Some(*id),
        _ => None,
    }
}

fn function_only(kind: &str, index: usize) -> Result<(), Failure> {
    if kind == "function" {
        return Ok(());
    }
    let (field, kind) = (format!("tools[{index}].type"), shown(kind));
    Err(not_built(&field, format!("{field}: {kind:?} tools are not built; only functions are")))
}

/// Refuses what a function of `/v1/responses` has beyond [`RawFlatTool`], unless it asks for nothing.
fn no_more(tool: &Value, index: usize) -> Result<(), Failure> {
    let known = ["type", "name", "description", "parameters", "strict"];
    let neutral = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    let more =
        tool.as_object().into_iter().flatten().find(|(k, v)| !known.contains(&k.as_str()) && !neutral(v));
    let Some((name, _)) = more else { return Ok(()) };
    let field = format!("tools[{index}].{}", shown(name));
    Err(not_built(&field, format!("{field}: not built; leave it out")))
}

fn tool_choice(choice: &Value, names: &HashSet<&str>) -> Result<ToolChoice, Failure> {
    const AT: &str = "tool_choice";
    match choice.as_str() {
        Some("none") => return Ok(ToolChoice::None),
        Some("auto") => return Ok(ToolChoice::Auto),
        Some("required") => return Ok(ToolChoice::Required),
        Some(other) => {
            let other = shown(other);
            return Err(invalid(
                AT,
                format!("{AT}: {other:?} is not none, auto, required or an object that names a function"),
            ));
        }
        None => {}
    }
    let raw: RawChoice = within(choice, AT)?;
    if raw.r#type != "function" {
        let (field, kind) = ("tool_choice.type", shown(&raw.r#type));
        return Err(not_built(field, format!("{field}: {kind:?} is not built; only function is")));
    }
    let (field, name) = match (raw.function, raw.name) {
        (Some(function), _) => ("tool_choice.function.name", function.name),
        (None, Some(name)) => ("tool_choice.name", name),
        (None, None) => return Err(missing("tool_choice.function", "name the function to call")),
    };
    if !names.contains(name.as_str()) {
        let name = shown(&name);
        return Err(invalid(field, format!("{field}: {name:?} is not among the tools")));
    }
    Ok(ToolChoice::Named(name))
}
