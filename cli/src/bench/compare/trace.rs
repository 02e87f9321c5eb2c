//! A recorded pair of models as a file: JSON lines.
//!
//! The first line says whose words follow, each other line is one answer:
//!
//! ```text
//! {"paceline_trace":1,"target":"coder-1.5b","drafter":"coder-0.5b","vocab_size":151665,...}
//! {"name":"HumanEval/0","stopped":true,"prompt":[..],"target":[..],"drafter":[..]}
//! ```
//!
//! Token ids are numbers. `target` is the answer; `drafter[i]` is what the drafter says after the prompt and
//! `target[..i]`, the true prefix, so the acceptance of a chain of any length from any place can be read
//! off. `stopped`: the answer ended by itself, with its stop token as the last one.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use engine::{Recorded, Trace};
use request::TokenId;
use serde::{Deserialize, Serialize};

/// A file of more than this is no trace of ours.
const MOST_BYTES: u64 = 256 << 20;
const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Version of the format.
    pub paceline_trace: u32,
    pub target: String,
    pub target_fingerprint: String,
    pub drafter: String,
    pub drafter_fingerprint: String,
    /// All ids are below it.
    pub vocab_size: u32,
    /// Where the prompts came from.
    pub prompts: String,
    /// Longest answer that was recorded.
    pub max_tokens: u32,
    /// Both models took their most likely token.
    pub sampling: Greedy,
}

/// The only way of drawing that is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Greedy {
    #[default]
    Greedy,
}

/// One answer and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub name: String,
    pub stopped: bool,
    pub recorded: Recorded,
}

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub head: Head,
    pub answers: Vec<Answer>,
}

/// An answer as a line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    stopped: bool,
    prompt: Vec<u32>,
    target: Vec<u32>,
    drafter: Vec<u32>,
}

impl Head {
    pub fn version() -> u32 {
        VERSION
    }
}

impl File {
    pub fn read(path: &Path) -> Result<Self> {
        let of = || format!("trace {}", path.display());
        let length = path.metadata().with_context(of)?.len();
        ensure!(length <= MOST_BYTES, "{} has {length} bytes, more than any trace", path.display());
        let text = std::fs::read_to_string(path).with_context(of)?;
        Self::parse(&text).with_context(of)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, first) = lines.next().context("is empty")?;
        // The version first: another one may have other fields.
        let version =
            serde_json::from_str::<serde_json::Value>(first).ok().and_then(|v| v["paceline_trace"].as_u64());
        let version = version.context("line 1 is not the head of a trace: it has no paceline_trace")?;
        ensure!(
            version == u64::from(VERSION),
            "is of version {version}; this program reads version {VERSION}"
        );
        let head = serde_json::from_str(first).context("line 1")?;
        let answers = lines
            .map(|(nth, line)| {
                let line: Line = serde_json::from_str(line).with_context(|| format!("line {}", nth + 1))?;
                let ids = |raw: Vec<u32>| raw.into_iter().map(TokenId).collect();
                let recorded = Recorded {
                    prompt: ids(line.prompt),
                    target: ids(line.target),
                    drafter: ids(line.drafter),
                };
                Ok(Answer { name: line.name, stopped: line.stopped, recorded })
            })
            .collect::<Result<Vec<_>>>()?;
        let file = Self { head, answers };
        ensure!(!file.answers.is_empty(), "holds no answer");
        file.trace().validate()?;
        Ok(file)
    }

    pub fn text(&self) -> Result<String> {
        let mut text = serde_json::to_string(&self.head)? + "\n";
        for Answer { name, stopped, recorded } in &self.answers {
            let ids = |ids: &[TokenId]| ids.iter().map(|id| id.0).collect();
            let line = Line {
                name: name.clone(),
                stopped: *stopped,
                prompt: ids(&recorded.prompt),
                target: ids(&recorded.target),
                drafter: ids(&recorded.drafter),
            };
            writeln!(text, "{}", serde_json::to_string(&line)?)?;
        }
        Ok(text)
    }

    /// What an [`engine::Replay`] needs of it.
    pub fn trace(&self) -> Arc<Trace> {
        let answers = self.answers.iter().map(|a| a.recorded.clone()).collect();
        Arc::new(Trace { vocab_size: self.head.vocab_size, answers })
    }

    /// Of all places: where the drafter's token is the target's.
    pub fn agreement(&self) -> f64 {
        let pairs = || self.answers.iter().flat_map(|a| a.recorded.target.iter().zip(&a.recorded.drafter));
        pairs().filter(|(t, d)| t == d).count() as f64 / pairs().count().max(1) as f64
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn file() -> File {
        let ids = |raw: &[u32]| raw.iter().copied().map(TokenId).collect();
        let head = Head {
            paceline_trace: VERSION,
            target: "t".into(),
            target_fingerprint: "fp_1".into(),
            drafter: "d".into(),
            drafter_fingerprint: "fp_2".into(),
            vocab_size: 10,
            prompts: "made".into(),
            max_tokens: 4,
            sampling: Greedy::Greedy,
        };
        let answer = |name: &str, prompt: &[u32], target: &[u32], drafter: &[u32]| Answer {
            name: name.into(),
            stopped: false,
            recorded: Recorded { prompt: ids(prompt), target: ids(target), drafter: ids(drafter) },
        };
        let answers = vec![answer("a", &[1, 2], &[3, 4, 5], &[3, 9, 5]), answer("b", &[7], &[8], &[8])];
        File { head, answers }
    }

    #[test]
    fn a_trace_comes_back_as_it_was_written() {
        let file = file();
        let text = file.text().unwrap();
        assert_eq!(File::parse(&text).unwrap(), file);
        assert_eq!(File::parse(&text.replace('\n', "\n\n")).unwrap(), file);
        assert_eq!(file.agreement(), 0.75);
        assert_eq!(file.trace().answers[1].prompt, [TokenId(7)]);
    }

    #[test]
    fn what_is_no_trace_says_why_and_where() {
        let text = file().text().unwrap();
        for (bad, why) in [
            (String::new(), "is empty"),
            ("{}\n".into(), "no paceline_trace"),
            ("no json".into(), "no paceline_trace"),
            (text.replace("\"paceline_trace\":1", "\"paceline_trace\":2"), "version 2"),
            (text.lines().next().unwrap().to_owned(), "holds no answer"),
            (text.replace("\"target\":[8]", "\"target\":[8,8]"), "not as many drafts"),
            (text.replace("[7]", "[10]"), "outside its own vocabulary"),
            (text.replace("\"name\":\"b\"", "\"nick\":\"b\""), "line 3"),
        ] {
            let error = format!("{:#}", File::parse(&bad).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
