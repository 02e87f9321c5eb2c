//! What is done to a Lark grammar before llguidance reads it.

use std::collections::HashMap;

use request::TokenId;

/// Deepest nesting of brackets: llguidance's reader of grammars recurses.
const DEEPEST: usize = 100;

/// The grammar with each added token that it names (`<tool_call>`) written by number (`<[151657]>`).
///
/// llguidance finds tokens by name among control tokens only; added ones are text to it, so that text in
/// quotes may be spelled with them. Options that would have no effect here are refused.
pub(crate) fn number_tokens(grammar: &str, added: &HashMap<String, TokenId>) -> Result<String, String> {
    if grammar.contains("%llguidance") && (grammar.contains("utf8") || grammar.contains("\\u")) {
        return Err("%llguidance with allow_invalid_utf8 is not supported: an answer is text".to_owned());
    }
    let mut numbered = String::with_capacity(grammar.len());
    let mut rest = grammar;
    let mut depth = 0_usize;
    while let Some(symbol) = rest.chars().next() {
        if symbol == 't' && is_set(rest, "temperature") {
            return Err(
                "temperature= is not supported: one temperature holds for the whole request".to_owned()
            );
        }
        let symbols = match symbol {
            '"' => quoted(rest, '"'),
            '/' if rest.starts_with("//") => line(rest),
            '/' => quoted(rest, '/'),
            '#' => line(rest),
            '<' => named(rest).unwrap_or(1),
            _ => symbol.len_utf8(),
        };
        match symbol {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(format!("brackets are nested deeper than {DEEPEST}"));
        }
        let (written, after) = rest.split_at(symbols);
        match added.get(written).filter(|_| symbol == '<') {
            Some(id) => numbered.push_str(&format!("<[{id}]>")),
            None => numbered.push_str(written),
        }
        rest = after;
    }
    Ok(numbered)
}

/// Whether `text` begins by giving this attribute of a rule a value.
fn is_set(text: &str, attribute: &str) -> bool {
    text.strip_prefix(attribute).is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with('='))
}

/// Bytes of the literal that `text` begins with, up to the same mark without a backslash before it.
fn quoted(text: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == mark => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes up to the end of the line.
fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// Bytes of the token name that `text` begins with, if it does.
fn named(text: &str) -> Option<usize> {
    let end = text.get(1..)?.find(|c: char| c == '<' || c == '>' || c.is_whitespace())? + 1;
    (end > 1 && text.get(end..)?.starts_with('>')).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_added_tokens_outside_literals_are_numbered() {
        let added = HashMap::from([("<call>".to_owned(), TokenId(7)), ("a".to_owned(), TokenId(8))]);
        for (grammar, expected) in [
            ("start: <call> a", "start: <[7]> a"),
            ("start: <call><call>", "start: <[7]><[7]>"),
            ("start: <other> <call >", "start: <other> <call >"),
            (r#"start: "<call>" "\"<call>" <call>"#, r#"start: "<call>" "\"<call>" <[7]>"#),
            (r"start: /<call>\/<call>/ <call>", r"start: /<call>\/<call>/ <[7]>"),
            ("# <call>\nstart: <call> // <call>", "# <call>\nstart: <[7]> // <call>"),
            (r#"start: %json {"a//": "<call>"} <call>"#, r#"start: %json {"a//": "<call>"} <[7]>"#),
            ("start: \"<call>", "start: \"<call>"),
            ("start: /<call>", "start: /<call>"),
            ("<", "<"),
            ("<>", "<>"),
        ] {
            assert_eq!(number_tokens(grammar, &added).unwrap(), expected, "{grammar}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_grammar_without_added_tokens_is_unchanged(grammar in "[a-z\"/<>#\\\\\n {}é]{0,60}") {
            proptest::prop_assert_eq!(number_tokens(&grammar, &HashMap::new()).unwrap(), grammar);
        }
    }
}
