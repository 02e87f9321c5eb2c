//! What is said of a file without computing with it.

use gguf::{TensorKind, Value};
use model::{CpuModel, CpuOptions, Description, LoadError, Options, PageBudget, fingerprint};
use tempfile::NamedTempFile;

use crate::tiny::{CONTEXT, Shape, Tiny, VOCAB, tokens};
use crate::{real, steps};

fn written(tiny: &Tiny) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny.bytes()).unwrap();
    file
}

#[test]
fn a_description_is_the_headers() {
    let mut tiny = Tiny::new(Shape::of("qwen2", TensorKind::Q4_K));
    tiny.key("general.name", Value::Str("Tiny".into()));
    let file = written(&tiny);
    let found = Description::read(file.path()).unwrap();
    assert_eq!(found.name.as_deref(), Some("Tiny"));
    assert_eq!((found.architecture, found.layers, found.hidden), ("qwen2", 2, 256));
    assert_eq!((found.heads, found.kv_heads), (4, 2));
    assert_eq!((found.vocab, found.context), (VOCAB as u32, CONTEXT));
    assert_eq!(found.file_bytes, file.as_file().metadata().unwrap().len());
    let kinds: Vec<_> = found.tensors.iter().map(|t| (t.kind, t.tensors)).collect();
    assert_eq!(kinds, [("Q4_K", 15), ("F32", 11)]);
    // Embedding; q and o, k and v, gate, up and down of two layers; norms; biases.
    let matrices = 130 * 256 + 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512);
    assert_eq!(found.parameters, matrices + 5 * 256 + 2 * (256 + 2 * 128));
}

#[test]
fn a_fingerprint_follows_the_content() {
    let tiny = Tiny::new(Shape::of("llama", TensorKind::Q8_0));
    let print = |tiny: &Tiny| fingerprint(written(tiny).path()).unwrap();
    let first = print(&tiny);
    assert_eq!(first, print(&tiny.clone()));
    assert!(first.as_str().starts_with("fp_") && first.as_str().len() == 19, "{first}");
    let mut other = tiny;
    *other.tensors.get_mut("output_norm.weight").unwrap().bytes.last_mut().unwrap() ^= 1;
    assert_ne!(first, print(&other));
}

#[test]
fn options_are_checked() {
    let file = written(&Tiny::new(Shape::of("llama", TensorKind::F16)));
    let good = Options {
        context: None,
        vocab: None,
        slots: 1,
        pages: PageBudget::Pages(1),
        threads: 1,
        heads: None,
    };
    for (options, name) in [
        (Options { context: Some(0), ..good.clone() }, "context"),
        (Options { context: Some(CONTEXT + 1), ..good.clone() }, "context"),
        (Options { vocab: Some(0), ..good.clone() }, "vocab"),
        (Options { vocab: Some(u32::MAX), ..good.clone() }, "vocab"),
        (Options { slots: 0, ..good.clone() }, "slots"),
        (Options { slots: u32::MAX, ..good.clone() }, "slots"),
        (Options { pages: PageBudget::Pages(0), ..good.clone() }, "pages"),
        (Options { pages: PageBudget::Bytes(100), ..good.clone() }, "pages"),
        (Options { threads: 0, ..good.clone() }, "threads"),
        (Options { threads: usize::MAX, ..good.clone() }, "threads"),
    ] {
        let error = CpuModel::load(file.path(), &options).unwrap_err();
        assert!(matches!(error, LoadError::BadOption { option, .. } if option == name), "{name}: {error}");
    }
    // Two layers of two KV heads, 16 positions of 16 half floats, keys and values.
    let two_pages = PageBudget::Bytes(2 * (2 * 2 * 16 * 16 * 2 * 2) + 1);
    let model = CpuModel::load(file.path(), &Options { pages: two_pages, ..good.clone() }).unwrap();
    assert_eq!(engine::Model::spec(&model).classes, [(kvcache::HeadClass::Full, 2)]);
}

#[test]
fn a_missing_file_is_named_an_io_error() {
    let gone = std::path::Path::new("no-such-file.gguf");
    assert!(matches!(Description::read(gone), Err(LoadError::Header(gguf::Error::Io { .. }))));
    assert!(matches!(fingerprint(gone), Err(LoadError::Io { .. })));
}

