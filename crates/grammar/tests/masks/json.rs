//! JSON: what schemas let through, that white space is bounded, that drawn answers are valid.

use proptest::prelude::*;
use request::{Constraint, TokenId};
use serde_json::{Value, json};

use crate::toy::{END, END_OF_TEXT, START, TOY, allowed, one, read, schema};

#[test]
fn schemas_let_through_what_they_describe() {
    let object = |properties: Value| {
        let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    for (schema_, passes, fails) in [
        (
            object(json!({"name": {"type": "string"}, "age": {"type": "integer"}})),
            vec![
                r#"{"name":"Ada","age":36}"#,
                r#"{"name": "", "age": -1}"#,
                "{\n  \"name\": \"é日本😀\",\n  \"age\": 0\n}",
            ],
            // Forced keys: another name, another order, one missing, one more, a wrong type, text around.
            vec![
                r#"{"nam":"Ada","age":36}"#,
                r#"{"age":36,"name":"Ada"}"#,
                r#"{"name":"Ada"}"#,
                r#"{"name":"Ada","age":36,"x":1}"#,
                r#"{"name":1,"age":36}"#,
                r#"{"name":"Ada","age":3.5}"#,
                r#"Sure: {"name":"Ada","age":36}"#,
                r#"{"name":"Ada","age":36} Done."#,
                "",
                "[]",
                "null",
            ],
        ),
        (
            json!({"enum": ["red", "green", "re", 3, null]}),
            vec![r#""red""#, r#""re""#, r#""green""#, "3", "null"],
            vec![r#""blue""#, r#""gree""#, "red", "2", "33"],
        ),
        (
            json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}),
            vec!["[true]", "[true, false]", "[ true,\nfalse, true ]"],
            vec!["[]", "[true,true,true,true]", "[1]", "[true,]", "true"],
        ),
        (
            object(
                json!({"a": object(json!({"b": {"type": "array", "items": object(json!({"c": {"type": "null"}}))}}))}),
            ),
            vec![r#"{"a":{"b":[]}}"#, r#"{"a": {"b": [{"c": null}, {"c": null}]}}"#],
            vec![r#"{"a":{"b":[{}]}}"#, r#"{"a":{"b":[{"c":null}]}"#, r#"{"a":{}}"#],
        ),
        (
            json!({"type": "string"}),
            vec![r#""""#, r#""a\"b\\c\n\u0001""#, r#""日本 é 😀""#, r#""<tool_call>""#],
            vec!["\"a\nb\"", r#""\x""#, r#""open"#, r#""a"b""#, "\"\u{0}\""],
        ),
        (
            json!({"type": "string", "pattern": "^[a-c]{2,3}$"}),
            vec![r#""ab""#, r#""abc""#],
            vec![r#""a""#, r#""abcd""#, r#""xabx""#],
        ),
        (
            json!({"type": "string", "minLength": 2, "maxLength": 3}),
            vec![r#""日本""#, r#""abc""#, r#""a\n""#],
            vec![r#""a""#, r#""abcd""#, r#""😀""#],
        ),
        (
            json!({"type": "string", "format": "date"}),
            vec![r#""2024-02-29""#],
            vec![r#""2024-13-01""#, r#""today""#],
        ),
        (
            json!({"type": "number"}),
            vec!["0", "-0.5", "12e3", "1.25E-7", "1200"],
            vec!["01", ".5", "1.", "+1", "1e", "NaN", "0x10", "--1"],
        ),
        (
            json!({"type": "integer", "minimum": -3, "maximum": 120}),
            vec!["-3", "0", "99", "120"],
            vec!["-4", "121", "1.5", "1000"],
        ),
        (
            json!({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}],
                   "$defs": {"list": {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}},
                                      "required": ["next"], "additionalProperties": false}}}),
            vec!["null", r#"{"next":{"next":null}}"#],
            vec!["{}", r#"{"next":{"next":{}}}"#],
        ),
        (
            json!({"const": {"a": [1, "é"]}}),
            vec![r#"{"a": [1, "é"]}"#],
            vec![r#"{"a":[1,"e"]}"#, r#"{"a":[2,"é"]}"#],
        ),
        (json!(true), vec!["1", "{}", r#"[null, {"a": "b"}]"#], vec!["", "nul", "{]"]),
    ] {
        let schema = schema(schema_);
        TOY.accepts(&schema, &passes);
        TOY.refuses(&schema, &fails);
    }
}

#[test]
fn json_object_is_any_object_and_nothing_else() {
    let any = Constraint::JsonObject;
    TOY.accepts(
        &any,
        &["{}", r#"{"a": [1, {"b": null}], "é": "日本"}"#, "{\n    \"a\": {\n        \"b\": []\n    }\n}"],
    );
    TOY.refuses(&any, &["[]", "1", "\"a\"", "{\"a\"}", "{\"a\": 1,}", "{} {}", "```json\n{}```", "\n\n{}"]);
}

/// A model that only ever wants white space gets little of it.
#[test]
fn white_space_is_bounded_everywhere() {
    let blank = |id: &TokenId| {
        let text = TOY.text(&[*id]);
        !text.is_empty() && text.iter().all(u8::is_ascii_whitespace)
    };
    for constraint in [
        Constraint::JsonObject,
        schema(json!({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2})),
    ] {
        let mut matcher = TOY.compile(&constraint).unwrap();
        let (mut run, mut longest, mut all) = (0, 0, 0);
        loop {
            let mask = one(matcher.masks(&[]).unwrap());
            let allowed = allowed(&mask, TOY.tokens());
            let Some(id) = allowed.iter().copied().find(blank).or_else(|| {
                // The shortest way on; digits once only.
                "[{]},0\":".bytes().map(|b| TokenId(b.into())).find(|id| mask.allows(*id))
            }) else {
                assert!(mask.allows(END), "{allowed:?}");
                break;
            };
            matcher.commit(&[id]).unwrap();
            run = if blank(&id) { run + TOY.text(&[id]).len() } else { 0 };
            longest = longest.max(run);
            all += 1;
            assert!(all < 300, "no end of it");
        }
        assert!((1..=34).contains(&longest), "{constraint:?}: {longest}");
    }
}

#[test]
fn behind_the_last_brace_only_stop_tokens_come() {
    for (constraint, text) in [(Constraint::JsonObject, "{}"), (schema(json!({"enum": ["red"]})), "\"red\"")]
    {
        let mut matcher = TOY.compile(&constraint).unwrap();
        matcher.commit(&TOY.spell(text)).unwrap();
        assert_eq!(
            allowed(&one(matcher.masks(&[]).unwrap()), TOY.tokens()),
            [END, END_OF_TEXT],
            "{constraint:?}"
        );
        assert_eq!(matcher.commit(&[TokenId(32)]), Err(TokenId(32)));
        assert_eq!(matcher.allowed(&[TokenId(32)]), 0);
        matcher.rollback(1);
        let mask = one(matcher.masks(&[]).unwrap());
        assert!(!mask.allows(END) && !mask.allows(START));
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    for (schema_, reason) in [
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"type": "object", "if": {}, "then": {}}), "if"),
        (json!({"type": "string", "format": "shape"}), "shape"),
        (json!({"oneOf": [{"type": "string"}, {"minLength": 3}]}), "anyOf"),
        (json!({"$ref": "https://example.com/schema.json"}), "https://example.com/schema.json"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"type": "strnig"}), "strnig"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "nsatisfiable"),
        (json!(false), "nsatisfiable"),
        (json!({"type": "string", "pattern": "a(?=b)"}), "look-around"),
        (json!([]), "object or boolean"),
        (json!({"type": "string", "x-guidance": {"colour": 1}}), "colour"),
    ] {
        let error = TOY.compile(&schema(&schema_)).unwrap_err();
        assert!(error.starts_with("json_schema: ") && error.contains(reason), "{schema_}: {error}");
        assert!(error.len() < 400 && !error.contains('<'), "{error}");
    }
    let error = TOY.compile(&schema("{\"type\": ")).unwrap_err();
    assert!(error.contains("not JSON"), "{error}");
}

#[test]
fn options_of_the_schema_hold() {
    let compact =
        json!({"type": "array", "items": {"type": "null"}, "x-guidance": {"whitespace_flexible": false}});
    TOY.accepts(&schema(&compact), &["[null,null]"]);
    TOY.refuses(&schema(&compact), &["[null, null]"]);
    let one_of =
        json!({"oneOf": [{"type": "string"}, {"minLength": 1}], "x-guidance": {"coerce_one_of": true}});
    TOY.accepts(&schema(&one_of), &["\"\"", "\"abc\""]);
}

/// Schemas of all kinds, for drawing.
fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object"}),
        json!({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}),
        json!({"type": "object", "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}}},
               "required": ["name"]}),
        json!({"type": "object", "required": ["colour", "at"], "additionalProperties": false, "properties": {
               "colour": {"enum": ["red", "green"]}, "at": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}],
               "items": false, "minItems": 2}, "note": {"type": ["string", "null"]}}}),
        json!({"type": "array", "items": {"anyOf": [{"type": "integer", "minimum": -7, "maximum": 130}, {"type": "boolean"}]}, "maxItems": 5}),
        json!({"type": "number", "minimum": -1.5, "exclusiveMaximum": 20}),
        json!({"type": "integer", "multipleOf": 7, "minimum": -700, "maximum": 9_999}),
        json!({"type": "string", "pattern": "^(red|green) [0-9]{2,4}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                         {"properties": {"b": {"type": "string"}}, "required": ["b"]}]}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "additionalProperties": false, "required": ["leaf"],
               "properties": {"leaf": {"type": "integer"}, "left": {"$ref": "#/$defs/tree"}, "right": {"$ref": "#/$defs/tree"}}}}}),
        json!({"type": "object", "patternProperties": {"^x_[a-z]+$": {"type": "boolean"}}, "additionalProperties": false}),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is drawn under the masks of a schema parses, and validates by another implementation.
    #[test]
    fn drawn_answers_are_valid(which in 0..schemas().len(), choices in prop::collection::vec(any::<u32>(), 0..120)) {
        let document = schemas().swap_remove(which);
        let mut matcher = TOY.compile(&schema(&document)).unwrap();
        let ids = TOY.draw(&mut *matcher, &choices);
        prop_assert!(ids.is_some(), "{document}: no end");
        let text = String::from_utf8(TOY.text(&ids.unwrap())).unwrap();
        let Some(value) = read(&text)? else { return Ok(()) };
        let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&document).unwrap();
        prop_assert!(validator.is_valid(&value), "{document} does not admit {text}");
    }
}
