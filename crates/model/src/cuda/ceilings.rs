//! What a card can do, measured: the two rates that floors are computed from, and every kernel against them.

use std::path::Path;

use cudarc::driver::result;

use super::attention;
use super::blas::{Blas, Shape as Product};
use super::draw::Drawer;
use super::elementwise::{Elementwise, Filled};
use super::error::Doing;
use super::linear::{Dense, Linear, Norm};
use super::pages::Pages;
use super::persistent::Persist;
use super::quantised::Products;
use super::streamed::{Activations, End, Next, Streamed, Unscaled};
use super::timing::{Timing, time};
use super::wide::{Wide, WideEnd};
use super::{Buffer, Cells, CudaError, Device, Dtype, KvKept, Mode};
use crate::LoadError;
use crate::arch::Parameters;

/// Rates that a card reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// The card's name.
    pub name: String,
    /// Bytes a second of a large copy, read and written.
    pub copy: f64,
    /// Operations a second of a bf16 product of 8192 x 8192 x 8192.
    pub product: f64,
}

/// Measures the ceilings of GPU `ordinal`.
pub fn ceilings(ordinal: usize) -> Result<Ceilings, CudaError> {
    let device = Device::open(ordinal)?;
    let elementwise = Elementwise::new(&device, Cells::whole(Dtype::Bf16, 128))?;
    // Random numbers: zeros can be moved and multiplied faster.
    let random = |elements: u64| -> Result<Buffer, CudaError> {
        let buffer = Buffer::zeros(&device, "a measurement", elements as usize * 2)?;
        elementwise.fill(&device, &buffer, Filled::whole(elements as usize), 7, 1.0)?;
        Ok(buffer)
    };
    const COPIED: u64 = 2 << 30;
    let (from, to) = (random(COPIED / 2)?, random(COPIED / 2)?);
    let copy = time(&device, 5, 4, || {
        // SAFETY: both buffers hold COPIED bytes.
        unsafe { result::memcpy_dtod_async(to.at(0), from.at(0), COPIED as usize, device.stream.cu_stream()) }
            .doing("copying on the GPU")
    })?;
    let size: u32 = 8192;
    let elements = u64::from(size) * u64::from(size);
    let (w, x, y) = (random(elements)?, random(elements)?, random(elements)?);
    let blas = Blas::new(&device)?;
    let shape =
        Product { rows: size, inputs: size, outputs: size, dtype: Dtype::Bf16, out: Dtype::Bf16, add: false };
    let addresses = [w.at(0), x.at(0), y.at(0)];
    blas.tune(&device, shape, &[w.at(0)], [x.at(0), y.at(0)])?;
    let product = time(&device, 5, 4, || blas.multiply(&device, shape, addresses))?;
    Ok(Ceilings {
        name: device.context.name().doing("asking for the card's name")?,
        copy: 2.0 * COPIED as f64 / (copy * 1e-6),
        product: 2.0 * f64::from(size).powi(3) / (product * 1e-6),
    })
}

/// Times every kernel on shapes of Llama-3.1-8B.
pub fn kernel_timings(ordinal: usize) -> Result<Vec<Timing>, CudaError> {
    let device = Device::open(ordinal)?;
    let mut all = products(&device)?;
    all.extend(Products::timings(&device)?);
    all.extend(attention::timings::timings(&device)?);
    all.extend(Drawer::timings(&device)?);
    all.extend(Pages::timings(&device)?);
    Ok(all)
}

