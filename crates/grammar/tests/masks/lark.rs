//! Grammars in Lark: tokens that are no text, JSON inside, what is refused.

use request::Constraint;

use crate::toy::{CALL, END, START, TOY, UNNAMED, allowed, one};

fn lark(text: &str) -> Constraint {
    Constraint::Grammar(text.to_owned())
}

#[test]
fn rules_terminals_and_ignored_space() {
    let sums = lark("start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/\n%ignore \" \"");
    TOY.accepts(&sums, &["1", "12+3", "1 + 2 + 3"]);
    TOY.refuses(&sums, &["", "+", "1+", "1 2", "a"]);
}

#[test]
fn a_grammar_may_name_tokens() {
    // An added token alone, not its text.
    let added = lark("start: \"a\" <tool_call> \"b\"");
    let [a, b] = [b'a', b'b'].map(|byte| request::TokenId(byte.into()));
    assert_eq!(TOY.check_ids(&added, &[a, CALL, b]), Ok(()));
    TOY.refuses(&added, &["a<tool_call>b", "ab"]);
    // A control token.
    let control = lark("start: <|im_start|> /[ab]+/");
    assert_eq!(TOY.check_ids(&control, &[START, a, b]), Ok(()));
    TOY.refuses(&control, &["ab", "<|im_start|>ab"]);
    // In quotes it is text, and an added token may spell it.
    let text = lark("start: \"<tool_call>\" \"b\"");
    assert_eq!(TOY.check_ids(&text, &[CALL, b]), Ok(()));
    TOY.accepts(&text, &["<tool_call>b"]);
    let error = TOY.compile(&lark("start: <nobody>")).unwrap_err();
    assert!(error.starts_with("grammar: ") && error.contains("<nobody>"), "{error}");
}

#[test]
fn text_of_any_kind_allows_no_control_token() {
    for grammar in ["start: /(?s:.*)/", "start: /[^a]+/", "start: ~\"a\"", "start: %json {}"] {
        let mut matcher = TOY.compile(&lark(grammar)).unwrap();
        let mask = one(matcher.masks(&[]).unwrap());
        assert!(!mask.allows(START) && !mask.allows(UNNAMED), "{grammar}");
        assert!(!mask.allows(request::TokenId(0xFF)), "{grammar}: no UTF-8");
        assert!(allowed(&mask, TOY.tokens()).len() > 20, "{grammar}");
    }
}

#[test]
fn json_inside_of_a_grammar() {
    let call = lark(
        "start: \"call \" name \" \" %json {\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}}, \
         \"required\": [\"a\"], \"additionalProperties\": false} \"!\"\nname: \"red\" | \"green\"",
    );
    TOY.accepts(&call, &["call red {\"a\": 12}!", "call green {\"a\":-1}!"]);
    TOY.refuses(&call, &["call blue {\"a\": 1}!", "call red {\"a\": 1}", "call red {}!"]);
}

#[test]
fn a_suffix_ends_free_text() {
    let fenced = lark("start: prose CODE\nprose[suffix=\"```\"]: /(?s:.*)/\nCODE: /[abc]+/");
    TOY.accepts(&fenced, &["the end```abc", "```a", "a `` b```c"]);
    TOY.refuses(&fenced, &["the end", "```", "```abc```"]);
}

#[test]
fn what_is_not_done_is_refused() {
    for (grammar, reason) in [
        ("start: text\ntext[stop=\"x\"]: /.*/", "suffix="),
        ("start: text\ntext[temperature=0.5]: /.*/", "temperature="),
        ("start: text\ntext[max_tokens=3]: /.*/", "max_tokens="),
        ("%llguidance {\"allow_invalid_utf8\": true}\nstart: /(?s:.*)/", "allow_invalid_utf8"),
        ("%llguidance {\"allow_invalid_ut\\u0066\\u0038\": true}\nstart: /(?s:.*)/", "allow_invalid_utf8"),
        ("start: other", "other"),
        ("begin: \"a\"", "start"),
        ("start: \"a", "1"),
        ("start: start", "no"),
        ("}", "}"),
    ] {
        let error = TOY.compile(&lark(grammar)).map(|_| grammar).unwrap_err();
        assert!(error.starts_with("grammar: ") && error.contains(reason), "{grammar}: {error}");
        assert!(error.len() < 600, "{error}");
    }
}

#[test]
fn the_end_of_a_grammar_leaves_stop_tokens() {
    let mut matcher = TOY.compile(&lark("start: \"abc\"")).unwrap();
    matcher.commit(&TOY.spell("abc")).unwrap();
    let mask = one(matcher.masks(&[]).unwrap());
    assert!(mask.allows(END) && allowed(&mask, TOY.tokens()).len() == 2);
}
