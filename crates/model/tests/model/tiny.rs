//! Small random models, written as files.

use std::collections::BTreeMap;

use gguf::write::Writer;
use gguf::{TensorKind, Value};
use half::{bf16, f16};
use kvcache::HeadMap;
use model::{CpuModel, CpuOptions, LoadError, Options, PageBudget};
use tempfile::NamedTempFile;

/// What a small model looks like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) architecture: &'static str,
    pub(crate) layers: usize,
    pub(crate) kind: TensorKind,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) tied: bool,
    pub(crate) seed: u64,
}

pub(crate) const LAYERS: usize = 2;
pub(crate) const VOCAB: usize = 130;
pub(crate) const CONTEXT: u32 = 2048;
pub(crate) const EPSILON: f32 = 1e-5;
pub(crate) const ROPE_BASE: f32 = 10_000.0;

/// A model in the making; tests change it before they write it.
#[derive(Clone, Debug)]
pub(crate) struct Tiny {
    pub(crate) shape: Shape,
    pub(crate) keys: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: TensorKind,
    pub(crate) bytes: Vec<u8>,
}

impl Shape {
    /// Grouped-query attention with sizes that suit the kind's blocks.
    pub(crate) fn of(architecture: &'static str, kind: TensorKind) -> Self {
        let hidden = kind.block_elems().max(64) as usize;
        Self {
            architecture,
            layers: LAYERS,
            kind,
            hidden,
            feed_forward: 2 * hidden,
            heads: 4,
            kv_heads: 2,
            // Qwen 3's heads together are wider than its residual stream.
            head_dim: if architecture == "qwen3" { hidden / 2 } else { hidden / 4 },
            tied: true,
            seed: 1,
        }
    }
}

impl Tiny {
    pub(crate) fn new(shape: Shape) -> Self {
        let mut tiny = Self { keys: BTreeMap::new(), tensors: BTreeMap::new(), shape: shape.clone() };
        let a = shape.architecture;
        tiny.key("general.architecture", Value::Str(a.into()));
        for (name, value) in [
            ("block_count", shape.layers),
            ("embedding_length", shape.hidden),
            ("feed_forward_length", shape.feed_forward),
            ("attention.head_count", shape.heads),
            ("attention.head_count_kv", shape.kv_heads),
            ("context_length", CONTEXT as usize),
        ] {
            tiny.key(&format!("{a}.{name}"), Value::U32(value as u32));
        }
        tiny.key(&format!("{a}.attention.layer_norm_rms_epsilon"), Value::F32(EPSILON));
        tiny.key(&format!("{a}.rope.freq_base"), Value::F32(ROPE_BASE));

        tiny.key(&format!("{a}.attention.key_length"), Value::U32(shape.head_dim as u32));

        let (hidden, kv) = (shape.hidden, shape.kv_heads * shape.head_dim);
        let queries = shape.heads * shape.head_dim;
        tiny.matrix("token_embd.weight", hidden, VOCAB);
        tiny.vector("output_norm.weight", hidden, 1.0);
        if !shape.tied {
            tiny.matrix("output.weight", hidden, VOCAB);
        }
        for i in 0..shape.layers {
            let name = |part: &str| format!("blk.{i}.{part}");
            tiny.vector(&name("attn_norm.weight"), hidden, 1.0);
            tiny.vector(&name("ffn_norm.weight"), hidden, 1.0);
            for (part, outputs) in [("attn_q", queries), ("attn_k", kv), ("attn_v", kv)] {
                tiny.matrix(&name(&format!("{part}.weight")), hidden, outputs);
                if a == "qwen2" {
                    tiny.vector(&name(&format!("{part}.bias")), outputs, 0.0);
                }
            }
            if a == "qwen3" {
                tiny.vector(&name("attn_q_norm.weight"), shape.head_dim, 1.0);
                tiny.vector(&name("attn_k_norm.weight"), shape.head_dim, 1.0);
            }
            tiny.matrix(&name("attn_output.weight"), queries, hidden);
            tiny.matrix(&name("ffn_gate.weight"), hidden, shape.feed_forward);
            tiny.matrix(&name("ffn_up.weight"), hidden, shape.feed_forward);
            tiny.matrix(&name("ffn_down.weight"), shape.feed_forward, hidden);
        }
        tiny
    }

    pub(crate) fn key(&mut self, key: &str, value: Value) {
        self.keys.insert(key.to_owned(), value);
    }

