//! What a comparison came to.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;
use tabled::builder::Builder;

use super::CompareArgs;
use super::runs::{Drafting, Run};
use crate::bench::hardware::Hardware;
use crate::bench::{aligned, figure};

/// The results; the fields of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    target: String,
    drafter: String,
    prompts: String,
    /// Whether the words were a trace's.
    replay: bool,
    /// Worker and drafter had cores of their own.
    split_cores: bool,
    /// Milliseconds that were added to the way from worker to drafter and back.
    round_trip_ms: f64,
    max_tokens: u32,
    temperature: f32,
    seed: u64,
    hardware: Hardware,
    version: &'static str,
    /// dev or release.
    build: &'static str,
    strategies: Vec<Figures>,
    answers: Vec<Run>,
}

/// Of one strategy, over all prompts.
#[derive(Debug, Serialize)]
struct Figures {
    strategy: Drafting,
    answers: usize,
    same_texts: usize,
    /// Answers that hold what was expected, of those for which something was.
    hits: Option<(usize, usize)>,
    tokens: u64,
    /// Tokens after the first of each answer, by the time from the first to the last.
    tokens_per_s: f64,
    /// To plain decoding, all prompts together; of the prompt where it gained least, and most.
    ratio: f64,
    least_ratio: f64,
    most_ratio: f64,
    /// Tokens per verification step, the target's own included; null when no draft was verified.
    mean_acceptance_length: Option<f64>,
    draft_acceptance_rate: Option<f64>,
}

impl Report {
    pub(super) fn new(args: &CompareArgs, runs: Vec<Run>) -> Self {
        let trace = args.replay.as_ref().and_then(|file| file.file_name());
        let prompts = trace.map_or(args.prompts.clone(), |name| name.to_string_lossy().into_owned());
        Self {
            target: args.target.clone(),
            drafter: args.drafter.clone(),
            prompts,
            replay: args.replay.is_some(),
            split_cores: args.split_cores,
            round_trip_ms: args.round_trip.unwrap_or_default().as_secs_f64() * 1e3,
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            seed: args.seed,
            hardware: Hardware::here(),
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "dev" } else { "release" },
            strategies: args.strategies.iter().map(|s| Figures::of(*s, &runs)).collect(),
            answers: runs,
        }
    }

    /// Every text of an exact strategy is plain decoding's, or which is not.
    pub(super) fn exact(&self) -> Result<()> {
        let other: Vec<String> = self
            .answers
            .iter()
            .filter(|r| !r.same_text && !r.strategy.lossy())
            .map(|r| format!("{} under {}", r.prompt, r.strategy))
            .collect();
        ensure!(other.is_empty(), "not the text of plain decoding, please report this: {}", other.join(", "));
        Ok(())
    }

    pub(super) fn table(&self) -> String {
        let Self { target, drafter, prompts, temperature, build, hardware, .. } = self;
        let mut text = format!(
            "{target} with {drafter}, {prompts}, T={temperature}, at most {} tokens, {build} build\n{}\n\n",
            self.max_tokens,
            hardware.line()
        );
        let mut table = Builder::default();
        let hits = self.strategies.iter().any(|f| f.hits.is_some());
        let names =
            ["strategy", "tokens/s", "ratio", "least", "most", "mean length", "accepted", "same texts"];
        table.push_record(names.into_iter().chain(hits.then_some("hits")));
        for f in &self.strategies {
            let or_none = |value: Option<f64>| value.map_or_else(|| "-".into(), figure);
            let figures = [
                f.strategy.to_string(),
                figure(f.tokens_per_s),
                figure(f.ratio),
                figure(f.least_ratio),
                figure(f.most_ratio),
                or_none(f.mean_acceptance_length),
                or_none(f.draft_acceptance_rate),
                format!("{} of {}", f.same_texts, f.answers),
            ];
            let of = |(hits, expected)| format!("{hits} of {expected}");
            table.push_record(figures.into_iter().chain(hits.then(|| f.hits.map_or_else(String::new, of))));
        }
        text += &aligned(table);
        text
    }

    /// A bar for each strategy: how much faster than plain decoding.
    pub(super) fn svg(&self) -> String {
        const BAR: usize = 28;
        let most = self.strategies.iter().map(|f| f.most_ratio).fold(1.0, f64::max);
        let scale = 420.0 / most;
        let height = 60 + BAR * self.strategies.len();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" viewBox=\"0 0 720 {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"110\" y=\"24\" font-size=\"15\">tokens/s by plain decoding's; line: least to most of a prompt</text>\n"
        );
        for (nth, f) in self.strategies.iter().enumerate() {
            let y = 40 + BAR * nth;
            let (middle, text) = (y + BAR / 2 - 4, y + BAR / 2);
            let (width, least, end) =
                (f.ratio * scale, 110.0 + f.least_ratio * scale, 110.0 + f.most_ratio * scale);
            let (strategy, ratio, speed) = (f.strategy, figure(f.ratio), figure(f.tokens_per_s));
            // Writing to a String does not fail.
            let _ = write!(
                svg,
                "<text x=\"100\" y=\"{text}\" text-anchor=\"end\">{strategy}</text>\n\
                 <rect x=\"110\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"#1b6ca8\"/>\n\
                 <line x1=\"{least:.1}\" x2=\"{end:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#e07b00\" stroke-width=\"2\"/>\n\
                 <text x=\"{:.1}\" y=\"{text}\">{ratio} ({speed}/s)</text>\n",
                BAR - 8,
                end.max(110.0 + width) + 8.0
            );
        }
        svg + "</svg>\n"
    }
}