fn products(device: &Device) -> Result<Vec<Timing>, CudaError> {
    // Layers in turn, so that no weights are in the cache.
    const COPIES: usize = 4;
    let linear = Linear::new(device, Dtype::Bf16, Mode::Fast)?;
    let streamed = Streamed::new(device, Dtype::Bf16, Mode::Fast, 16384)?;
    let wide = Wide::new(device, Dtype::Bf16, Mode::Fast, Persist::BySize)?;
    let elementwise = Elementwise::new(device, Cells::whole(Dtype::Bf16, 128))?;
    let mut all = Vec::new();
    let ones = Buffer::of(device, "a measurement", &vec![1.0f32; 16384])?;
    for (name, outputs, inputs) in [
        ("qkv", 6144u32, 4096u32),
        ("o", 4096, 4096),
        ("gate and up", 28672, 4096),
        ("down", 4096, 14336),
        ("head", 128_256, 4096),
    ] {
        let weights = (0..COPIES).map(|seed| {
            let elements = u64::from(outputs) * u64::from(inputs);
            let weights = Buffer::zeros(device, "a measurement", elements as usize * 2)?;
            elementwise.fill(device, &weights, Filled::whole(elements as usize), seed as u64, 1.0)?;
            Ok(Dense { weights, outputs, inputs })
        });
        let weights: Vec<Dense> = weights.collect::<Result<_, CudaError>>()?;
        let all_weights: Vec<&Dense> = weights.iter().collect();
        let x = Buffer::zeros(device, "a measurement", 256 * inputs as usize * 4)?;
        elementwise.fill(device, &x, Filled::whole(256 * inputs as usize), 9, 1.0)?;
        let y = Buffer::zeros(device, "a measurement", 256 * outputs as usize * 4)?;
        let z = Buffer::zeros(device, "a measurement", 256 * outputs as usize * 2)?;
        let norm = Norm { weight: ones.at(0), epsilon: 1e-5 };
        for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            let float = matches!(name, "o" | "down" | "head");
            let add = matches!(name, "o" | "down");
            let out = if float { Dtype::F32 } else { Dtype::Bf16 };
            linear.tune(device, &all_weights, [x.at(0), y.at(0)], rows, out, add)?;
            let microseconds = time(device, 5, 8, || {
                weights.iter().try_for_each(|w| match name {
                    "o" | "down" => linear.add(device, w, x.at(0), y.at(0), rows),
                    "head" => linear.store_float(device, w, x.at(0), y.at(0), rows),
                    "qkv" if linear.norms(w, rows) => {
                        linear.norm_store(device, w, norm, x.at(0), y.at(0), rows)
                    }
                    "gate and up" if linear.norms(w, rows) => {
                        linear.norm_gate(device, w, norm, x.at(0), y.at(0), rows)
                    }
                    _ => linear.store(device, w, x.at(0), y.at(0), rows),
                })
            })? / COPIES as f64;
            let weight_count = u64::from(outputs) * u64::from(inputs);
            let timing = |kernel, microseconds| Timing {
                kernel,
                shape: format!("{rows} x {outputs} x {inputs}"),
                microseconds,
                bytes: weight_count * 2,
                operations: 2 * u64::from(rows) * weight_count,
            };
            all.push(timing(name, microseconds));
            let end = if name == "head" { WideEnd::StoreFloat } else { WideEnd::Gate };
            let is_wide = rows == Wide::MOST_ROWS && matches!(name, "head" | "gate and up");
            if let Some(wide) = wide.as_ref().filter(|_| is_wide) {
                let x = Activations { address: x.at(0), room: 256, width: inputs };
                let microseconds = time(device, 5, 8, || {
                    weights.iter().try_for_each(|w| wide.product(device, w, x, rows, end, y.at(0)))
                })? / COPIES as f64;
                let kernel = if name == "head" { "wide head" } else { "wide gate and up, SiLU" };
                all.push(timing(kernel, microseconds));
            }
            let (Some(streamed), 9..=Streamed::MOST_ROWS) = (&streamed, rows) else { continue };
            let squares = streamed.squares();
            let unscaled = Some(Unscaled { squares, epsilon: 1e-5 });
            let (kernel, end) = match name {
                "qkv" => ("streamed qkv", End::Store { out: y.at(0), norm: unscaled }),
                "o" | "down" => {
                    let next = Next { weight: ones.at(0), normed: z.at(0), squares };
                    (
                        if name == "o" { "streamed o" } else { "streamed down" },
                        End::Add { x: y.at(0), next: Some(next) },
                    )
                }
                "gate and up" => ("streamed gate and up", End::Gate { out: y.at(0), norm: unscaled }),
                _ => continue,
            };
            let x = Activations { address: x.at(0), room: 256, width: inputs };
            let microseconds = time(device, 5, 8, || {
                weights.iter().try_for_each(|w| streamed.product(device, w, x, rows, end))
            })? / COPIES as f64;
            all.push(timing(kernel, microseconds));
        }
    }
    Ok(all)
}

/// The sizes of a model, for whoever counts bytes and operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub vocab: usize,
}

impl Shape {
    /// Of a `config.json`, or of the folder that it lies in.
    pub fn of(config: &Path) -> Result<Self, LoadError> {
        let (_, p): (_, Parameters) = super::model::shape_of(config)?;
        Ok(Self {
            layers: p.layers,
            heads: p.heads,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            hidden: p.hidden,
            feed_forward: p.feed_forward,
            vocab: p.vocab,
        })
    }

    /// Bytes of keys and values of one position of a model in BF16.
    pub fn kv_bytes(&self, kept: KvKept) -> u64 {
        (self.layers * self.kv_heads * kept.position_bytes(Dtype::Bf16, self.head_dim)) as u64
    }

    /// Multiplications and additions of `rows` rows of which `picks` go through the head, in sequences of `each` rows
    /// behind `context` positions.
    pub fn operations(&self, rows: u64, picks: u64, context: u64, each: u64, sequences: u64) -> u64 {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let layer =
            self.hidden * (queries + 2 * keys) + queries * self.hidden + 3 * self.hidden * self.feed_forward;
        let products =
            2 * rows * (self.layers * layer) as u64 + 2 * picks * (self.hidden * self.vocab) as u64;
        // Scores and sums over the keys that each row sees.
        let seen = sequences * (each * context + each * (each + 1) / 2);
        products + 4 * seen * (self.layers * queries) as u64
    }
}
