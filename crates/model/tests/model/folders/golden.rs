//! `fixtures/make.py` made these models and their logits with `transformers`.

use std::path::PathBuf;

use engine::Model;
use kvcache::HeadClass;
use model::{Description, Level};
use safetensors::SafeTensors;

use super::load;
use crate::bits::{assert_batch_equals_alone, assert_equal};
use crate::reference::{distance, median};
use crate::steps::logits;

const ALL: [&str; 6] = ["llama3", "linear", "qwen2", "yarn", "qwen3", "mistral"];

pub(super) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Golden {
    tokens: Vec<u32>,
    /// A row a position.
    logits: Vec<Vec<f64>>,
}

fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(fixture(name).join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let width = file.tensor("logits").unwrap().shape()[1];
    let logits: Vec<f64> = words("logits").into_iter().map(|w| f64::from(f32::from_le_bytes(w))).collect();
    Golden {
        tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
        logits: logits.chunks_exact(width).map(<[f64]>::to_vec).collect(),
    }
}

#[test]
fn folders_give_the_logits_of_transformers() {
    for name in ALL {
        let golden = golden(name);
        let mut model = load(&fixture(name), 2, Some(128)).unwrap();
        let found = logits(&mut model, &golden.tokens, 20).unwrap();
        let distances: Vec<f64> = found.iter().zip(&golden.logits).map(|(f, e)| distance(f, e)).collect();
        let worst = distances.iter().copied().fold(0.0, f64::max);
        let median = median(distances);
        println!("{name}: median {median:.1e}, worst {worst:.1e}");
        // transformers computes RoPE's frequencies and everything else in f32; and where a key lies between
        // two half floats, an error of 1e-7 decides which one it becomes.
        assert!(median <= 2e-5 && worst <= 5e-4, "{name}: median {median:e}, worst {worst:e}");
    }
}

#[test]
fn folders_keep_their_bits_whatever_the_batch_chunks_threads_and_level() {
    for name in ALL {
        let tokens = golden(name).tokens;
        let mut reference: Option<Vec<Vec<f32>>> = None;
        for threads in [1, 3] {
            let mut model = load(&fixture(name), threads, Some(128)).unwrap();
            for level in Level::available() {
                model.set_level(level);
                for chunk in [64, 7, 1] {
                    let found = logits(&mut model, &tokens, chunk).unwrap();
                    let reference = reference.get_or_insert_with(|| found.clone());
                    assert_equal(&found, reference, &format!("{name} {threads} {level} {chunk}"));
                }
                assert_batch_equals_alone(&mut model, &tokens, &format!("{name} {level}"));
            }
        }
    }
}

#[test]
fn folders_are_described() {
    let found = Description::read(&fixture("mistral")).unwrap();
    assert_eq!((found.architecture, found.window, found.context), ("mistral", Some(20), 128));
    assert_eq!(found.name.as_deref(), Some("mistral"));
    assert_eq!(found.tensors.iter().map(|t| t.kind).collect::<Vec<_>>(), ["F16"]);
    let model = load(&fixture("mistral"), 1, None).unwrap();
    assert_eq!(model.spec().classes, [(HeadClass::Window { sink: 0, recent: 20 }, 256)]);

    // Two shards of one model.
    let found = Description::read(&fixture("llama3")).unwrap();
    let bytes: u64 = [1, 2]
        .map(|i| {
            fixture("llama3").join(format!("model-0000{i}-of-00002.safetensors")).metadata().unwrap().len()
        })
        .iter()
        .sum();
    assert_eq!((found.file_bytes, found.tensors.len()), (bytes, 1));
}

#[test]
fn the_context_goes_as_far_as_the_scaling() {
    let context = |name, asked| load(&fixture(name), 1, asked).map(|model| model.spec().context);
    assert_eq!(context("yarn", None).unwrap(), 32);
    assert_eq!(context("yarn", Some(128)).unwrap(), 128);
    assert_eq!(context("linear", Some(320)).unwrap(), 320);
    // 32 positions stretched by 4 are less than the 128 that the model says it is for.
    assert_eq!(context("llama3", Some(128)).unwrap(), 128);
    for (name, asked, says) in [
        ("yarn", 129, "129 is more than the 128 that the model's RoPE scaling reaches"),
        ("llama3", 129, "no RoPE scaling (such as YaRN) that would reach further"),
        ("qwen2", 129, "no RoPE scaling (such as YaRN) that would reach further; ask for 128 or less"),
    ] {
        let error = context(name, Some(asked)).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}
