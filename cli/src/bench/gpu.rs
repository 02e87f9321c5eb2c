//! `paceline bench gpu`: what a GPU's arithmetic takes, beside the least that it could take.
//!
//! Weights are made up from a `config.json`, so that a model of any size is measured without its files; steps go
//! through the model as an engine sends them. Floors are bytes over the bandwidth and operations over the rate that
//! the same card reached just before.

mod steps;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kvcache::{HeadMap, PAGE_POSITIONS, pages_for};
use model::{
    Ceilings, CudaModel, CudaOptions, Dtype, KvKept, Mode, Options, PageBudget, Persist, Shape, Timing,
    Weights,
};
use serde::Serialize;
use tabled::builder::Builder;

use self::steps::Bench;
use super::spread::Spread;
use super::{aligned, figure};

/// `paceline bench gpu ...`
#[derive(Clone, Debug, Args)]
pub struct GpuArgs {
    /// Shape of the model: a config.json, or the folder that it lies in
    #[arg(long, value_name = "CONFIG")]
    pub dummy_weights: Option<PathBuf>,
    /// Which GPU
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub device: usize,
    /// GPUs that share the model, from --device on
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub tensor_parallel: u32,
    /// Have NCCL make the sums over GPUs
    #[arg(long)]
    pub nccl: bool,
    /// MiB of pages handed from the GPU to the next one; several values are measured one after the other
    #[arg(long, value_delimiter = ',', value_name = "MIB,...", requires = "dummy_weights")]
    pub hand_off: Vec<u64>,
    /// Sequences that decode at once; several values are measured one after the other
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub decode: Vec<u32>,
    /// Tokens that lie before each decoded one
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub context: u32,
    /// Tokens of a prompt; several values are measured one after the other
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub prefill: Vec<u32>,
    /// Rows of one sequence verified in one step, at the context
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub verify: Vec<u32>,
    /// Most rows computed together
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub rows: u32,
    /// A row has the same bits alone and in any batch
    #[arg(long)]
    pub invariant: bool,
    /// What the matrices of layers are kept in
    #[arg(long, value_enum, default_value_t = Kept::Dequantised)]
    pub weights: Kept,
    /// What keys and values are kept in
    #[arg(long, value_enum, default_value_t = Kv::Dtype)]
    pub kv: Kv,
    /// Give half of the heads of each layer a window: the first SINK and the last RECENT positions
    #[arg(long, value_names = ["SINK", "RECENT"], num_args = 2)]
    pub half_windows: Option<Vec<u32>>,
    /// Launch kernel by kernel instead of by graphs
    #[arg(long)]
    pub no_graphs: bool,
    /// Do not tell the model which step comes next
    #[arg(long)]
    pub no_early: bool,
    /// Launch a layer's kernels one by one, products by cuBLASLt: no persistent, streamed and wide kernels
    #[arg(long)]
    pub no_persistent: bool,
    /// Time every kernel on its own
    #[arg(long)]
    pub kernels: bool,
    /// Steps of each measurement; the median is shown
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub repeat: u32,
    /// Write the results as JSON: to FILE, or to standard output in place of the table
    #[arg(id = "report_json", long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// What made-up matrices can be kept in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kept {
    Dequantised,
    Fp8,
}

impl From<Kept> for Weights {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Dequantised => Self::Dequantised,
            Kept::Fp8 => Self::Fp8,
        }
    }
}

/// What keys and values can be kept in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kv {
    /// BF16, as all else
    Dtype,
    Fp8,
}

impl From<Kv> for KvKept {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::Dtype => Self::Dtype,
            Kv::Fp8 => Self::Fp8,
        }
    }
}

/// The results; the fields of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    gpu: String,
    mode: &'static str,
    weights: &'static str,
    kv: &'static str,
    /// Read and written by a copy.
    copy_tb_per_s: f64,
    /// Of a bf16 product of 8192 x 8192 x 8192.
    product_tflop_per_s: f64,
    config: Option<String>,
    weight_gb: Option<f64>,
    context: u32,
    half_windows: Option<Vec<u32>>,
    kv_bytes_a_position: Option<u64>,
    version: &'static str,
    /// GPUs that share the model.
    tensor_parallel: u32,
    /// Whether the model was told which step comes next.
    early: bool,
    /// Whether NCCL made the sums over them.
    nccl: bool,
    /// Whether few rows could go through kernels that fill the GPU from one attention to the next.
    persistent: bool,
    steps: Vec<StepTime>,
    kernels: Vec<Kernel>,
    /// Of pages from GPU to GPU, beside NCCL, and through the host's memory.
    transfers: Vec<Transfer>,
}

/// So many bytes from GPU to GPU.
#[derive(Debug, Serialize)]
struct Transfer {
    what: &'static str,
    bytes: u64,
    us: f64,
    gb_per_s: f64,
}

