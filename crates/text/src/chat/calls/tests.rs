use proptest::prelude::*;

use super::*;

const TOOLS: [&str; 2] = ["f", "weather"];

fn parse(syntax: ToolSyntax, pieces: &[&str]) -> Vec<Heard> {
    let mut parser = CallParser::new(syntax, TOOLS.map(String::from).to_vec());
    let mut heard = Vec::new();
    pieces.iter().for_each(|piece| parser.push(piece, &mut heard));
    parser.finish(&mut heard);
    joined(heard)
}

/// Neighbours of one kind as one.
fn joined(heard: Vec<Heard>) -> Vec<Heard> {
    let mut all: Vec<Heard> = Vec::new();
    for next in heard {
        match (all.last_mut(), next) {
            (Some(Heard::Text(a)), Heard::Text(b)) => a.push_str(&b),
            (Some(Heard::Arguments { index: i, text: a }), Heard::Arguments { index, text: b })
                if *i == index =>
            {
                a.push_str(&b);
            }
            (_, next) => all.push(next),
        }
    }
    all
}

/// Text and calls in a row: `said "x"`, `f({..})`.
fn short(heard: &[Heard]) -> String {
    let mut out = String::new();
    for part in heard {
        match part {
            Heard::Text(text) => out.push_str(&format!("[{text}]")),
            Heard::Call { index, name } => out.push_str(&format!("{index}:{name}")),
            Heard::Arguments { text, .. } => out.push_str(&format!("({text})")),
        }
    }
    out
}

