use serde_json::json;

use super::*;

const ALL: [&Table; 5] = [&CHAT, &COMPLETIONS, &RESPONSES, &TOKENIZE, &DETOKENIZE];

#[test]
fn neutral_values() {
    for (neutral, good, bad) in [
        (Neutral::Null, vec![json!(null)], vec![json!(0), json!(false), json!([])]),
        (Neutral::Empty, vec![json!([]), json!({})], vec![json!([1]), json!("")]),
        (Neutral::True, vec![json!(true)], vec![json!(false), json!(1)]),
        (Neutral::False, vec![json!(false)], vec![json!(true), json!(0)]),
        (Neutral::Number(0), vec![json!(0), json!(0.0), json!(-0.0)], vec![json!(0.1), json!("0")]),
        (Neutral::Words(&["none"]), vec![json!("none")], vec![json!("auto"), json!({})]),
        (Neutral::TextOnly, vec![json!(["text"])], vec![json!(["text", "audio"]), json!([])]),
    ] {
        assert!(neutral.holds(&Value::Null));
        assert!(good.iter().all(|v| neutral.holds(v)), "{neutral:?}");
        assert!(!bad.iter().any(|v| neutral.holds(v)), "{neutral:?}");
    }
}

#[test]
fn a_field_stands_in_one_table() {
    for table in ALL {
        let taken = table.honoured.iter().chain(table.no_effect).copied().flatten().map(|(name, _)| *name);
        let mut names: Vec<_> =
            taken.chain(table.refused.iter().copied().flatten().map(|(name, ..)| *name)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "{}", table.path);
    }
}

/// The document holds exactly these rows under each path's heading, so it cannot promise what the
/// parsers do not do.
#[test]
fn the_document_lists_the_tables() {
    let document = include_str!("../../../../../docs/openai-api.md");
    for table in ALL {
        let heading = format!("## `POST {}`\n", table.path);
        let (_, section) = document.split_once(&heading).unwrap_or_else(|| panic!("no {heading}"));
        let section = section.split("\n## ").next().unwrap();
        let taken = table.honoured.iter().chain(table.no_effect).copied().flatten();
        let mut rows: Vec<String> = taken.map(|(name, note)| format!("| `{name}` | {note} |")).collect();
        let refused = table.refused.iter().copied().flatten();
        rows.extend(refused.map(|(name, neutral, instead)| format!("| `{name}` | {neutral} | {instead} |")));
        for row in &rows {
            assert!(
                section.lines().any(|l| l == row),
                "docs/openai-api.md, {}, lacks the row:\n{row}",
                table.path
            );
        }
        let listed = section.lines().filter(|l| l.starts_with("| `")).count();
        assert_eq!(listed, rows.len(), "docs/openai-api.md, {}, lists a field that no table has", table.path);
    }
}