impl Figures {
    fn of(strategy: Drafting, runs: &[Run]) -> Self {
        let own: Vec<&Run> = runs.iter().filter(|r| r.strategy == strategy).collect();
        let speed = |tokens: u64, seconds: f64| tokens as f64 / seconds.max(1e-9);
        let after_first = |r: &Run| r.tokens.saturating_sub(1);
        let total = |strategy: Drafting| {
            let of = || runs.iter().filter(move |r| r.strategy == strategy);
            speed(of().map(after_first).sum(), of().map(|r| r.decode_s).sum())
        };
        let ratios: Vec<f64> = own
            .iter()
            .filter_map(|r| {
                let plain = runs.iter().find(|p| p.prompt == r.prompt && p.strategy == Drafting::NONE)?;
                // An answer of one token has no speed.
                (r.tokens > 1)
                    .then(|| speed(after_first(r), r.decode_s) / speed(after_first(plain), plain.decode_s))
            })
            .collect();
        let expected = own.iter().filter(|r| r.hit.is_some()).count();
        let hits = own.iter().filter(|r| r.hit == Some(true)).count();
        let sum = |field: &str| own.iter().filter_map(|r| r.speculation[field].as_u64()).sum::<u64>();
        let (steps, drafted) = (sum("num_spec_steps"), sum("num_draft_tokens"));
        let accepted = sum("num_accepted_draft_tokens") as f64;
        Self {
            strategy,
            answers: own.len(),
            hits: (expected > 0).then_some((hits, expected)),
            same_texts: own.iter().filter(|r| r.same_text).count(),
            tokens: own.iter().map(|r| r.tokens).sum(),
            tokens_per_s: total(strategy),
            ratio: total(strategy) / total(Drafting::NONE).max(1e-9),
            least_ratio: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            most_ratio: ratios.iter().copied().fold(0.0, f64::max),
            mean_acceptance_length: (steps > 0).then(|| 1.0 + accepted / steps as f64),
            draft_acceptance_rate: (drafted > 0).then(|| accepted / drafted as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(prompt: &str, strategy: &str, tokens: u64, decode_s: f64, accepted: u64) -> Run {
        let steps = u64::from(accepted > 0) * 10;
        Run {
            prompt: prompt.into(),
            strategy: strategy.parse().unwrap(),
            tokens,
            decode_s,
            same_text: prompt != "odd",
            hit: (prompt == "b").then_some(strategy == "none"),
            speculation: json!({
                "num_spec_steps": steps, "num_draft_tokens": 2 * accepted, "num_accepted_draft_tokens": accepted,
            }),
        }
    }

    #[test]
    fn figures_are_over_all_prompts_and_ratios_of_each() {
        let runs = [
            run("a", "none", 101, 10.0, 0),
            run("a", "ngram", 101, 5.0, 20),
            run("b", "none", 51, 5.0, 0),
            run("b", "ngram", 51, 10.0, 10),
            run("c", "ngram", 1, 0.0, 0),
            run("c", "none", 1, 0.0, 0),
        ];
        let ngram = Figures::of("ngram".parse().unwrap(), &runs);
        assert_eq!((ngram.hits, Figures::of(Drafting::NONE, &runs).hits), (Some((0, 1)), Some((1, 1))));
        assert_eq!((ngram.answers, ngram.tokens, ngram.same_texts), (3, 153, 3));
        assert_eq!((ngram.tokens_per_s, ngram.ratio), (10.0, 1.0));
        assert_eq!((ngram.least_ratio, ngram.most_ratio), (0.5, 2.0));
        assert_eq!((ngram.mean_acceptance_length, ngram.draft_acceptance_rate), (Some(2.5), Some(0.5)));
        assert_eq!(Figures::of(Drafting::NONE, &runs).mean_acceptance_length, None);
    }

    #[test]
    fn a_text_that_differs_is_an_error_that_names_it() {
        let report = |prompt: &str| Report {
            target: "t".into(),
            drafter: "d".into(),
            prompts: "p".into(),
            replay: false,
            split_cores: false,
            round_trip_ms: 0.0,
            max_tokens: 9,
            temperature: 0.0,
            seed: 7,
            hardware: Hardware::here(),
            version: "0",
            build: "dev",
            strategies: vec![Figures::of(Drafting::NONE, &[run(prompt, "none", 9, 1.0, 0)])],
            answers: vec![run(prompt, "none", 9, 1.0, 0)],
        };
        assert!(report("a").exact().is_ok());
        let error = report("odd").exact().unwrap_err().to_string();
        assert!(error.contains("odd under none"), "{error}");
        let (table, svg) = (report("a").table(), report("a").svg());
        assert!(
            table.contains("1 of 1") && svg.ends_with("</svg>\n") && svg.contains(">none<"),
            "{table}{svg}"
        );
        let json = serde_json::to_value(report("a")).unwrap();
        assert_eq!(
            (&json["strategies"][0]["strategy"], &json["answers"][0]["same_text"]),
            (&json!("none"), &json!(true))
        );
    }
}