/// One kind of step.
#[derive(Debug, Serialize)]
struct StepTime {
    what: &'static str,
    sequences: u32,
    rows: u32,
    /// From its submission to its picks.
    step_ms: Spread,
    /// Until the layers were queued.
    submit_us: f64,
    /// Bytes over the copy bandwidth or operations over the product's rate, whichever is more.
    floor_ms: f64,
    over_floor: f64,
    tflop_per_s: f64,
}

/// One kernel on its own.
#[derive(Debug, Serialize)]
struct Kernel {
    kernel: &'static str,
    shape: String,
    us: f64,
    tb_per_s: f64,
    tflop_per_s: f64,
}

/// Measures and prints.
pub async fn run(args: GpuArgs) -> Result<()> {
    let json = args.json.clone();
    let report = tokio::task::spawn_blocking(move || measure(&args)).await??;
    if let Some(file) = &json {
        super::write_json(file, &report)?;
    }
    if json.as_deref() != Some(Path::new("-")) {
        print!("{}", report.table());
    }
    Ok(())
}

fn measure(args: &GpuArgs) -> Result<Report> {
    let ceilings = model::ceilings(args.device)?;
    let kernels = if args.kernels { model::kernel_timings(args.device)? } else { Vec::new() };
    let mut report = Report {
        gpu: ceilings.name.clone(),
        mode: if args.invariant { "invariant" } else { "fast" },
        weights: Weights::from(args.weights).name(),
        kv: KvKept::from(args.kv).name(),
        copy_tb_per_s: ceilings.copy / 1e12,
        product_tflop_per_s: ceilings.product / 1e12,
        config: args.dummy_weights.as_ref().and_then(|c| Some(c.file_name()?.to_string_lossy().into_owned())),
        weight_gb: None,
        context: args.context,
        half_windows: args.half_windows.clone(),
        kv_bytes_a_position: None,
        version: env!("CARGO_PKG_VERSION"),
        tensor_parallel: args.tensor_parallel,
        nccl: args.nccl,
        early: !args.no_early,
        persistent: !args.no_persistent,
        steps: Vec::new(),
        kernels: kernels.into_iter().map(Kernel::of).collect(),
        transfers: Vec::new(),
    };
    if args.tensor_parallel > 1 {
        let sums = model::exchange_timings(&gpus(args), args.nccl)?;
        report.kernels.extend(sums.into_iter().map(Kernel::of));
    }
    if let Some(config) = &args.dummy_weights {
        // Each GPU does a part at its own rate.
        let count = f64::from(args.tensor_parallel);
        let all = Ceilings { copy: ceilings.copy * count, product: ceilings.product * count, ..ceilings };
        measure_steps(args, config, &all, &mut report)?;
        if !args.hand_off.is_empty() {
            hand_off(args, config, &mut report)?;
        }
    }
    Ok(report)
}

/// The GPUs that share the model.
fn gpus(args: &GpuArgs) -> Vec<usize> {
    (args.device..).take(args.tensor_parallel as usize).collect()
}

/// Pages from a model on the first GPU to one on the next.
fn hand_off(args: &GpuArgs, config: &Path, report: &mut Report) -> Result<()> {
    let shape = Shape::of(config)?;
    let most = args.hand_off.iter().copied().max().unwrap_or(0) << 20;
    let pages = most.div_ceil(shape.kv_bytes(args.kv.into()) * u64::from(PAGE_POSITIONS)).max(1);
    let options = Options {
        context: Some(PAGE_POSITIONS),
        vocab: None,
        slots: 1,
        pages: PageBudget::Pages(u32::try_from(pages).context("--hand-off: too many pages")?),
        threads: 1,
        heads: None,
    };
    let make = |gpu: usize| {
        let (ordinals, kv) = (vec![gpu], args.kv.into());
        let cuda = CudaOptions { ordinals, kv, rows: 256, ..CudaOptions::default() };
        CudaModel::dummy(config, 1, &options, &cuda)
    };
    let (mut from, to) = (make(args.device)?, make(args.device + 1)?);
    for &size in &args.hand_off {
        let mut rates = model::transfer_rates(&from, &to, size << 20)?;
        rates.extend(model::host_rates(&mut from, size << 20)?);
        for rate in rates {
            let gb_per_s = rate.bytes as f64 / rate.microseconds / 1e3;
            report.transfers.push(Transfer {
                what: rate.what,
                bytes: rate.bytes,
                us: rate.microseconds,
                gb_per_s,
            });
        }
    }
    Ok(())
}

