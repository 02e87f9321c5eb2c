use serde_json::{Value, json};
use tabled::builder::Builder;

use super::capacity::Promise;
use super::trace::Trace;
use super::{Figures, Run, ScheduleArgs};
use crate::bench::drawing::Panel;
use crate::bench::{aligned, figure};

pub(super) fn json(args: &ScheduleArgs, trace: &Trace, promise: &Promise, figures: &[Figures]) -> Value {
    json!({
        "simulated": true,
        "trace": match &args.trace {
            Some(file) => json!({ "file": file.file_name().map(|name| name.to_string_lossy()) }),
            None => json!(args.lengths),
        },
        "requests": trace.asked().len(),
        "prompt_tokens": trace.asked().iter().map(|a| u64::from(a.prompt)).sum::<u64>(),
        "output_tokens": trace.asked().iter().map(|a| u64::from(a.output)).sum::<u64>(),
        "cost": args.cost,
        "budget": args.budget,
        "prompt_rows": args.prompt_rows,
        "slots": args.slots,
        "kv_memory": args.kv_memory.as_u64(),
        "promise_s": promise,
        "policies": figures,
    })
}

pub(super) fn table(promise: &Promise, figures: &[Figures]) -> String {
    let mut rows = Builder::new();
    rows.push_record([
        "policy",
        "requests/s",
        "TTFT p50 ms",
        "TTFT p99 ms",
        "TBT p50 ms",
        "TBT p99 ms",
        "TBT max ms",
        "tokens/s",
    ]);
    for part in figures {
        for run in &part.runs {
            let outcome = &run.outcome;
            let tbt = |of: fn(&crate::bench::spread::Spread) -> f64| {
                outcome.tbt_ms.as_ref().map_or_else(|| "-".to_owned(), |tbt| figure(of(tbt)))
            };
            rows.push_record([
                part.policy.name().to_owned(),
                figure(run.rate),
                figure(outcome.ttft_ms.p50),
                figure(outcome.ttft_ms.p99),
                tbt(|s| s.p50),
                tbt(|s| s.p99),
                tbt(|s| s.max),
                figure(outcome.output_tokens_per_s),
            ]);
        }
    }
    let mut capacities = Builder::new();
    capacities.push_record(["policy", "capacity, requests/s"]);
    for part in figures {
        capacities.push_record([part.policy.name().to_owned(), figure(part.capacity)]);
    }
    format!(
        "simulated\n{}\ncapacity: 99 % of tokens within {} ms, median delay within {} s\n{}",
        aligned(rows),
        figure(promise.tbt * 1e3),
        figure(promise.delay),
        aligned(capacities)
    )
}

pub(super) fn panels(figures: &[Figures]) -> Vec<Panel> {
    let panel = |title, of: fn(&Run) -> Option<f64>| Panel {
        title,
        lines: figures
            .iter()
            .map(|part| {
                let points = part.runs.iter().filter_map(|run| Some((run.rate, of(run)?)));
                (part.policy.name(), points.collect())
            })
            .collect(),
    };
    vec![
        panel("Time between tokens, 99th percentile, ms", |run| Some(run.outcome.tbt_ms?.p99)),
        panel("Longest time between tokens, ms", |run| Some(run.outcome.tbt_ms?.max)),
        panel("Time to first token, median, ms", |run| Some(run.outcome.ttft_ms.p50)),
        panel("Output tokens a second", |run| Some(run.outcome.output_tokens_per_s)),
    ]
}
