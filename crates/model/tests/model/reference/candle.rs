//! SmolLM2 in candle's operations on weights that candle dequantised to F32.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, DType, Device, Result, Tensor};
use gguf::Header;
use model::CpuModel;

use super::{distance, median};
use crate::real;
use crate::steps::logits;

struct Reference {
    file: File,
    content: Content,
    /// What was dequantised already: 135 million weights are 0.5 GB and take longer than a window's products.
    tensors: HashMap<String, Tensor>,
}

impl Reference {
    fn open(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        Self { file, content, tensors: HashMap::new() }
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.tensors.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        self.tensors.insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    fn number(&self, name: &str) -> usize {
        self.content.metadata[&format!("llama.{name}")].to_u32().unwrap() as usize
    }

    /// Logits of all positions.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let (heads, kv_heads) = (self.number("attention.head_count"), self.number("attention.head_count_kv"));
        let hidden = self.number("embedding_length");
        let (head_dim, n) = (hidden / heads, tokens.len());
        let base = self.content.metadata["llama.rope.freq_base"].to_f32()?;
        let epsilon = self.content.metadata["llama.attention.layer_norm_rms_epsilon"].to_f32()?;
        let norm = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
            let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
            x.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(w)
        };
        let angles: Vec<f32> = (0..n)
            .flat_map(|p| {
                (0..head_dim / 2).map(move |i| p as f32 * base.powf(-2.0 * i as f32 / head_dim as f32))
            })
            .collect();
        let angles = Tensor::from_vec(angles, (n, head_dim / 2), &Device::Cpu)?;
        let (cosine, sine) = (angles.cos()?, angles.sin()?);
        // [n, heads * head_dim] to [heads, n, head_dim], neighbours turned.
        let split = |x: Tensor, heads: usize| x.reshape((n, heads, head_dim))?.transpose(0, 1)?.contiguous();
        let turn = |x: Tensor| -> Result<Tensor> {
            let pairs = x.reshape((x.dim(0)?, n, head_dim / 2, 2))?;
            let (a, b) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
            let first = (a.broadcast_mul(&cosine)? - b.broadcast_mul(&sine)?)?;
            let second = (a.broadcast_mul(&sine)? + b.broadcast_mul(&cosine)?)?;
            Tensor::stack(&[first, second], 3)?.reshape(x.shape())
        };
        let mask: Vec<f32> =
            (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (n, n), &Device::Cpu)?;

        let embedding = self.tensor("token_embd.weight")?;
        let mut x = embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for i in 0..self.number("block_count") {
            let mut w = |part: &str| self.tensor(&format!("blk.{i}.{part}.weight"));
            let normed = norm(&x, &w("attn_norm")?)?;
            let q = turn(split(normed.matmul(&w("attn_q")?.t()?)?, heads)?)?;
            let k = turn(split(normed.matmul(&w("attn_k")?.t()?)?, kv_heads)?)?;
            let v = split(normed.matmul(&w("attn_v")?.t()?)?, kv_heads)?;
            let share = |x: Tensor| -> Result<Tensor> {
                let group = heads / kv_heads;
                x.unsqueeze(1)?.expand((kv_heads, group, n, head_dim))?.reshape((heads, n, head_dim))
            };
            let (k, v) = (share(k)?, share(v)?);
            let scores = (q.matmul(&k.t()?)? / (head_dim as f64).sqrt())?.broadcast_add(&mask)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
            let attended = weights.matmul(&v)?.transpose(0, 1)?.reshape((n, hidden))?;
            x = (x + attended.matmul(&w("attn_output")?.t()?)?)?;
            let normed = norm(&x, &w("ffn_norm")?)?;
            let gate = normed.matmul(&w("ffn_gate")?.t()?)?;
            let gate = (&gate / ((gate.neg()?.exp()? + 1.0)?))?;
            let both = (gate * normed.matmul(&w("ffn_up")?.t()?)?)?;
            x = (x + both.matmul(&w("ffn_down")?.t()?)?)?;
        }
        let normed = norm(&x, &self.tensor("output_norm.weight")?)?;
        normed.matmul(&embedding.t()?)?.to_dtype(DType::F32)?.to_vec2()
    }
}

#[test]
fn smollm2_is_close_to_candles_f32() {
    let Some(path) = real::find("smollm2-135m.gguf") else { return };
    let header = Header::open(&path).unwrap();
    let text = "The Tour de France is an annual bicycle race held in July. Riders in a paceline take turns at the \
                front, because the one behind saves about a third of the power.\nimport os\n\ndef main():\n    print(";
    let tokens = real::tokens(&header.metadata, text);
    let found = logits(&mut CpuModel::load(&path, &real::OPTIONS).unwrap(), &tokens, 16).unwrap();
    let expected = Reference::open(&path).logits(&tokens).unwrap();
    let mut agree = 0;
    let distances: Vec<f64> = found
        .iter()
        .zip(&expected)
        .map(|(found, expected)| {
            agree += usize::from(sampling::argmax(found) == sampling::argmax(expected));
            distance(found, &expected.iter().map(|l| f64::from(*l)).collect::<Vec<f64>>())
        })
        .collect();
    let (worst, rows) = (distances.iter().copied().fold(0.0, f64::max), distances.len());
    let median = median(distances);
    println!("{rows} rows: median {median:.4}, worst {worst:.4}; {agree} of {rows} have the same best token");
    assert!(median <= 0.04, "median {median}");
    assert!(agree * 10 >= rows * 9, "only {agree} of {rows} rows have the same best token");
}