fn measure_steps(args: &GpuArgs, config: &Path, ceilings: &Ceilings, report: &mut Report) -> Result<()> {
    let most = args.decode.iter().copied().max().unwrap_or(1).max(1);
    let verified = args.verify.iter().copied().max().unwrap_or(0);
    let grown = args.context + args.repeat + verified + 2;
    let longest = args.prefill.iter().copied().max().unwrap_or(0).max(grown);
    let pages = (u64::from(pages_for(grown)) * u64::from(most)).max(u64::from(pages_for(longest)));
    let shape = Shape::of(config)?;
    let kv_bytes = shape.kv_bytes(args.kv.into());
    let heads = args.half_windows.as_ref().and_then(|w| Some((*w.first()?, *w.get(1)?)));
    let heads = heads.map(|(sink, recent)| HeadMap::half_windows(shape.layers, shape.kv_heads, sink, recent));
    let classes = heads.as_ref().map_or(1, |map| map.classes.len());
    let options = Options {
        context: Some(longest),
        vocab: None,
        slots: most,
        pages: PageBudget::Pages(u32::try_from(pages).context("--decode and --context: too many pages")?),
        threads: 1,
        heads,
    };
    let cuda = CudaOptions {
        ordinals: gpus(args),
        nccl: args.nccl,
        dtype: Dtype::Bf16,
        weights: args.weights.into(),
        kv: args.kv.into(),
        mode: if args.invariant { Mode::Invariant } else { Mode::Fast },
        rows: args.rows,
        graphs: !args.no_graphs,
        persistent: if args.no_persistent { Persist::Never } else { Persist::BySize },
    };
    let model = CudaModel::dummy(config, 1, &options, &cuda)?;
    report.weight_gb = Some(model.step_bytes() as f64 / 1e9);
    report.kv_bytes_a_position = Some(kv_bytes);
    let mut bench = Bench {
        model,
        kv_bytes,
        classes,
        random: fastrand::Rng::with_seed(0),
        repeat: args.repeat,
        early: !args.no_early,
    };
    for &batch in &args.decode {
        let times = bench.decode(batch, args.context)?;
        report.steps.push(times.step("decode", batch, 1, args.context, &shape, &bench, ceilings)?);
    }
    for &rows in &args.verify {
        let times = bench.verify(rows, args.context)?;
        report.steps.push(times.step("verify", 1, rows, args.context, &shape, &bench, ceilings)?);
    }
    for &tokens in &args.prefill {
        let times = bench.prefill(tokens)?;
        report.steps.push(times.step("prefill", 1, tokens, 0, &shape, &bench, ceilings)?);
    }
    Ok(())
}

impl Kernel {
    fn of(t: Timing) -> Self {
        let per = |amount: u64| amount as f64 / t.microseconds / 1e6;
        Self {
            kernel: t.kernel,
            us: t.microseconds,
            tb_per_s: per(t.bytes),
            tflop_per_s: per(t.operations),
            shape: t.shape,
        }
    }
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!(
            "{}, copy {} TB/s, product {} TFLOP/s, {} mode, {} weights, {} keys and values, pages of {PAGE_POSITIONS}\n",
            self.gpu,
            figure(self.copy_tb_per_s),
            figure(self.product_tflop_per_s),
            self.mode,
            self.weights,
            self.kv
        );
        if !self.steps.is_empty() {
            let mut table = Builder::default();
            table.push_record([
                "step",
                "sequences",
                "rows",
                "ms",
                "min",
                "max",
                "submit us",
                "floor ms",
                "over floor",
                "TFLOP/s",
            ]);
            for step in &self.steps {
                let [ms, min, max] = [step.step_ms.p50, step.step_ms.min, step.step_ms.max].map(figure);
                let [submit, floor, over, rate] =
                    [step.submit_us, step.floor_ms, step.over_floor, step.tflop_per_s].map(figure);
                let (sequences, rows) = (step.sequences.to_string(), step.rows.to_string());
                table.push_record([
                    step.what.into(),
                    sequences,
                    rows,
                    ms,
                    min,
                    max,
                    submit,
                    floor,
                    over,
                    rate,
                ]);
            }
            text += &format!("\n{}", aligned(table));
        }
        if !self.transfers.is_empty() {
            let mut table = Builder::default();
            table.push_record(["GPU to GPU", "MB", "us", "GB/s"]);
            for t in &self.transfers {
                let [megabytes, us, rate] = [t.bytes as f64 / 1e6, t.us, t.gb_per_s].map(figure);
                table.push_record([t.what.into(), megabytes, us, rate]);
            }
            text += &format!("\n{}", aligned(table));
        }
        if !self.kernels.is_empty() {
            let mut table = Builder::default();
            table.push_record(["kernel", "shape", "us", "TB/s", "TFLOP/s"]);
            for k in &self.kernels {
                let [us, bytes, rate] = [k.us, k.tb_per_s, k.tflop_per_s].map(figure);
                table.push_record([k.kernel.into(), k.shape.clone(), us, bytes, rate]);
            }
            text += &format!("\n{}", aligned(table));
        }
        text
    }
}
