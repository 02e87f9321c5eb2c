//! What a step costs: a roofline of its products, and the keys and values that its rows read.

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

/// A model on a machine. The defaults are those of a dense model of 7 billion parameters in BF16 with grouped-query attention, on a
/// GPU that reaches 190 TFLOP/s and 1.6 TB/s (60 % and 80 % of an A100 of 80 GB): a setting to think with, not a measurement.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Cost {
    /// Parameters that a token is multiplied by
    #[arg(long, default_value_t = 7.2e9, value_name = "N")]
    pub parameters: f64,
    /// Bytes of a parameter
    #[arg(long, default_value_t = 2.0, value_name = "BYTES")]
    pub parameter_bytes: f64,
    /// Bytes of keys and values of one position
    #[arg(long, default_value_t = 131_072.0, value_name = "BYTES")]
    pub kv_bytes: f64,
    /// Query heads times their width times layers: the attention of one row to one key is 4 times so many operations
    #[arg(long, default_value_t = 131_072.0, value_name = "N")]
    pub attention_width: f64,
    /// Operations a second that products reach
    #[arg(long, default_value_t = 190e12, value_name = "N")]
    pub flops: f64,
    /// Bytes a second that memory reaches
    #[arg(long, default_value_t = 1.6e12, value_name = "N")]
    pub bandwidth: f64,
    /// Rows that cost as much as one
    #[arg(long, default_value_t = 128, value_name = "ROWS")]
    pub tile: u32,
    /// Microseconds of a step that does nothing
    #[arg(long, default_value_t = 1000.0, value_name = "US")]
    pub overhead_us: f64,
}

impl Cost {
    pub fn check(&self) -> Result<()> {
        for (value, flag) in [
            (self.parameters, "--parameters"),
            (self.parameter_bytes, "--parameter-bytes"),
            (self.kv_bytes, "--kv-bytes"),
            (self.attention_width, "--attention-width"),
            (self.flops, "--flops"),
            (self.bandwidth, "--bandwidth"),
        ] {
            ensure!(value.is_finite() && value > 0.0, "{flag} must be above 0");
        }
        ensure!(self.tile > 0, "--tile must be at least 1");
        ensure!(self.overhead_us.is_finite() && self.overhead_us >= 0.0, "--overhead-us must be at least 0");
        Ok(())
    }

    /// Seconds of a step: runs of rows, each (rows, positions before them).
    pub fn step(&self, runs: impl IntoIterator<Item = (u32, u32)>) -> f64 {
        let (mut rows, mut attention) = (0, 0.0);
        for (own, before) in runs {
            rows += own;
            let keys = f64::from(before) + f64::from(own) / 2.0;
            let operations = 4.0 * f64::from(own) * keys * self.attention_width / self.flops;
            attention += operations.max(f64::from(before + own) * self.kv_bytes / self.bandwidth);
        }
        let tiles = f64::from(rows.next_multiple_of(self.tile));
        let products = 2.0 * self.parameters * tiles / self.flops;
        let weights = self.parameters * self.parameter_bytes / self.bandwidth;
        self.overhead_us / 1e6 + products.max(weights) + attention
    }

    /// Seconds of a step in which `sequences` decode, each with `context` positions.
    pub fn decode(&self, sequences: u32, context: u32) -> f64 {
        self.step((0..sequences).map(|_| (1, context)))
    }

    /// Pages that so many bytes hold.
    pub fn pages(&self, bytes: u64) -> u32 {
        let page = self.kv_bytes * f64::from(kvcache::PAGE_POSITIONS);
        (bytes as f64 / page).floor().clamp(1.0, f64::from(u32::MAX)) as u32
    }
}
