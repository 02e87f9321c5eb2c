//! Regular expressions hold for the whole answer.

use request::Constraint;

use crate::toy::TOY;

#[test]
fn an_expression_is_matched_against_the_whole_answer() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("[ab]+", &["a", "abba"], &["", "abc", "xab", "ab\n"]),
        ("^[ab]+$", &["a", "abba"], &["", "abc", "xab"]),
        ("red|green", &["red", "green"], &["redgreen", "re", "green!"]),
        ("^red|green$", &["red", "green"], &["redx", "xgreen"]),
        (r"a\$", &["a$"], &["a"]),
        (r"a\\$", &["a\\"], &["a\\$"]),
        (r"a/b\n?", &["a/b", "a/b\n"], &["a"]),
        (r"\d{3}-\w+", &["123-é"], &["12-a"]),
        ("(?i)the end", &["THE end"], &["the  end"]),
        ("日本|é", &["日本", "é"], &["日", "e"]),
        (".{2}", &["日本", "ab"], &["a\n", "abc"]),
        ("(a?){3}", &["", "aa"], &["aaaa"]),
        ("^$", &[""], &["a"]),
    ];
    for (expression, passes, fails) in cases {
        let constraint = Constraint::Regex((*expression).to_owned());
        TOY.accepts(&constraint, passes);
        TOY.refuses(&constraint, fails);
    }
}

#[test]
fn a_bad_expression_is_refused_with_its_fault() {
    for (expression, reason) in [
        ("(a", "unclosed group"),
        ("a{3,1}", "repetition"),
        ("a(?=b)", "look-around"),
        (r"\bword\b", "not supported"),
        (r"(a)\1", "backreference"),
        ("a^b", "lookarounds"),
        (r"[^\s\S]", "allows no"),
        ("", "is empty"),
    ] {
        let error = TOY.compile(&Constraint::Regex(expression.to_owned())).map(|_| expression).unwrap_err();
        assert!(error.starts_with("regex: ") && error.contains(reason), "{expression}: {error}");
    }
}