#[test]
fn the_real_models_are_described() {
    for (file, layers, parameters) in [
        ("smollm2-135m.gguf", 30, 134_515_008),
        ("coder-0.5b.gguf", 24, 630_167_424),
        ("coder-1.5b.gguf", 28, 1_777_088_000),
    ] {
        let Some(path) = real::find(file) else { continue };
        let found = Description::read(&path).unwrap();
        assert_eq!((found.layers, found.parameters), (layers, parameters), "{found:?}");
    }
}

/// Ids beyond the tokenizer's are padding: whatever their weights say, they are not drawn and not
/// taken (coder-0.5b at temperature 2 drew one within 500 tokens).
#[test]
fn padding_of_the_output_layer_is_never_drawn() {
    const KNOWN: u32 = 5;
    let tiny = Tiny::new(Shape::of("llama", TensorKind::F32));
    let file = written(&tiny);
    let options = Options {
        context: None,
        vocab: Some(KNOWN),
        slots: 4,
        pages: PageBudget::Pages(64),
        threads: 1,
        heads: None,
    };
    let mut narrow = CpuModel::load(file.path(), &options).unwrap();
    let mut wide = tiny.load(1).unwrap();
    assert_eq!(engine::Model::spec(&narrow).vocab_size, KNOWN);

    let tokens: Vec<u32> = (0..40).map(|i| i % KNOWN).collect();
    let all = steps::logits(&mut wide, &tokens, 40).unwrap();
    let known = steps::logits(&mut narrow, &tokens, 40).unwrap();
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert!(all.iter().any(|row| best(row) >= KNOWN as usize), "some padding would have won");
    for (all, known) in all.iter().zip(&known) {
        assert_eq!(known, &all[..KNOWN as usize]);
    }
    let beyond = steps::Sequences::new(4, 16).step(&[(0, 0, &[KNOWN])]);
    assert!(engine::Model::submit(&mut narrow, &beyond).is_err());
}

/// A drafter's head of some tokens: their logits are the full head's to the bit, all others cannot be drawn.
#[test]
fn a_shortlist_gives_the_same_logits_for_fewer_tokens() {
    let tiny = Tiny::new(Shape::of("llama", TensorKind::Q8_0));
    let file = written(&tiny);
    let options = Options {
        context: None,
        vocab: None,
        slots: 4,
        pages: PageBudget::Pages(4 * 64),
        threads: 2,
        heads: None,
    };
    let load = |ids: Vec<u32>| {
        CpuModel::load_as(
            file.path(),
            &options,
            &CpuOptions { shortlist: Some(ids), ..CpuOptions::default() },
        )
    };
    let listed: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 3 != 1).collect();
    let mut short = load(listed.clone()).unwrap();
    let mut full = tiny.load(1).unwrap();
    assert!(short.weight_bytes() < full.weight_bytes());
    // Steps of several sizes: what one leaves behind is not to be seen in the next.
    for (count, chunk) in [(40, 40), (7, 1), (20, 3)] {
        let tokens = tokens(count);
        let all = steps::logits(&mut full, &tokens, chunk).unwrap();
        let some = steps::logits(&mut short, &tokens, chunk).unwrap();
        for (all, some) in all.iter().zip(&some) {
            assert_eq!(some.len(), all.len());
            for (id, (all, some)) in all.iter().zip(some).enumerate() {
                let expected = if listed.contains(&(id as u32)) { *all } else { f32::NEG_INFINITY };
                assert_eq!(some.to_bits(), expected.to_bits(), "token {id}");
            }
        }
    }
    for (ids, why) in [(vec![], "rising"), (vec![3, 3], "rising"), (vec![4, 2], "rising")] {
        let error = load(ids).unwrap_err().to_string();
        assert!(error.contains("shortlist") && error.contains(why), "{error}");
    }
    let floats = written(&Tiny::new(Shape::of("llama", TensorKind::F32)));
    let shortlist = CpuOptions { shortlist: Some(vec![1, 2]), ..CpuOptions::default() };
    let error = CpuModel::load_as(floats.path(), &options, &shortlist).unwrap_err().to_string();
    assert!(error.contains("quantised output layers") && error.contains("F32"), "{error}");
}

#[test]
fn cores_are_checked_before_anything_is_read() {
    let options = Options {
        context: None,
        vocab: None,
        slots: 4,
        pages: PageBudget::Pages(64),
        threads: 1,
        heads: None,
    };
    let cores = CpuOptions { cores: vec![999_999], ..CpuOptions::default() };
    let error = CpuModel::load_as(std::path::Path::new("nowhere"), &options, &cores).unwrap_err().to_string();
    assert!(error.contains("cores") && error.contains("999999"), "{error}");
}
