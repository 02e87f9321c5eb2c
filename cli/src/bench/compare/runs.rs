//! Every prompt under every strategy, in turn.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::CompareArgs;
use super::asked::Asked;
use crate::client::Client;

/// A strategy by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Drafting {
    name: &'static str,
    /// Drafts that are waited for, or of a fixed exit.
    k: Option<u32>,
    /// Layers of a fixed exit; tokens that RAPID's drafter may read of the prompt besides its ends; last positions that
    /// drafts over a window see.
    size: Option<u32>,
}

/// Names, and what the API calls them.
const NAMES: [(&str, &str); 10] = [
    ("none", "none"),
    ("ngram", "ngram"),
    ("suffix", "suffix"),
    ("recycle", "recycle"),
    ("draft", "draft"),
    ("pearl", "draft"),
    ("auto", "auto"),
    ("del", "del"),
    ("window", "window"),
    // Lossy: its text is not plain decoding's.
    ("rapid", "rapid"),
];

impl Drafting {
    pub const NONE: Self = Self { name: "none", k: None, size: None };

    /// Auto takes a drafter where there is one.
    pub(super) fn needs_drafter(&self) -> bool {
        ["draft", "pearl", "lockstep", "rapid"].contains(&self.name)
    }

    /// What the API calls how exact an answer must be.
    fn quality(&self) -> &'static str {
        if self.lossy() { "approximate" } else { "exact" }
    }

    /// Its text need not be plain decoding's.
    pub(super) fn lossy(&self) -> bool {
        self.name == "rapid"
    }

    fn field(&self) -> Value {
        match (self.size, self.k) {
            (Some(budget), k) if self.lossy() => {
                let retrieval = json!({ "budget": budget });
                json!({ "strategy": "rapid", "retrieval": retrieval, "k": k, "deadline_ms": 5000 })
            }
            (Some(recent), k) if self.name == "window" => {
                json!({ "strategy": "window", "recent": recent, "k": k })
            }
            (Some(exit), k) => json!({ "strategy": "del", "exit": exit, "k": k }),
            // So long that it is the strategy that is measured, not the deadline.
            (None, Some(k)) => json!({ "strategy": "lockstep", "k": k, "deadline_ms": 5000 }),
            (None, None) => {
                let called = NAMES.iter().find(|(name, _)| *name == self.name);
                json!({ "strategy": called.map_or(self.name, |(_, called)| called) })
            }
        }
    }
}

impl FromStr for Drafting {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Some(k) = word.strip_prefix("lockstep-") {
            let k = k.parse().ok().filter(|k| (1..=64).contains(k));
            return k
                .map(|k| Self { name: "lockstep", k: Some(k), size: None })
                .ok_or("lockstep-K: K must be 1 to 64".into());
        }
        if let Some((budget, k)) = word.strip_prefix("rapid-").and_then(|rest| rest.split_once('-')) {
            let (Some(budget @ 8..=0x10_0000), Some(k @ 1..=64)) = (budget.parse().ok(), k.parse().ok())
            else {
                return Err("rapid-TOKENS-K: TOKENS must be 8 to 1048576, K 1 to 64".into());
            };
            return Ok(Self { name: "rapid", k: Some(k), size: Some(budget) });
        }
        if let Some((recent, k)) = word.strip_prefix("window-").and_then(|fixed| fixed.split_once('-')) {
            let (Some(recent @ 1..=0x10_0000), Some(k @ 1..=16)) = (recent.parse().ok(), k.parse().ok())
            else {
                return Err("window-RECENT-K: RECENT must be 1 to 1048576, K 1 to 16".into());
            };
            return Ok(Self { name: "window", k: Some(k), size: Some(recent) });
        }
        if let Some((exit, k)) = word.strip_prefix("del-").and_then(|fixed| fixed.split_once('-')) {
            let (Some(exit), Some(k @ 1..=16)) = (exit.parse().ok(), k.parse().ok()) else {
                return Err("del-E-K: E must be a number of layers, K must be 1 to 16".into());
            };
            return Ok(Self { name: "del", k: Some(k), size: Some(exit) });
        }
        let names = NAMES.map(|(name, _)| name);
        match names.into_iter().find(|name| *name == word) {
            Some(name) => Ok(Self { name, k: None, size: None }),
            None => Err(format!(
                "no strategy is called {word}; there are {}, lockstep-K, rapid-TOKENS-K, del-E-K, window-RECENT-K",
                names.join(", ")
            )),
        }
    }
}

