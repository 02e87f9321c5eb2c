//! Tool calls: what must be one, what may be one, and that the parser of `text` reads them back.

use grammar::tools::{Calls, Choice, Tool, ToolsError};
use proptest::prelude::*;
use request::{Constraint, TokenId};
use serde_json::{Value, json};
use text::{CallParser, Heard, ToolSyntax};

use crate::toy::{CALL, START, TOY, one, read};

const SYNTAXES: [ToolSyntax; 3] = [ToolSyntax::Hermes, ToolSyntax::Llama, ToolSyntax::Mistral];

fn schemas() -> [Value; 2] {
    [
        json!({"type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["red", "green"]}},
               "required": ["city", "unit"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/n"}}, "required": ["n"],
               "additionalProperties": false,
               "$defs": {"n": {"type": "object", "properties": {"n": {"type": "null"}}, "additionalProperties": false}}}),
    ]
}

/// Two strict tools and one that takes any object.
fn compile(syntax: ToolSyntax, choice: Choice<'_>, parallel: bool) -> Constraint {
    let [weather, count] = schemas();
    let tools = [
        Tool { name: "weather", parameters: Some(&weather) },
        Tool { name: "weather_2", parameters: Some(&count) },
        Tool { name: "any", parameters: None },
    ];
    Constraint::Grammar(Calls { syntax, marker: None, tools: &tools, choice, parallel }.lark().unwrap())
}

const WEATHER: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"unit\": \"red\"}}\n</tool_call>";
const COUNT: &str = "<tool_call>\n{\"name\": \"weather_2\", \"arguments\": {\"n\": 12, \"next\": {\"n\": null}}}\n</tool_call>";
const ANY: &str = "<tool_call>\n{\"name\": \"any\", \"arguments\": {\"x\": [1]}}\n</tool_call>";

#[test]
fn hermes_calls() {
    let both = format!("{WEATHER}\n{COUNT}");
    let many = compile(ToolSyntax::Hermes, Choice::Required, true);
    TOY.accepts(&many, &[WEATHER, COUNT, ANY, &both]);
    TOY.refuses(
        &many,
        &["", "Hello", &format!("Sure. {WEATHER}"), &format!("{WEATHER} Done."), &both[..both.len() - 1]],
    );
    TOY.refuses(&many, &[&WEATHER.replace("red", "blue"), &WEATHER.replace("\"weather\"", "\"clock\"")]);

    let single = compile(ToolSyntax::Hermes, Choice::Required, false);
    TOY.accepts(&single, &[WEATHER, COUNT]);
    TOY.refuses(&single, &[&both]);

    let named = compile(ToolSyntax::Hermes, Choice::Named("weather_2"), true);
    TOY.accepts(&named, &[COUNT, &format!("{COUNT}\n{COUNT}")]);
    TOY.refuses(&named, &[WEATHER, ANY, &both]);

    let auto = compile(ToolSyntax::Hermes, Choice::Auto, true);
    TOY.accepts(
        &auto,
        &["", "Hello <tool", "It is 3 < 4.", WEATHER, &both, &format!("Let me look.\n\n{both}")],
    );
    TOY.refuses(
        &auto,
        &["Hello <tool_call> there", &WEATHER.replace("red", "blue"), &format!("{WEATHER} Done.")],
    );
}

#[test]
fn hermes_markers_may_be_one_token_or_spelled() {
    for choice in [Choice::Required, Choice::Auto] {
        let calls = compile(ToolSyntax::Hermes, choice, true);
        let rest = WEATHER.strip_prefix("<tool_call>").unwrap();
        let ids = [vec![CALL], TOY.spell(rest)].concat();
        assert_eq!(TOY.check_ids(&calls, &ids), Ok(()));
        assert_eq!(TOY.check_ids(&calls, &[ids.clone(), TOY.spell("\n"), ids].concat()), Ok(()));
    }
}

#[test]
fn llama_and_mistral_calls() {
    let llama = r#"{"name": "weather", "parameters": {"city": "Ulm", "unit": "green"}}"#;
    let pair = format!("{llama}; {llama}");
    TOY.accepts(&compile(ToolSyntax::Llama, Choice::Required, true), &[llama, &pair]);
    TOY.refuses(&compile(ToolSyntax::Llama, Choice::Required, false), &[&pair, "Hello", ""]);
    let auto = compile(ToolSyntax::Llama, Choice::Auto, true);
    TOY.accepts(&auto, &[llama, &pair, "", "Hello {}", "  a {\"name\": \"weather\"}"]);
    TOY.refuses(&auto, &["{", "{}", " {\"name\": 1}", "Look: <|python_tag|>{}"]);

    let one = r#"{"name": "weather", "arguments": {"city": "Ulm", "unit": "green"}}"#;
    let list = format!("[TOOL_CALLS][{one}, {one}]");
    let single = format!("[TOOL_CALLS][{one}]");
    TOY.accepts(&compile(ToolSyntax::Mistral, Choice::Required, true), &[&list, &single]);
    TOY.refuses(&compile(ToolSyntax::Mistral, Choice::Required, false), &[&list, one, ""]);
    TOY.accepts(
        &compile(ToolSyntax::Mistral, Choice::Auto, true),
        &["", "[TOOL", "Well. ", &list, &format!("Well. {single}")],
    );
    TOY.refuses(
        &compile(ToolSyntax::Mistral, Choice::Auto, true),
        &["[TOOL_CALLS]", "[TOOL_CALLS] none", &single[..20]],
    );
}

#[test]
fn a_marker_that_is_a_control_token_is_that_token() {
    let tools = [Tool { name: "any", parameters: None }];
    for (choice, text) in [(Choice::Required, None), (Choice::Auto, None), (Choice::Auto, Some("Well. "))] {
        let calls =
            Calls { syntax: ToolSyntax::Mistral, marker: Some(START), tools: &tools, choice, parallel: true };
        let calls = Constraint::Grammar(calls.lark().unwrap());
        let behind = TOY.spell(r#"[{"name": "any", "arguments": {}}]"#);
        let before = text.map_or_else(Vec::new, |text| TOY.spell(text));
        assert_eq!(
            TOY.check_ids(&calls, &[before, vec![START], behind.clone()].concat()),
            Ok(()),
            "{choice:?}"
        );
        assert!(TOY.check_ids(&calls, &[vec![START, START], behind].concat()).is_err());
        TOY.refuses(&calls, &["[TOOL_CALLS][{\"name\": \"any\", \"arguments\": {}}]"]);
    }
}

#[test]
fn names_are_quoted_and_missing_tools_are_named() {
    let odd = Tool { name: "a \"b\" \\ / é\n", parameters: None };
    let calls = Calls {
        syntax: ToolSyntax::Llama,
        marker: None,
        tools: &[odd],
        choice: Choice::Required,
        parallel: false,
    };
    let call = format!("{{\"name\": {}, \"parameters\": {{}}}}", json!(odd.name));
    TOY.accepts(&Constraint::Grammar(calls.lark().unwrap()), &[&call]);
    let unknown = Calls { choice: Choice::Named("clock"), ..calls };
    assert_eq!(unknown.lark(), Err(ToolsError::Unknown { name: "clock".to_owned() }));
    assert_eq!(Calls { tools: &[], ..calls }.lark(), Err(ToolsError::Empty));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What is drawn under the grammar is what the parser of answers reads: calls of these tools whose
    /// arguments validate, and never a call that the grammar did not hold.
    #[test]
    fn drawn_calls_are_read_back(
        syntax in prop::sample::select(SYNTAXES.to_vec()), which in 0..4_usize, parallel: bool, begins: bool,
        choices in prop::collection::vec(any::<u32>(), 0..150),
    ) {
        let choice = [Choice::Required, Choice::Auto, Choice::Named("any"), Choice::Named("weather")][which];
        let mut matcher = TOY.compile(&compile(syntax, choice, parallel)).unwrap();
        // Into a call at once: chance alone would hardly ever begin one.
        let begun = match (choice, syntax) {
            (Choice::Auto, ToolSyntax::Llama) if begins => "{",
            (Choice::Auto, _) if begins => syntax.marker(),
            _ => "",
        };
        matcher.commit(&TOY.spell(begun)).unwrap();
        let drawn = TOY.draw(&mut *matcher, &choices);
        prop_assert!(drawn.is_some());
        let drawn = String::from_utf8(TOY.text(&drawn.unwrap())).unwrap();
        let text = format!("{begun}{drawn}");

        let names = ["weather", "weather_2", "any"].map(str::to_owned);
        let mut parser = CallParser::new(syntax, names.to_vec());
        let mut heard = Vec::new();
        parser.push(&text, &mut heard);
        parser.finish(&mut heard);
        let mut calls: Vec<(String, String)> = Vec::new();
        let mut said = String::new();
        for part in heard {
            match part {
                Heard::Text(text) => said.push_str(&text),
                Heard::Call { name, .. } => calls.push((name, String::new())),
                Heard::Arguments { index, text } => calls[index as usize].1.push_str(&text),
            }
        }
        prop_assert!(parallel || calls.len() <= 1, "{text}");
        match choice {
            Choice::Auto => prop_assert!(begun.is_empty() || !calls.is_empty(), "{text}"),
            Choice::Required => prop_assert!(!calls.is_empty() && said.is_empty(), "{text} says {said:?}"),
            Choice::Named(name) => {
                prop_assert!(!calls.is_empty() && said.is_empty(), "{text} says {said:?}");
                prop_assert!(calls.iter().all(|(called, _)| called == name), "{text}");
            }
        }
        let [weather, count] = schemas();
        for (name, arguments) in calls {
            let schema = match name.as_str() { "weather" => &weather, "weather_2" => &count, _ => &json!({"type": "object"}) };
            let Some(arguments) = read(&arguments)? else { continue };
            prop_assert!(jsonschema::is_valid(schema, &arguments), "{text}");
        }
    }

    /// Looking ahead and taking back works across the seams of a call.
    #[test]
    fn drafts_across_a_call(syntax in prop::sample::select(SYNTAXES.to_vec()), at in 0..60_usize) {
        let call = match syntax {
            ToolSyntax::Hermes => format!("the end {WEATHER}\n{COUNT}"),
            ToolSyntax::Llama => r#"{"name": "any", "parameters": {"a": {}}}; {"name": "weather_2", "parameters": {"n": 1}}"#.to_owned(),
            ToolSyntax::Mistral => r#"[TOOL_CALLS][{"name": "any", "arguments": {}}, {"name": "any", "arguments": {}}]"#.to_owned(),
        };
        let ids: Vec<TokenId> = TOY.spell(&call);
        let at = at.min(ids.len());
        let mut matcher = TOY.compile(&compile(syntax, Choice::Auto, true)).unwrap();
        matcher.commit(&ids[..at]).unwrap();
        let here = matcher.masks(&[]).unwrap();
        let ahead = matcher.masks(&ids[at..]).unwrap();
        prop_assert_eq!(matcher.masks(&[]).unwrap(), here);
        for (step, mask) in ahead.into_iter().enumerate() {
            prop_assert_eq!(&one(matcher.masks(&[]).unwrap()), &mask, "step {}", step);
            if let Some(id) = ids.get(at + step) {
                matcher.commit(&[*id]).unwrap();
            }
        }
    }
}