    /// F32 values around `center`.
    pub(crate) fn vector(&mut self, name: &str, len: usize, center: f32) {
        let mut noise = self.noise();
        let values: Vec<u8> =
            (0..len).flat_map(|_| (center + 0.2 * unit(&mut noise)).to_le_bytes()).collect();
        let tensor = Tensor { dims: vec![len as u64], kind: TensorKind::F32, bytes: values };
        self.tensors.insert(name.to_owned(), tensor);
    }

    fn matrix(&mut self, name: &str, inputs: usize, outputs: usize) {
        let kind = self.shape.kind;
        let mut noise = self.noise();
        let blocks = inputs * outputs / kind.block_elems() as usize;
        let scale = 2.0 / (inputs as f32).sqrt();
        let bytes = (0..blocks).flat_map(|_| block(kind, scale, &mut noise)).collect();
        let tensor = Tensor { dims: vec![inputs as u64, outputs as u64], kind, bytes };
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Noise of its own for the next tensor.
    fn noise(&self) -> u64 {
        self.shape.seed.wrapping_mul(0x1234_5678_9abc_def1) ^ ((self.tensors.len() as u64) << 32)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let keys = self.keys.iter().fold(Writer::new(), |w, (key, value)| w.key(key, value.clone()));
        let all = self.tensors.iter().fold(keys, |w, (name, t)| w.tensor(name, &t.dims, t.kind, &t.bytes));
        all.finish()
    }

    pub(crate) fn load_as(&self, threads: usize, cpu: &CpuOptions) -> Result<CpuModel, LoadError> {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.bytes()).unwrap();
        CpuModel::load_as(file.path(), &options(threads, None), cpu)
    }

    pub(crate) fn load(&self, threads: usize) -> Result<CpuModel, LoadError> {
        load(&self.bytes(), threads)
    }

    /// With heads of several classes.
    pub(crate) fn load_heads(&self, threads: usize, heads: HeadMap) -> Result<CpuModel, LoadError> {
        load_with(&self.bytes(), threads, Some(heads))
    }

    /// With a window of so many positions (llama only).
    pub(crate) fn windowed(mut self, window: u32) -> Self {
        self.key("llama.attention.sliding_window", Value::U32(window));
        self
    }
}

/// Loads a file with these bytes: 4 slots of 1,024 positions.
pub(crate) fn load(bytes: &[u8], threads: usize) -> Result<CpuModel, LoadError> {
    load_with(bytes, threads, None)
}

fn load_with(bytes: &[u8], threads: usize, heads: Option<HeadMap>) -> Result<CpuModel, LoadError> {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    CpuModel::load(file.path(), &options(threads, heads))
}

fn options(threads: usize, heads: Option<HeadMap>) -> Options {
    Options { context: None, vocab: None, slots: 4, pages: PageBudget::Pages(4 * 64), threads, heads }
}

/// Any bits, but scales such that the weights are about `scale` large.
fn block(kind: TensorKind, scale: f32, noise: &mut u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..kind.block_bytes()).map(|_| next(noise) as u8).collect();
    let mut put =
        |at: usize, value: f32| bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    match kind {
        TensorKind::F32 => return (scale * unit(noise)).to_le_bytes().to_vec(),
        TensorKind::F16 => put(0, scale * unit(noise)),
        TensorKind::BF16 => return bf16::from_f32(scale * unit(noise)).to_le_bytes().to_vec(),
        TensorKind::Q8_0 => put(0, scale / 128.0),
        TensorKind::Q4_0 => put(0, scale / 8.0),
        TensorKind::Q5_0 => put(0, scale / 16.0),
        TensorKind::Q4_1 | TensorKind::Q5_1 => {
            let levels = if kind == TensorKind::Q4_1 { 7.5 } else { 15.5 };
            put(0, scale / levels);
            put(2, -scale);
        }
        TensorKind::Q4_K | TensorKind::Q5_K => {
            let levels = if kind == TensorKind::Q4_K { 7.5 } else { 15.5 };
            put(0, scale / levels / 32.0);
            put(2, scale / 32.0);
        }
        TensorKind::Q6_K => put(208, scale / 32.0 / 64.0),
        other => panic!("no random blocks of {other}"),
    }
    bytes
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Uniform in -1..1.
fn unit(state: &mut u64) -> f32 {
    (next(state) >> 40) as f32 * 2f32.powi(-23) - 1.0
}

/// Tokens that look like nothing in particular.
pub(crate) fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + 3 * i + 11) % VOCAB as u32).collect()
}
