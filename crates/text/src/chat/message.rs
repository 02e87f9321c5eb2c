use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// What a chat template is given: the turns, and the tools that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
}

/// One turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// As templates know it: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// `None` only in a turn that is tool calls and nothing else.
    pub content: Option<String>,
    /// Calls that the assistant made in this turn.
    pub tool_calls: Vec<ToolCall>,
    /// With role `tool`: the call that this answers.
    pub tool_call_id: Option<String>,
    /// Who speaks, or with role `tool` the tool's name. Most templates ignore it.
    pub name: Option<String>,
}

/// A call that the assistant made.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    pub arguments: Map<String, Value>,
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments, its keys in the caller's order; `None`: it takes none.
    pub parameters: Option<Map<String, Value>>,
}

impl Conversation {
    /// Bytes of text, roughly: how much work rendering and encoding is.
    pub fn bytes(&self) -> usize {
        let messages = self.messages.iter().map(|m| {
            let calls = m.tool_calls.iter().map(|c| c.id.len() + c.name.len() + of_map(&c.arguments));
            let texts = [&m.content, &m.tool_call_id, &m.name].into_iter().flatten().map(String::len);
            // The role stands for what the template writes around a turn, too.
            m.role.len() + texts.sum::<usize>() + calls.sum::<usize>()
        });
        let tools = self.tools.iter().map(|t| {
            let description = t.description.as_ref().map_or(0, String::len);
            t.name.len() + description + t.parameters.as_ref().map_or(0, of_map)
        });
        messages.sum::<usize>() + tools.sum::<usize>()
    }

    /// Rewrites every text that came from outside; names of fields and schemas' keys included.
    pub(super) fn map_texts(&mut self, change: &mut impl FnMut(&mut String)) {
        for message in &mut self.messages {
            change(&mut message.role);
            message
                .content
                .iter_mut()
                .chain(&mut message.tool_call_id)
                .chain(&mut message.name)
                .for_each(&mut *change);
            for call in &mut message.tool_calls {
                change(&mut call.id);
                change(&mut call.name);
                map_object(&mut call.arguments, change);
            }
        }
        for tool in &mut self.tools {
            change(&mut tool.name);
            tool.description.iter_mut().for_each(&mut *change);
            if let Some(parameters) = &mut tool.parameters {
                map_object(parameters, change);
            }
        }
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, tools: Vec::new() }
    }
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Self::default() }
    }
}

/// The fields that Hugging Face's templates read; absent rather than `null`, because templates ask
/// `is defined` and `in message`.
impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            role: &'a str,
            content: &'a Option<String>,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            tool_calls: &'a [ToolCall],
            #[serde(skip_serializing_if = "Option::is_none")]
            tool_call_id: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: &'a Option<String>,
        }
        let Self { role, content, tool_calls, tool_call_id, name } = self;
        Fields { role, content, tool_calls, tool_call_id, name }.serialize(serializer)
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            id: &'a str,
            r#type: &'static str,
            function: Function<'a>,
        }
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            /// An object, not OpenAI's string: templates write it with `tojson`.
            arguments: &'a Map<String, Value>,
        }
        let function = Function { name: &self.name, arguments: &self.arguments };
        Fields { id: &self.id, r#type: "function", function }.serialize(serializer)
    }
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            r#type: &'static str,
            function: Function<'a>,
        }
        #[derive(Serialize)]
        struct Function<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            description: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            parameters: &'a Option<Map<String, Value>>,
        }
        let Self { name, description, parameters } = self;
        Fields { r#type: "function", function: Function { name, description, parameters } }
            .serialize(serializer)
    }
}

fn of_map(object: &Map<String, Value>) -> usize {
    object.iter().map(|(key, value)| key.len() + of(value)).sum()
}

/// Depth is bounded by the JSON parser that made the value.
fn of(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len(),
        Value::Array(a) => a.iter().map(of).sum(),
        Value::Object(o) => of_map(o),
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}

fn map_object(object: &mut Map<String, Value>, change: &mut impl FnMut(&mut String)) {
    let old = std::mem::take(object);
    object.extend(old.into_iter().map(|(mut key, mut value)| {
        change(&mut key);
        map_value(&mut value, change);
        (key, value)
    }));
}

fn map_value(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(s) => change(s),
        Value::Array(a) => a.iter_mut().for_each(|v| map_value(v, change)),
        Value::Object(o) => map_object(o, change),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
