//! The shape of the workspace: what no crate may gain. The same list, in words, is *Invariants* of
//! `docs/architecture.md`.
//!
//! Manifests give the edges that we wrote, `cargo tree` what they pull in. Each rule is a function
//! from a workspace to its violations; `arch/fixture.rs` shows every one of them fail.

use std::path::{Path, PathBuf};

mod deny;
mod fixture;
mod workspace;

use workspace::{Kind, Workspace};

/// Words, rules and loop: time, randomness, threads and bytes come in as arguments.
const PURE: &[&str] =
    &["request", "sampling", "speculation", "kvcache", "scheduler", "cluster", "engine", "gguf"];

/// What makes a crate impure, wherever in its tree.
const IMPURE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "futures-executor",
    "tonic",
    "prost",
    "axum",
    "hyper",
    "reqwest",
    "candle-core",
    "cudarc",
    "rayon",
    "rand",
    "getrandom",
    "fastrand",
    "chrono",
    "time",
    "opentelemetry",
    "tracing-subscriber",
];

/// Which of our crates a crate may name. What is missing here is not allowed.
const DIRECTION: &[(&str, &[&str])] = &[
    // words
    ("request", &[]),
    ("gguf", &[]),
    // rules
    ("sampling", &["request"]),
    ("speculation", &["request", "sampling"]),
    ("kvcache", &["request"]),
    ("scheduler", &["request", "kvcache"]),
    ("cluster", &["request"]),
    // loop
    ("engine", &["request", "sampling", "speculation", "kvcache", "scheduler"]),
    // hands
    ("model", &["request", "sampling", "kvcache", "scheduler", "engine", "gguf", "transport"]),
    ("text", &["request", "gguf"]),
    ("grammar", &["request", "sampling", "engine", "text"]),
    ("transport", &[]),
    ("proxy", &[]),
    ("tier", &["request", "kvcache", "scheduler", "engine", "transport"]),
    ("proto", &["request", "kvcache", "cluster"]),
    // shell
    ("telemetry", &[]),
    ("daemon", &["request", "cluster", "proto", "telemetry"]),
    ("rank", &["request", "cluster", "engine", "grammar", "tier", "daemon", "telemetry"]),
    // processes: never on each other
    (
        "coordinator",
        &["request", "kvcache", "cluster", "gguf", "text", "grammar", "proto", "daemon", "telemetry"],
    ),
    ("worker", RANK),
    ("drafter", RANK),
    // product
    ("cli", &["coordinator", "worker", "drafter", "*"]),
    // proof
    ("tests", &["*", "coordinator", "worker", "drafter", "cli"]),
];

/// A rank is given its model, and the compiler of constraints: so it runs on `ToyModel` in tests, and
/// never sees text.
const RANK: &[&str] = &[
    "request",
    "sampling",
    "speculation",
    "kvcache",
    "scheduler",
    "engine",
    "transport",
    "proto",
    "cluster",
    "daemon",
    "telemetry",
    "rank",
];
const PRODUCT: &[&str] = &["coordinator", "worker", "drafter", "cli", "tests"];

/// Names that only some crates may write in a manifest (`start*` stands for any ending).
const NAMED_ONLY_BY: &[(&str, &[&str])] = &[
    ("candle-*", &["model", "tests"]),
    ("cudarc", &["model"]),
    ("opentelemetry*", &["telemetry"]),
    ("tracing-subscriber", &["telemetry"]),
    ("metrics*", &["telemetry"]),
    ("prometheus*", &["telemetry"]),
    ("prost*", &["proto", "daemon", "rank", "coordinator", "worker", "drafter", "cli", "tests"]),
    ("tonic*", &["proto", "telemetry", "daemon", "rank", "coordinator", "worker", "drafter", "cli", "tests"]),
];

/// The crates that may say `unsafe`.
const UNSAFE: &[&str] = &["model"];

#[test]
fn pure_crates_contain_no_runtime_clock_or_randomness() {
    assert_holds(pure(&Workspace::open(&root())));
}

#[test]
fn dependencies_point_one_way() {
    assert_holds(direction(&Workspace::open(&root())));
}

#[test]
fn some_names_belong_to_some_crates() {
    assert_holds(names(&Workspace::open(&root())));
}

#[test]
fn unsafe_code_is_forbidden_outside_model() {
    assert_holds(unsafe_code(&Workspace::open(&root())));
}

#[test]
fn the_architecture_document_names_every_crate() {
    assert_holds(documented(&Workspace::open(&root())));
}

#[test]
fn licences_and_bans_of_deny_toml_hold() {
    assert_holds(deny::violations(&Workspace::open(&root())));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn assert_holds(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
}

fn pure(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for name in PURE.iter().filter(|p| workspace.members.iter().any(|m| m.name == **p)) {
        let tree = workspace.tree(name);
        assert!(tree.iter().any(|c| c.name == *name), "cargo tree -p {name} shows {name} itself");
        let impure = tree.iter().filter(|c| IMPURE.contains(&c.name.as_str()));
        found.extend(impure.map(|c| format!("{name} is pure and must not depend on {}", c.name)));
    }
    found
}

fn direction(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for member in &workspace.members {
        let Some((_, allowed)) = DIRECTION.iter().find(|(name, _)| *name == member.name) else {
            found.push(format!(
                "{} is in no layer: add it to DIRECTION and docs/architecture.md",
                member.name
            ));
            continue;
        };
        let ours = member.edges.iter().filter(|e| e.ours && e.kind == Kind::Normal && e.name != member.name);
        let wrong = ours.filter(|e| {
            let anything_below = allowed.contains(&"*") && !PRODUCT.contains(&e.name.as_str());
            !anything_below && !allowed.contains(&e.name.as_str())
        });
        found.extend(wrong.map(|e| format!("{} must not depend on {}", member.name, e.name)));
    }
    found
}

fn names(workspace: &Workspace) -> Vec<String> {
    let is = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    let mut found = Vec::new();
    for member in &workspace.members {
        for edge in member.edges.iter().filter(|e| !e.ours) {
            let rule = NAMED_ONLY_BY.iter().find(|(pattern, _)| is(pattern, &edge.name));
            if let Some((_, allowed)) = rule
                && !allowed.contains(&member.name.as_str())
            {
                found.push(format!("{} names {}; only {} may", member.name, edge.name, allowed.join(", ")));
            }
        }
    }
    found
}

fn unsafe_code(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for member in workspace.members.iter().filter(|m| !UNSAFE.contains(&m.name.as_str())) {
        for root in ["src/lib.rs", "src/main.rs"].map(|f| member.dir.join(f)).iter().filter(|f| f.is_file()) {
            let text = std::fs::read_to_string(root).unwrap();
            if !text.lines().any(|l| l.trim() == "#![forbid(unsafe_code)]") {
                found.push(format!("{} lacks #![forbid(unsafe_code)]", root.display()));
            }
        }
    }
    found
}

fn documented(workspace: &Workspace) -> Vec<String> {
    let text = std::fs::read_to_string(workspace.root.join("docs/architecture.md")).unwrap();
    let headed = |name: &str| {
        text.lines().any(|l| {
            l.starts_with("| ") && l.split('|').nth(1).is_some_and(|c| c.trim() == format!("`{name}`"))
        })
    };
    let missing = workspace.members.iter().filter(|m| !headed(&m.name));
    missing.map(|m| format!("docs/architecture.md has no row for `{}` in its code map", m.name)).collect()
}
