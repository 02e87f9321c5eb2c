//! The highest rate at which a promise is kept.

use anyhow::Result;
use serde::Serialize;

use super::cost::Cost;
use super::replay::{Limits, Outcome, replay};
use super::trace::Trace;

/// What answers are promised, in seconds (the metric of Sarathi-Serve: the 99th percentile of the time between tokens, and the
/// median delay before a request is first scheduled).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Promise {
    pub tbt: f64,
    pub delay: f64,
}

impl Promise {
    pub fn kept(&self, outcome: &Outcome) -> bool {
        outcome.tbt_ms.is_none_or(|tbt| tbt.p99 <= self.tbt * 1e3) && outcome.delay_ms.p50 <= self.delay * 1e3
    }
}

/// Steps of the bisection: 2^-8 of the range, which is at most twice the answer.
const HALVINGS: u32 = 8;
/// Below this share of the trace's own rate nothing is looked for.
const LEAST: f64 = 1.0 / 1024.0;

/// Requests a second up to which the promise is kept, by bisection; 0 when it is at none.
pub fn capacity(trace: &Trace, cost: &Cost, limits: &Limits, promise: &Promise) -> Result<f64> {
    let kept = |rate: f64| Ok::<_, anyhow::Error>(promise.kept(&replay(&trace.at(rate), cost, limits)?));
    let mut low = trace.rate();
    while !kept(low)? {
        low /= 2.0;
        if low < trace.rate() * LEAST {
            return Ok(0.0);
        }
    }
    let mut high = low * 2.0;
    while kept(high)? {
        (low, high) = (high, high * 2.0);
        // Faster than everything at once it cannot be.
        if high > trace.rate() / LEAST {
            return Ok(low);
        }
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if kept(middle)? { low = middle } else { high = middle }
    }
    Ok(low)
}
