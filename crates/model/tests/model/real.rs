//! Real weights, when they are on this machine.

use std::path::PathBuf;

use engine::Model;
use gguf::{Header, Metadata};
use model::{CpuModel, Options, PageBudget};

use crate::steps::Sequences;

/// A model of the local models directory. `None`, said aloud, when it is not there; with
/// `PACELINE_REQUIRE=all` that is a failure instead.
#[allow(clippy::disallowed_methods, reason = "a test is a process edge of its own")]
pub(crate) fn find(file: &str) -> Option<PathBuf> {
    let from = |name: &str, rest: &str| std::env::var(name).ok().map(|dir| PathBuf::from(dir).join(rest));
    let dir = from("PACELINE_MODELS", "")
        .or_else(|| from("XDG_CACHE_HOME", "paceline/models"))
        .or_else(|| from("HOME", ".cache/paceline/models"))
        .unwrap_or_default();
    let path = dir.join(file);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there; `paceline models pull` fetches it", path.display());
    assert_ne!(std::env::var("PACELINE_REQUIRE").as_deref(), Ok("all"), "{file} is required");
    None
}

pub(crate) const OPTIONS: Options = Options {
    context: Some(2048),
    vocab: None,
    slots: 4,
    pages: PageBudget::Pages(256),
    threads: 2,
    heads: None,
};

/// Token ids by greedy longest match: not the tokenizer, but text the model knows.
pub(crate) fn tokens(metadata: &Metadata, text: &str) -> Vec<u32> {
    let vocabulary = metadata.strs("tokenizer.ggml.tokens").unwrap();
    let ids: std::collections::HashMap<&str, u32> = vocabulary.iter().map(String::as_str).zip(0..).collect();
    let longest = ids.keys().map(|token| token.len()).max().unwrap_or(0);
    let text = text.replace(' ', "\u{120}").replace('\n', "\u{10a}");
    let mut rest = text.as_str();
    let mut out = Vec::new();
    while !rest.is_empty() {
        let ends = rest.char_indices().map(|(i, c)| i + c.len_utf8());
        let ends: Vec<usize> = ends.take_while(|end| *end <= longest).collect();
        let end = ends.into_iter().rfind(|end| ids.contains_key(&rest[..*end])).expect("a known character");
        out.push(ids[&rest[..end]]);
        rest = &rest[end..];
    }
    out
}

/// Greedy continuation of `prompt` in slot 0.
pub(crate) fn continue_greedily(model: &mut CpuModel, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut sequences = Sequences::new(1, 0);
    let mut known = prompt.to_vec();
    let mut computed = 0;
    while known.len() < prompt.len() + count {
        let step = sequences.step(&[(0, computed as u32, &known[computed..])]);
        computed = known.len();
        let draws = vec![sampling::Draw::new(request::Sampling::GREEDY); step.rows.len()];
        let ticket = model.submit(&step).unwrap();
        known.push(model.collect(ticket, &draws).unwrap().0.last().unwrap().drawn.token.0);
    }
    known.split_off(prompt.len())
}

/// Facts that a model of this size knows come out right only if every part of the pass is right.
#[test]
fn the_models_continue_known_texts() {
    for (file, prompt, expected) in [
        ("smollm2-135m.gguf", "The capital of France is", " Paris"),
        ("coder-0.5b.gguf", "def add(a, b):\n    return a", " + b"),
        ("coder-1.5b.gguf", "The capital of France is", " Paris"),
    ] {
        let Some(path) = find(file) else { continue };
        let header = Header::open(&path).unwrap();
        let vocabulary = header.metadata.strs("tokenizer.ggml.tokens").unwrap();
        let mut model = CpuModel::load(&path, &OPTIONS).unwrap();
        let ids = continue_greedily(&mut model, &tokens(&header.metadata, prompt), 8);
        let text: String = ids.iter().map(|id| vocabulary[*id as usize].as_str()).collect();
        let text = text.replace('\u{120}', " ").replace('\u{10a}', "\n");
        println!("{file}: {prompt:?} -> {text:?}");
        assert!(text.starts_with(expected), "{file}: {prompt:?} -> {text:?}");
    }
}