impl fmt::Display for Drafting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.size.iter().chain(&self.k).try_for_each(|number| write!(f, "-{number}"))
    }
}

impl From<Drafting> for String {
    fn from(drafting: Drafting) -> Self {
        drafting.to_string()
    }
}

/// One answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) prompt: String,
    pub(super) strategy: Drafting,
    pub(super) tokens: u64,
    /// From the first token to the last.
    pub(super) decode_s: f64,
    /// It is plain decoding's text.
    pub(super) same_text: bool,
    /// It holds what was expected; null where nothing was.
    pub(super) hit: Option<bool>,
    /// vLLM's figures of it, as the server sent them.
    pub(super) speculation: Value,
}

/// Asks everything; the strategy that goes first changes from prompt to prompt.
pub(super) async fn run(args: &CompareArgs, asked: &[Asked], url: &str) -> Result<Vec<Run>> {
    let client = Client::new(url)?;
    let model = client.model().await?;
    let mut runs: Vec<Run> = Vec::new();
    for (nth, one) in asked.iter().enumerate() {
        let mut answers = Vec::new();
        for turn in 0..args.strategies.len() {
            let strategy = args.strategies[(nth + turn) % args.strategies.len()];
            let body = json!({
                "model": model, "prompt": one.ids.iter().map(|id| id.0).collect::<Vec<_>>(),
                "max_tokens": one.max_tokens, "temperature": args.temperature, "seed": args.seed,
                "speculation": strategy.field(), "quality": strategy.quality(),
                // A tenant each: what one strategy was told must not be another one's library.
                "cache_salt": format!("compare-{strategy}"),
            });
            let answer = client.complete(body, |_| {}).await;
            answers.push((strategy, answer.with_context(|| format!("{} under {strategy}", one.name))?));
        }
        let plain = answers.iter().find(|(strategy, _)| *strategy == Drafting::NONE);
        let plain = plain.map(|(_, answer)| answer.text.clone()).context("plain decoding was not asked")?;
        runs.extend(answers.into_iter().map(|(strategy, answer)| Run {
            prompt: one.name.clone(),
            strategy,
            tokens: answer.completion_tokens,
            decode_s: answer.decode.as_secs_f64(),
            same_text: answer.text == plain,
            hit: one.expect.as_ref().map(|expect| answer.text.contains(expect)),
            speculation: answer.speculation,
        }));
        eprintln!("{} of {}: {}", nth + 1, asked.len(), one.name);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_api_takes() {
        for (word, field) in [
            ("pearl", json!({ "strategy": "draft" })),
            ("del-8-6", json!({ "strategy": "del", "exit": 8, "k": 6 })),
            ("del", json!({ "strategy": "del" })),
            ("window-256-4", json!({ "strategy": "window", "recent": 256, "k": 4 })),
            ("recycle", json!({ "strategy": "recycle" })),
            (
                "rapid-512-4",
                json!({ "strategy": "rapid", "retrieval": { "budget": 512 }, "k": 4, "deadline_ms": 5000 }),
            ),
            ("lockstep-4", json!({ "strategy": "lockstep", "k": 4, "deadline_ms": 5000 })),
        ] {
            let drafting: Drafting = word.parse().unwrap();
            assert_eq!((drafting.field(), drafting.to_string()), (field, word.to_owned()));
        }
    }
}
