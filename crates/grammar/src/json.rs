use serde_json::{Map, Value, json};

/// The white space allowed between two symbols of JSON: one blank, or a line break with indentation.
///
/// Small models, left to themselves, can go on with white space until the answer is cut off. Compact and
/// pretty-printed texts both pass; three lines empty, or a column further right than eight levels of
/// four, do not. A schema that brings its own `x-guidance` options for white space keeps them.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\t]{0,32}";

/// Where llguidance looks for options in a schema.
const OPTIONS: &str = "x-guidance";

/// A schema of any JSON object.
pub(crate) fn any_object() -> Value {
    bounded(json!({"type": "object"}))
}

/// The schema with our choice of white space written into it.
pub(crate) fn bounded(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        // Any JSON; `{}` says the same where options can be written.
        Value::Bool(true) => Map::new(),
        other => return other,
    };
    let options = schema.entry(OPTIONS).or_insert_with(|| json!({}));
    if let Some(options) = options.as_object_mut()
        && !options.contains_key("whitespace_pattern")
        && !options.contains_key("whitespace_flexible")
    {
        options.insert("whitespace_pattern".to_owned(), json!(WHITESPACE));
    }
    Value::Object(schema)
}
