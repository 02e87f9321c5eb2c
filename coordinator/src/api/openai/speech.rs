//! The text of one choice to what a message is made of: content and tool calls.

use sha2::{Digest, Sha256};
use text::{CallParser, Heard, ToolSyntax};

/// Reads one choice.
#[derive(Debug)]
pub(super) struct Speech {
    /// `None`: nothing may be called, so everything is content.
    calls: Option<Calls>,
}

#[derive(Debug)]
struct Calls {
    parser: CallParser,
    ids: CallIds,
    /// Calls beyond it are dropped (`parallel_tool_calls` false).
    most: u32,
    heard: Vec<Heard>,
}

/// What a piece of text says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) content: String,
    /// In order; of one call, what came of it.
    pub(super) calls: Vec<CallPart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CallPart {
    pub(super) index: u32,
    /// Id and name, when the call begins here.
    pub(super) begins: Option<(String, String)>,
    /// More of its arguments.
    pub(super) arguments: String,
}

/// How a message's calls are read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) syntax: ToolSyntax,
    pub(super) tools: Vec<String>,
    pub(super) parallel: bool,
}

/// Ids of calls: no two answers share one, and an answer that is generated again has the same.
#[derive(Clone, Debug)]
struct CallIds {
    answer: String,
    choice: u32,
    short: bool,
}

impl Speech {
    /// `answer` is the id of the whole answer.
    pub(super) fn new(reading: Option<&Reading>, answer: &str, choice: u32) -> Self {
        let calls = reading.map(|reading| Calls {
            parser: CallParser::new(reading.syntax, reading.tools.clone()),
            ids: CallIds { answer: answer.to_owned(), choice, short: reading.syntax.short_ids() },
            most: if reading.parallel { u32::MAX } else { 1 },
            heard: Vec::new(),
        });
        Self { calls }
    }

    pub(super) fn hear(&mut self, text: &str) -> Said {
        match &mut self.calls {
            None => Said { content: text.to_owned(), calls: Vec::new() },
            Some(calls) => {
                calls.parser.push(text, &mut calls.heard);
                calls.said()
            }
        }
    }

    /// What the end settles.
    pub(super) fn finish(&mut self) -> Said {
        let Some(calls) = &mut self.calls else { return Said::default() };
        calls.parser.finish(&mut calls.heard);
        calls.said()
    }

    /// Whether a call was heard.
    pub(super) fn called(&self) -> bool {
        self.calls.as_ref().is_some_and(|calls| calls.parser.calls() > 0)
    }
}

impl Said {
    pub(super) fn is_empty(&self) -> bool {
        self.content.is_empty() && self.calls.is_empty()
    }
}

impl Calls {
    fn said(&mut self) -> Said {
        let mut said = Said::default();
        for heard in self.heard.drain(..) {
            match heard {
                Heard::Text(text) => said.content.push_str(&text),
                Heard::Call { index, name } if index < self.most => {
                    let begins = Some((self.ids.id(index), name));
                    said.calls.push(CallPart { index, begins, arguments: String::new() });
                }
                Heard::Arguments { index, text } if index < self.most => match said.calls.last_mut() {
                    Some(part) if part.index == index => part.arguments.push_str(&text),
                    _ => said.calls.push(CallPart { index, begins: None, arguments: text }),
                },
                Heard::Call { .. } | Heard::Arguments { .. } => {}
            }
        }
        said
    }
}

impl CallIds {
    fn id(&self, index: u32) -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let name = format!("{}/{}/{index}", self.answer, self.choice);
        let digest = Sha256::digest(name.as_bytes());
        let letters =
            digest.iter().filter_map(|byte| LETTERS.get(usize::from(byte % 32)).copied().map(char::from));
        if self.short {
            letters.take(9).collect()
        } else {
            format!("call_{}", letters.take(24).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speech(parallel: bool) -> Speech {
        let reading = Reading { syntax: ToolSyntax::Hermes, tools: vec!["f".into()], parallel };
        Speech::new(Some(&reading), "chatcmpl-1", 0)
    }

    const TWO: &str = "Hm.<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\
                       <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";

    #[test]
    fn content_and_calls_are_told_apart() {
        let mut speech = speech(true);
        let said = speech.hear(TWO);
        assert_eq!(said.content, "Hm.");
        let calls: Vec<_> = said.calls.iter().map(|c| (c.index, c.arguments.as_str())).collect();
        assert_eq!(calls, [(0, "{\"a\": 1}"), (1, "{}")]);
        let ids: Vec<_> = said.calls.iter().filter_map(|c| c.begins.as_ref()).collect();
        assert!(ids[0].0.starts_with("call_") && ids[0].0.len() == 29 && ids[0].0 != ids[1].0, "{ids:?}");
        assert!(speech.called() && speech.finish().is_empty());
    }

    #[test]
    fn one_call_when_one_is_asked_for() {
        let mut speech = speech(false);
        let said = speech.hear(TWO);
        assert_eq!(said.calls.len(), 1);
    }

    #[test]
    fn the_same_answer_has_the_same_ids() {
        let ids = |answer: &str, choice, short| {
            let ids = CallIds { answer: answer.into(), choice, short };
            [ids.id(0), ids.id(1)]
        };
        assert_eq!(ids("a", 0, false), ids("a", 0, false));
        let all: std::collections::HashSet<_> =
            [ids("a", 0, false), ids("a", 1, false), ids("b", 0, false)].concat().into_iter().collect();
        assert_eq!(all.len(), 6);
        assert!(
            ids("a", 0, true).iter().all(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()))
        );
    }

    #[test]
    fn without_tools_everything_is_content() {
        let mut speech = Speech::new(None, "x", 0);
        assert_eq!(speech.hear(TWO).content, TWO);
        assert!(!speech.called() && speech.finish().is_empty());
    }
}