#[test]
fn answers_and_what_is_heard() {
    use ToolSyntax::{Hermes, Llama, Mistral};
    for (syntax, answer, heard) in [
        (Hermes, "Hello.", "[Hello.]"),
        (
            Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            "0:f({\"a\": 1})",
        ),
        // Text before stays, the white space between does not.
        (
            Hermes,
            "Let me see.\n\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>\n{\"name\": \
             \"weather\", \"arguments\": {\"in\": \"Bad } \\\" {\"}}\n</tool_call>\n",
            "[Let me see.]0:f({})1:weather({\"in\": \"Bad } \\\" {\"})[\n]",
        ),
        (
            Hermes,
            "<tool_call>{\"arguments\": {\"a\": [1, {}]}, \"name\": \"f\"}</tool_call>",
            "0:f({\"a\": [1, {}]})",
        ),
        (
            Hermes,
            "<tool_call>{\"id\": 7, \"x\": [\"}\"], \"name\": \"f\", \"arguments\": {}, \"y\": {}}</tool_call>",
            "0:f({})",
        ),
        (Hermes, "<tool_call>{\"name\": \"f\"}</tool_call>", "0:f({})"),
        // Ends that are missing: of the object, of the element, of everything.
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}\n</tool_call>.", "0:f({})[.]"),
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", "0:f({})"),
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b", "0:f({\"a\": \"b)"),
        // What only looks like a call stays as it is.
        (Hermes, "a <tool_call", "[a <tool_call]"),
        (Hermes, "<<tool_call>x", "[<<tool_call>x]"),
        (
            Hermes,
            "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>",
            "[<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>]",
        ),
        (
            Hermes,
            "<tool_call> {\"name\": \"f\", \"arguments\": \"x\"}",
            "[<tool_call> {\"name\": \"f\", \"arguments\": \"x\"}]",
        ),
        (Hermes, " \n<tool_call>\n{\"na", "[ \n<tool_call>\n{\"na]"),
        (
            Hermes,
            "<tool_call><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
            "[<tool_call>]0:f({})",
        ),
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}oh", "0:f({})[oh]"),
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {]}}", "0:f({)[]}}]"),
        // Without its marker, at the start only.
        (
            Hermes,
            "{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
            "0:f({})1:f({\"a\": 1})",
        ),
        (Hermes, "{\"name\": \"f\", \"arguments\": {}}</tool_call>.", "0:f({})[.]"),
        (Hermes, "So: {\"name\": \"f\", \"arguments\": {}}", "[So: {\"name\": \"f\", \"arguments\": {}}]"),
        (Hermes, "{\"name\": \"Bob\", \"arguments\": {}}", "[{\"name\": \"Bob\", \"arguments\": {}}]"),
        (Hermes, "{\"a\": 1} <tool_call>{\"name\": \"f\"}", "[{\"a\": 1}]0:f({})"),
        (
            Llama,
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"f\", \"parameters\": {}}",
            "0:f({})1:f({})",
        ),
        (Llama, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "0:f({\"a\": 1})"),
        (Llama, "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "0:f({})"),
        (Llama, "Yes.<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "[Yes.]0:f({})"),
        (
            Llama,
            " {\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"weather\", \"parameters\": {}}",
            "0:f({})1:weather({})",
        ),
        (Llama, "{\"name\": \"Bob\", \"parameters\": {}}", "[{\"name\": \"Bob\", \"parameters\": {}}]"),
        (Llama, "{\"name\": \"f\", \"parameters\": {}} or so; {", "0:f({})[ or so; {]"),
        (Llama, "see {\"name\": \"f\", \"parameters\": {}}", "[see {\"name\": \"f\", \"parameters\": {}}]"),
        (Mistral, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", "0:f({\"a\": 1})"),
        (
            Mistral,
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"weather\", \"arguments\": {}, \"id\": \"123456789\"}]",
            "0:f({})1:weather({})",
        ),
        (
            Mistral,
            "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{}",
            "0:f({\"a\": 1})1:weather({})",
        ),
        (Mistral, "Sure. [TOOL_CALLS]f[ARGS]{}", "[Sure.]0:f({})"),
        (Mistral, "[TOOL_CALLS]rm[ARGS]{}", "[[TOOL_CALLS]rm[ARGS]{}]"),
        (Mistral, "[1, 2]", "[[1, 2]]"),
    ] {
        assert_eq!(short(&parse(syntax, &[answer])), heard, "{answer}");
    }
}

#[test]
fn a_call_is_heard_while_it_is_written() {
    let mut parser = CallParser::new(ToolSyntax::Hermes, TOOLS.map(String::from).to_vec());
    let mut at = |text: &str| {
        let mut heard = Vec::new();
        parser.push(text, &mut heard);
        short(&heard)
    };
    assert_eq!(at("Hm. <tool"), "[Hm.]");
    assert_eq!(at("_call>{\"name\": \"f\", \"argu"), "");
    assert_eq!(at("ments\": {\"a"), "0:f({\"a)");
    assert_eq!(at("\": 1"), "(\": 1)");
    assert_eq!(at("}}\n</tool_call>"), "(})");
    assert_eq!(parser.calls(), 1);
}

#[test]
fn what_is_held_back_is_bounded() {
    for (syntax, start, more) in [
        (ToolSyntax::Hermes, "<tool_call>{\"x\": [", "1,"),
        (ToolSyntax::Hermes, "<tool_call>", " "),
        (ToolSyntax::Hermes, "", "\n"),
        (ToolSyntax::Hermes, "<tool_call>{\"", "<tool_call>{\""),
        (ToolSyntax::Mistral, "[TOOL_CALLS]", "f"),
    ] {
        let answer = start.to_owned() + &more.repeat(3 * LONGEST_HEAD);
        let mut parser = CallParser::new(syntax, TOOLS.map(String::from).to_vec());
        let mut heard = Vec::new();
        parser.push(&answer, &mut heard);
        assert!(parser.held.len() <= LONGEST_HEAD + 4, "{start}");
        parser.finish(&mut heard);
        assert_eq!(joined(heard), [Heard::Text(answer)]);
    }
}

/// Fragments that meet in good and bad calls.
fn answer() -> impl Strategy<Value = String> {
    let parts = [
        "<tool_call>",
        "</tool_call>",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {",
        "}",
        "{",
        "\"",
        "\\",
        ",",
        ":",
        "[",
        "]",
        "\n",
        " ",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "f",
        "weather",
        "\"name\": ",
        "\"f\"",
        "\"arguments\": ",
        "\"parameters\": {}",
        ";",
        "é",
        "<",
        "1",
        "{\"name\": \"f\", \"parameters\": {}}",
        "{\"name\": \"weather\", \"arguments\": {\"a\": \"b\"}}",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_do_not_matter(
        syntax in prop::sample::select(vec![ToolSyntax::Hermes, ToolSyntax::Llama, ToolSyntax::Mistral]),
        answer in answer(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut at: Vec<usize> = cuts.iter().map(|c| c.index(answer.len() + 1)).filter(|c| answer.is_char_boundary(*c)).collect();
        at.extend([0, answer.len()]);
        at.sort_unstable();
        let pieces: Vec<&str> = at.windows(2).map(|w| &answer[w[0]..w[1]]).collect();
        prop_assert_eq!(parse(syntax, &pieces), parse(syntax, &[&answer]));
    }

    /// Without a recognised call nothing is changed, nothing lost.
    #[test]
    fn without_a_call_the_text_is_the_answer(
        syntax in prop::sample::select(vec![ToolSyntax::Hermes, ToolSyntax::Llama, ToolSyntax::Mistral]),
        answer in answer(),
    ) {
        let heard = parse(syntax, &[&answer]);
        let calls = heard.iter().filter(|h| matches!(h, Heard::Call { .. })).count();
        let text: String = heard.iter().filter_map(|h| match h { Heard::Text(t) => Some(t.as_str()), _ => None }).collect();
        if calls == 0 {
            prop_assert_eq!(text, answer);
        } else {
            prop_assert!(text.len() < answer.len());
        }
        for (i, part) in heard.iter().enumerate() {
            if matches!(part, Heard::Call { .. }) {
                let follows = matches!(heard.get(i + 1), Some(Heard::Arguments { .. }));
                prop_assert!(follows, "a call without arguments");
            }
        }
    }
}

/// Of what a model says for ever behind a call, little is kept.
#[test]
fn endless_separators_are_not_held() {
    for (syntax, call, more) in [
        (ToolSyntax::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", "\n"),
        (ToolSyntax::Llama, "{\"name\": \"f\", \"parameters\": {}}", ";"),
        (ToolSyntax::Mistral, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}", " "),
    ] {
        let mut parser = CallParser::new(syntax, TOOLS.map(String::from).to_vec());
        let mut heard = Vec::new();
        parser.push(call, &mut heard);
        for _ in 0..10_000 {
            parser.push(more, &mut heard);
            assert!(parser.held.len() <= MOST_SPACE && parser.again.is_empty());
        }
        assert_eq!(parser.calls(), 1, "{syntax:?}");
    }
}
