//! Constraints that want time, memory or stack: refused, or held within bounds.

use std::time::{Duration, Instant};

use request::{Constraint, TokenId};
use serde_json::{Value, json};

use crate::toy::{TOY, Toy, allowed, one, schema};

/// A chain of definitions, each a reference to the next, under as many arrays as JSON may be deep.
fn references(links: usize, arrays: usize) -> String {
    let (open, close) = ("{\"items\":".repeat(arrays), "}".repeat(arrays));
    let link = |i: usize| format!("\"{i:x}\":{open}{{\"$ref\":\"#/$defs/{:x}\"}}{close},", i + 1);
    let chain: String = (0..links).map(link).collect();
    format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{chain}\"{links:x}\":{{\"type\":\"null\"}}}}}}")
}

fn nested(depth: usize) -> String {
    format!("{}{{}}{}", "{\"items\":".repeat(depth), "}".repeat(depth))
}

fn chain(rules: usize, name: &str, last: &str) -> String {
    let rule = |i: usize| format!("{name}{i}:{name}{}\n", i + 1);
    (0..rules).map(rule).collect::<String>() + &format!("{name}{rules}: {last}\n")
}

fn all() -> Vec<(&'static str, Constraint)> {
    let lark = |text: String| Constraint::Grammar(text);
    let regex = |text: &str| Constraint::Regex(text.to_owned());
    let many: Vec<Value> = (0..30_000).map(|i| json!(i)).collect();
    let options: Vec<Value> = (0..8).map(|i| json!({"anyOf": (0..8).map(|j| json!({"properties": {format!("p{i}_{j}"): {"type": "string"}}})).collect::<Vec<_>>()})).collect();
    let properties: serde_json::Map<String, Value> =
        (0..5_000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
    vec![
        ("a repetition of repetitions", regex("((a{1,1000}){1,1000}){1,1000}")),
        ("a long repetition", regex("[ab]{1000000}")),
        ("a product of choices", regex("(.*a.{20}|.*b.{20})*")),
        ("a difference that grows", lark("start: /(a|b)*a(a|b){30}/".to_owned())),
        (
            "an intersection that explodes",
            lark("start: T\nT: /(.*a.{15})/ & /(.*b.{14})/ & ~/(.*c.{16})/".to_owned()),
        ),
        ("an intersection", lark("start: T\nT: /(.*a.{7})/ & /(.*b.{6})/ & ~/(.*c.{7})/".to_owned())),
        ("groups in groups", regex(&format!("{}a{}", "(".repeat(60_000), ")".repeat(60_000)))),
        ("brackets in brackets", lark(format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000)))),
        ("a chain of rules", lark(format!("start: r0\n{}", chain(18_000, "r", "\"a\"")))),
        ("a chain of terminals", lark(format!("start: R0\n{}", chain(18_000, "R", "\"a\"")))),
        ("rules into themselves", lark("start: a\na: b | a a | \"x\"?\nb: a | b b\n".to_owned())),
        ("ambiguity", lark(format!("start: ({})+", ["e"; 400].join("|")) + "\ne: \"a\"? | e e\n")),
        ("numbers of an object", schema(json!({"type": "array", "minItems": 100_000_000}))),
        (
            "lengths of a string",
            schema(json!({"type": "string", "minLength": 100_000_000, "maxLength": 200_000_000})),
        ),
        ("a large enumeration", schema(json!({"enum": many}))),
        ("a product of options", schema(json!({"allOf": options}))),
        ("many properties", schema(json!({"type": "object", "properties": properties}))),
        ("a chain of references", schema(references(8_000, 0))),
        ("references under arrays", schema(references(210, 110))),
        ("a reference to itself", schema(json!({"$ref": "#"}))),
        ("nesting", schema(nested(20_000))),
        ("nesting that JSON allows", schema(nested(120))),
        (
            "digits",
            schema(json!({"type": "number", "minimum": 1e-300, "maximum": 1e300, "multipleOf": 1e-9})),
        ),
        ("multiples", schema(json!({"type": "integer", "multipleOf": 99_991}))),
        ("a pattern in keys", schema(json!({"patternProperties": {"(.*a.{18})": true, "(.*b.{18})": true}}))),
        ("a cut character in an error", schema(json!({"$ref": "é".repeat(99)}))),
    ]
}

/// On a thread with the stack that an engine has.
fn on_an_ordinary_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

#[test]
fn hostile_constraints_end_soon() {
    // Unoptimised builds and a busy machine; alone, the slowest takes a tenth of it.
    let patience = Duration::from_secs(20);
    // Its own: what overruns keeps a place among the compilations.
    let toy = &Toy::new();
    for (what, constraint) in all() {
        let began = Instant::now();
        let compiled = on_an_ordinary_stack(|| toy.compile(&constraint));
        let compile = began.elapsed();
        let began = Instant::now();
        let outcome = match compiled {
            Err(error) => {
                assert!(error.starts_with(constraint.field()) && error.len() < 1_000, "{what}: {error}");
                error
            }
            // Runs, within a bound a step, or fails clearly.
            Ok(mut matcher) => on_an_ordinary_stack(move || {
                for step in 0..60_usize {
                    let mask = match matcher.masks(&[]) {
                        Ok(masks) => one(masks),
                        Err(error) => return format!("step {step}: {error}"),
                    };
                    let allowed: Vec<TokenId> =
                        allowed(&mask, toy.tokens()).into_iter().filter(|id| id.0 < 256).collect();
                    let Some(id) = allowed.get(step * 7 % allowed.len().max(1)) else {
                        return format!("ends at {step}");
                    };
                    if matcher.commit(&[*id]).is_err() {
                        return format!("step {step}: {}", matcher.masks(&[]).unwrap_err());
                    }
                }
                "runs".to_owned()
            }),
        };
        let run = began.elapsed();
        println!(
            "{what:32} compile {compile:>10.1?}  run {run:>10.1?}  {}",
            outcome.chars().take(120).collect::<String>()
        );
        assert!(compile < patience && run < patience, "{what}: compile {compile:?}, run {run:?}");
    }
}

#[test]
fn texts_have_a_longest_size() {
    for constraint in [Constraint::Regex("a".repeat(300_000)), schema(format!("\"{}\"", "a".repeat(300_000)))]
    {
        let error = TOY.compile(&constraint).unwrap_err();
        assert!(error.contains("at most"), "{error}");
    }
}