/// Perplexity over 8192 tokens in windows of 512: what quantised inputs, half-float keys and values and the
/// order of sums cost. Two minutes of candle's arithmetic, so it runs when it is asked for:
/// `cargo nextest run -p model --run-ignored only perplexity`.
#[test]
#[ignore = "takes two minutes; run by name (docs/benchmarks.md has the figure)"]
fn perplexity_of_smollm2_is_that_of_candles_f32() {
    const WINDOW: usize = 512;
    let Some(path) = real::find("smollm2-135m.gguf") else { return };
    let header = Header::open(&path).unwrap();
    let tokens = real::tokens(&header.metadata, include_str!("text.txt"));
    let tokens = &tokens[..tokens.len().min(16 * WINDOW)];
    assert_eq!(tokens.len(), 16 * WINDOW, "the text is long enough");
    let mut model = CpuModel::load(&path, &real::OPTIONS).unwrap();
    let mut reference = Reference::open(&path);
    // Sums of negative log-likelihoods of each window's tokens after the first.
    let loss = |logits: &[Vec<f32>], tokens: &[u32]| -> f64 {
        let of = |row: &Vec<f32>, next: &u32| {
            let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            total.ln() - f64::from(row[*next as usize])
        };
        logits.iter().zip(&tokens[1..]).map(|(row, next)| of(row, next)).sum()
    };
    let (mut ours, mut theirs, mut count) = (0.0, 0.0, 0);
    for window in tokens.chunks_exact(WINDOW) {
        ours += loss(&logits(&mut model, window, 128).unwrap(), window);
        theirs += loss(&reference.logits(window).unwrap(), window);
        count += WINDOW - 1;
    }
    let (ours, theirs) = ((ours / count as f64).exp(), (theirs / count as f64).exp());
    println!("perplexity over {count} tokens: {ours:.4}, candle F32 {theirs:.4}, ratio {:.5}", ours / theirs);
    assert!((ours / theirs - 1.0).abs() <= 0.006, "{ours} against {theirs}");
}

/// The same weights in F32 on a GPU: the bits differ, the text only where two tokens are nearly as likely.
#[cfg(feature = "cuda")]
#[test]
fn smollm2_in_f32_on_a_gpu_is_candles_f32_up_to_near_ties() {
    use engine::Model as _;
    use model::{CudaModel, CudaOptions, Dtype};

    if model::device_count() == 0 {
        println!("skipped: this machine has no GPU");
        return;
    }
    let Some(path) = real::find("smollm2-135m.gguf") else { return };
    let header = Header::open(&path).unwrap();
    let text = "The Tour de France is an annual bicycle race held in July. Riders in a paceline take turns at the \
                front, because the one behind saves about a third of the power.\nimport os\n\ndef main():\n    print(";
    let tokens = real::tokens(&header.metadata, text);
    let cuda = CudaOptions { dtype: Dtype::F32, ..CudaOptions::default() };
    let mut gpu = CudaModel::load(&path, &real::OPTIONS, &cuda).unwrap();
    // A prompt in two chunks, then greedy: each row's logits are kept.
    let (mut known, mut computed, mut found) = (tokens.clone(), 0, Vec::new());
    let mut sequences = crate::steps::Sequences::new(1, 0);
    while known.len() < tokens.len() + 64 {
        let end = if computed == 0 { tokens.len() / 2 } else { known.len() };
        let step = sequences.step(&[(0, computed as u32, &known[computed..end])]);
        let rows: Vec<Vec<f32>> = gpu.logits(&step).unwrap().into_iter().map(|(_, row)| row).collect();
        computed = end;
        found.extend(rows);
        if end == known.len() {
            known.push(sampling::argmax(found.last().unwrap()).unwrap().0);
        }
    }
    let expected = Reference::open(&path).logits(&known[..computed]).unwrap();
    let (mut worst, mut equal) = (0.0f64, 0);
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let reference: Vec<f64> = expected.iter().map(|l| f64::from(*l)).collect();
        worst = worst.max(distance(found, &reference));
        let (ours, theirs) = (sampling::argmax(found).unwrap().0, sampling::argmax(expected).unwrap().0);
        equal += usize::from(ours == theirs);
        if ours != theirs {
            let gap = expected[theirs as usize] - expected[ours as usize];
            println!("row {row}: token {ours} instead of {theirs}, {gap:e} below it");
            assert!(gap < 1e-3, "not a near-tie");
        }
    }
    println!("{equal} of {} rows have the same best token; worst distance {worst:e}", found.len());
    assert!(worst < 1e-4, "{worst}");
    assert_eq!(gpu.spec().vocab_size, 49152);
}
