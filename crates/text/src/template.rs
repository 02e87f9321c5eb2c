use std::time::SystemTime;

use gguf::{Header, Metadata};
use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::Conversation;
use crate::chat::ToolUse;

/// A model's chat template (`tokenizer.chat_template`): a conversation to one prompt.
///
/// Jinja as Hugging Face's `apply_chat_template` runs it: `trim_blocks` and `lstrip_blocks`, loop
/// controls, Python's string and list methods, `raise_exception`, `strftime_now`, `tojson` as
/// `json.dumps`. The prompt always ends with the start of the assistant's turn.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    tools: ToolUse,
}

/// Why there is no template, or no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(
        "the model has no chat template (tokenizer.chat_template): send a text prompt instead of messages"
    )]
    Missing,
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error(transparent)]
    Folder(#[from] crate::FolderError),
    #[error("the model's chat template is not understood: {0}")]
    Syntax(String),
    #[error("messages: is empty; send at least one")]
    NoMessages,
    #[error("messages: the model's chat template refuses them: {0}")]
    Refused(String),
    #[error("messages: the model's chat template takes more than {FUEL} units of work for them; send less")]
    TooMuchWork,
    #[error("the model's chat template failed: {0}")]
    Failed(String),
}

impl TemplateError {
    /// Whether other messages could succeed: an invalid request, not a broken model.
    pub fn is_request_fault(&self) -> bool {
        matches!(self, Self::NoMessages | Self::Refused(_) | Self::TooMuchWork)
    }
}

const NAME: &str = "chat_template";

/// What one rendering may use: about one unit an instruction and one for each 64 bytes made, so it
/// bounds time (a second or two) and memory (a gigabyte). 100,000 short messages, or 16 of a
/// megabyte, take less than a fifth of it with an ordinary template.
const FUEL: u64 = 16_000_000;

impl ChatTemplate {
    /// The template of a model file.
    pub fn from_gguf(header: &Header) -> Result<Self, TemplateError> {
        let meta = &header.metadata;
        let source =
            meta.optional("tokenizer.chat_template", Metadata::str)?.ok_or(TemplateError::Missing)?;
        let tokens = meta.strs(crate::vocabulary::TOKENS)?;
        let token = |key| -> Result<Option<String>, TemplateError> {
            let id = meta.optional(key, Metadata::u32)?;
            Ok(id.and_then(|id| tokens.get(id as usize)).cloned())
        };
        Self::new(source, token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?)
    }

    /// A template from its source; `bos` and `eos` are what `bos_token` and `eos_token` say in it.
    pub fn new(source: &str, bos: Option<String>, eos: Option<String>) -> Result<Self, TemplateError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| TemplateError::Syntax(describe(&error)))?);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", to_json);
        env.add_function("raise_exception", raise_exception);
        env.add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self { env, bos, eos, tools: ToolUse::of(source) })
    }

    /// How the template writes tools, if it does.
    pub(crate) fn tools(&self) -> ToolUse {
        self.tools
    }

    /// The prompt of a conversation. `strftime_now` is the present, in UTC.
    ///
    /// A text that spells a control token is not told from the template's own; [`crate::Chat`] does.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        self.render_at(conversation, SystemTime::now())
    }

    /// [`Self::render`] with a given present.
    pub fn render_at(&self, conversation: &Conversation, now: SystemTime) -> Result<String, TemplateError> {
        let Conversation { messages, tools } = conversation;
        if messages.is_empty() {
            return Err(TemplateError::NoMessages);
        }
        let none = || Value::from(());
        let tools = if tools.is_empty() { none() } else { Value::from(Serde(tools)) };
        let mut context = vec![
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(true)),
            ("tools", tools),
            ("documents", none()),
            ("strftime_now", Value::from_function(move |format: &str| strftime(format, now))),
        ];
        // Left undefined where the model has none, as Hugging Face does.
        context.extend(self.bos.as_deref().map(|token| ("bos_token", Value::from(token))));
        context.extend(self.eos.as_deref().map(|token| ("eos_token", Value::from(token))));
        let context = Value::from_pairs(context);
        self.env.get_template(NAME).and_then(|template| template.render(context)).map_err(failure)
    }
}

/// What `raise_exception` said, kept apart from the template's own failures.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn failure(error: Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooMuchWork;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        if error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooMuchWork;
        }
        cause = error.source();
    }
    TemplateError::Failed(describe(&error))
}

/// The error without the name of the template, which there is only one of.
fn describe(error: &Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    match error.detail() {
        Some(detail) => format!("{}: {detail}{line}", error.kind()),
        None => format!("{}{line}", error.kind()),
    }
}

fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    Timestamp::try_from(now)
        .and_then(|now| strtime::format(format, &now.to_zoned(TimeZone::UTC)))
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    if ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=True) is not built"));
    }
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            // Wider than anyone writes; the bound keeps a template from asking for gigabytes.
            let indent = " ".repeat(width.min(16));
            let format = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, format))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    let bad =
        |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"));
    written.map_err(|error| bad(&error))?;
    // Marked safe: no further escaping.
    Ok(Value::from_safe_string(String::from_utf8(out).map_err(|error| bad(&error))?))
}

/// `json.dumps(value, ensure_ascii=False)` of what has string keys and finite numbers, so that it
/// cannot fail.
pub(crate) fn python_json(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// One line with `", "` and `": "`, as Python's json writes it.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
