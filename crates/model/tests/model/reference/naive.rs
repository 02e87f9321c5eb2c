//! A forward pass in f64 that does one thing after the other, one position at a time. The one thing
//! it shares with the model's numerics: keys and values are rounded to half floats.

use half::f16;
use kvcache::{HeadClass, HeadMap};

use crate::tiny::{EPSILON, LAYERS, ROPE_BASE, Tiny, VOCAB};

/// A row a position.
type Rows = Vec<Vec<f64>>;

/// Logits of every position; `heads` says what each head looks back on, if it is not everything.
pub(crate) fn logits(tiny: &Tiny, tokens: &[u32], map: Option<&HeadMap>) -> Rows {
    pass(tiny, tokens, map).0
}

/// `[query][layer][query head][key]`: what share of its attention goes there.
pub(crate) fn shares(tiny: &Tiny, tokens: &[u32]) -> Vec<Vec<Rows>> {
    pass(tiny, tokens, None).1
}

fn pass(tiny: &Tiny, tokens: &[u32], map: Option<&HeadMap>) -> (Rows, Vec<Vec<Rows>>) {
    let shape = &tiny.shape;
    let (heads, head_dim) = (shape.heads, shape.head_dim);
    let window = match tiny.keys.get("llama.attention.sliding_window") {
        Some(gguf::Value::U32(window)) => *window as usize,
        _ => usize::MAX,
    };
    let mut cache: [(Rows, Rows); LAYERS] = Default::default();
    let (mut all, mut shares) = (Vec::new(), Vec::new());
    for (position, token) in tokens.iter().enumerate() {
        let embedding = values(tiny, "token_embd.weight");
        let mut x = embedding[*token as usize * shape.hidden..][..shape.hidden].to_vec();
        let mut of_layers = Vec::new();
        for (i, (keys, values_)) in cache.iter_mut().enumerate() {
            let name = |part: &str| format!("blk.{i}.{part}");
            let normed = norm(&x, &values(tiny, &name("attn_norm.weight")));
            let project = |part: &str| {
                let mut y = times(tiny, &name(&format!("{part}.weight")), &normed);
                if tiny.tensors.contains_key(&name(&format!("{part}.bias"))) {
                    let bias = values(tiny, &name(&format!("{part}.bias")));
                    y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                }
                y
            };
            let (mut q, mut k, v) = (project("attn_q"), project("attn_k"), project("attn_v"));
            if shape.architecture == "qwen3" {
                for (x, part) in [(&mut q, "attn_q_norm.weight"), (&mut k, "attn_k_norm.weight")] {
                    let weight = values(tiny, &name(part));
                    for head in x.chunks_mut(head_dim) {
                        head.copy_from_slice(&norm(head, &weight));
                    }
                }
            }
            for head in q.chunks_mut(head_dim).chain(k.chunks_mut(head_dim)) {
                turn(head, position, shape.architecture == "llama");
            }
            let round = |x: Vec<f64>| x.into_iter().map(|x| f16::from_f64(x).to_f64()).collect();
            keys.push(round(k));
            values_.push(round(v));
            let mut attended = vec![0.0; heads * head_dim];
            let mut of_heads = Vec::new();
            for h in 0..heads {
                let own = h * head_dim..(h + 1) * head_dim;
                let kv = h * shape.kv_heads / heads * head_dim;
                let shared = kv..kv + head_dim;
                let sees = |key: usize| match map {
                    None => position - key < window,
                    Some(map) => {
                        let class = map.class_of[i][h * shape.kv_heads / heads];
                        match map.classes[usize::from(class)] {
                            HeadClass::Full => true,
                            HeadClass::Window { sink, recent } => {
                                key < sink as usize || position - key < recent as usize
                            }
                        }
                    }
                };
                let scores: Vec<f64> = keys
                    .iter()
                    .enumerate()
                    .map(|(key, k)| match sees(key) {
                        true => dot(&q[own.clone()], &k[shared.clone()]) / (head_dim as f64).sqrt(),
                        false => f64::NEG_INFINITY,
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                of_heads.push(weights.iter().map(|w| w / total).collect());
                for (w, v) in weights.iter().zip(&*values_) {
                    for (a, v) in attended[own.clone()].iter_mut().zip(&v[shared.clone()]) {
                        *a += w / total * v;
                    }
                }
            }
            of_layers.push(of_heads);
            add(&mut x, &times(tiny, &name("attn_output.weight"), &attended));
            let normed = norm(&x, &values(tiny, &name("ffn_norm.weight")));
            let gate = times(tiny, &name("ffn_gate.weight"), &normed);
            let up = times(tiny, &name("ffn_up.weight"), &normed);
            let both: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(&mut x, &times(tiny, &name("ffn_down.weight"), &both));
        }
        let normed = norm(&x, &values(tiny, "output_norm.weight"));
        let head = if shape.tied { "token_embd.weight" } else { "output.weight" };
        let row = times(tiny, head, &normed);
        assert_eq!(row.len(), VOCAB);
        all.push(row);
        shares.push(of_layers);
    }
    (all, shares)
}

/// An F32 tensor.
fn values(tiny: &Tiny, name: &str) -> Vec<f64> {
    tiny.tensors[name].bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
}

fn times(tiny: &Tiny, name: &str, x: &[f64]) -> Vec<f64> {
    values(tiny, name).chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(EPSILON)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

fn turn(head: &mut [f64], position: usize, adjacent: bool) {
    let half = head.len() / 2;
    for i in 0..half {
        let angle = position as f64 * f64::from(ROPE_BASE).powf(-2.0 * i as f64 / head.len() as f64);
        let (a, b) = if adjacent { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (x, y) = (head[a], head[b]);
        head[a] = x * angle.cos() - y * angle.sin();
        head[b] = x * angle.sin() + y * angle.cos();
    }
}
