//! What is asked.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};

/// Common words, each one token (with its leading space) in the vocabularies of SmolLM2 and Qwen2.5.
const WORDS: &str = include_str!("words.txt");

/// The API that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completions,
}

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// In order, from the first again after the last.
    Listed(Vec<Prompt>),
    Made(Made),
}

/// Prompts of a given length from a list of words; the same seed and index give the same prompt.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Words of a prompt. A chat template's own tokens come on top.
    pub words: usize,
    /// Words at the start that all prompts share; the others differ from request to request.
    pub shared: usize,
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    /// OpenAI's messages, sent as they are.
    Messages(Value),
}

/// A line of a prompt file; other columns of a data set are no matter.
#[derive(Deserialize)]
struct Line {
    messages: Option<Value>,
    #[serde(alias = "text")]
    prompt: Option<String>,
}

impl Api {
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl Prompts {
    /// From a file: JSON lines with `messages`, `prompt` or `text` when its name ends in .jsonl, else
    /// one prompt a line. Lines of white space are left out.
    pub fn read(file: &Path, api: Api) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let json = file.extension().is_some_and(|e| e == "jsonl");
        let mut prompts = Vec::new();
        for (nth, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let prompt = if json { Prompt::parse(line) } else { Ok(Prompt::Text(line.to_owned())) };
            let prompt = prompt.with_context(|| format!("{}, line {}", file.display(), nth + 1))?;
            if api == Api::Completions && matches!(prompt, Prompt::Messages(_)) {
                bail!("{}, line {}: messages need --endpoint chat", file.display(), nth + 1);
            }
            prompts.push(prompt);
        }
        ensure!(!prompts.is_empty(), "{} holds no prompt", file.display());
        Ok(Self::Listed(prompts))
    }

    /// The prompt of a request. `index` is its place in the run.
    pub fn get(&self, index: u64) -> Prompt {
        match self {
            Self::Listed(prompts) => {
                let at = usize::try_from(index % prompts.len().max(1) as u64).unwrap_or_default();
                prompts.get(at).cloned().unwrap_or_else(|| Prompt::Text(String::new()))
            }
            Self::Made(made) => Prompt::Text(made.text(index)),
        }
    }
}

impl Prompt {
    fn parse(line: &str) -> Result<Self> {
        let line: Line = serde_json::from_str(line).context("no JSON object of a prompt")?;
        match (line.messages, line.prompt) {
            (Some(messages), None) => {
                let some = messages.as_array().is_some_and(|m| !m.is_empty());
                ensure!(some, "messages must be a list that is not empty");
                Ok(Self::Messages(messages))
            }
            (None, Some(prompt)) => Ok(Self::Text(prompt)),
            (Some(_), Some(_)) => bail!("has both messages and a prompt; give one"),
            (None, None) => bail!("has none of messages, prompt and text"),
        }
    }

    /// Puts the prompt into a request.
    pub fn fill(self, body: &mut Value, api: Api) {
        match (api, self) {
            (Api::Completions, Self::Text(text)) => body["prompt"] = json!(text),
            (_, Self::Text(text)) => body["messages"] = json!([{ "role": "user", "content": text }]),
            (_, Self::Messages(messages)) => body["messages"] = messages,
        }
    }
}

impl Made {
    fn text(&self, index: u64) -> String {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut text = String::with_capacity(self.words * 7);
        for at in 0..self.words {
            if at == self.shared {
                // A stream of its own for each request; odd factors keep different pairs apart.
                let own =
                    self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xd1b5_4a32_d192_ed03);
                random = fastrand::Rng::with_seed(own);
            }
            if at > 0 {
                text.push(' ');
            }
            text.push_str(random.choice(&words).copied().unwrap_or_default());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn made_prompts_are_reproducible_unique_and_share_what_they_should() {
        for (words, shared) in [(16, 0), (64, 48), (8, 8)] {
            let made = Made { words, shared, seed: 3 };
            let texts: Vec<String> = (0..500).map(|i| made.text(i)).collect();
            assert_eq!(texts[7], made.text(7));
            assert!(texts.iter().all(|t| t.split(' ').count() == words));
            let starts: HashSet<Vec<&str>> =
                texts.iter().map(|t| t.split(' ').take(shared).collect()).collect();
            assert_eq!(starts.len(), 1, "{shared} shared words");
            let wanted = if shared < words { 500 } else { 1 };
            assert_eq!(texts.iter().collect::<HashSet<_>>().len(), wanted);
            assert_ne!(texts[0], Made { seed: 4, ..made }.text(0));
        }
    }

    #[test]
    fn the_words_are_many_and_differ() {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        assert_eq!((words.len(), words.iter().collect::<HashSet<_>>().len()), (256, 256));
    }

    #[test]
    fn files_are_read_in_order_and_from_the_start_again() {
        let (_dir, path) = file(
            "p.jsonl",
            "{\"prompt\":\"a\",\"id\":7}\n\n{\"text\":\"b\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}]}\n",
        );
        let prompts = Prompts::read(&path, Api::Chat).unwrap();
        assert_eq!(prompts.get(0), Prompt::Text("a".into()));
        assert_eq!(prompts.get(4), Prompt::Text("b".into()));
        let mut body = json!({});
        prompts.get(2).fill(&mut body, Api::Chat);
        assert_eq!(body, json!({ "messages": [{ "role": "user", "content": "c" }] }));
        let error = Prompts::read(&path, Api::Completions).unwrap_err().to_string();
        assert!(error.contains("line 4") && error.contains("--endpoint chat"), "{error}");

        let (_dir, path) = file("p.txt", "one\n  \n{\"prompt\":1}\n");
        let Prompts::Listed(listed) = Prompts::read(&path, Api::Completions).unwrap() else { panic!() };
        assert_eq!(listed, [Prompt::Text("one".into()), Prompt::Text("{\"prompt\":1}".into())]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, wanted) in [
            ("{}", "none of messages"),
            ("{\"prompt\":\"a\"}\n{", "line 2"),
            ("{\"messages\":[]}", "not empty"),
            ("{\"messages\":[1],\"prompt\":\"a\"}", "both"),
            ("\n \n", "no prompt"),
        ] {
            let (_dir, path) = file("p.jsonl", text);
            let error = format!("{:#}", Prompts::read(&path, Api::Chat).unwrap_err());
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
