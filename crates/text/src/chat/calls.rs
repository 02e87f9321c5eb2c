use std::collections::VecDeque;

use super::ToolSyntax;

mod nesting;

use nesting::{Nesting, Step};

/// Finds tool calls in an answer as its text comes.
///
/// A call is recognised once it names one of the offered tools and its arguments begin; from there on
/// its arguments are given as the model writes them, so at the end of a cut answer they may be half a
/// JSON object. What merely looks like the start of a call stays text, unaltered. White space directly
/// before a call and between calls is dropped. How the answer is cut into pieces does not matter.
#[derive(Debug)]
pub struct CallParser {
    syntax: ToolSyntax,
    tools: Vec<String>,
    state: State,
    /// Text that is not decided: white space, the start of a marker, a call's head; or after the
    /// arguments, what should close the call.
    held: String,
    /// Characters to read again, after what was held turned out to be text.
    again: VecDeque<char>,
    /// Inside of Mistral's list.
    in_list: bool,
    /// The last call had no marker, so that the next needs none.
    bare: bool,
    calls: u32,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Text(String),
    /// A call begins; calls are counted from 0.
    Call {
        index: u32,
        name: String,
    },
    /// More of the JSON text of a call's arguments.
    Arguments {
        index: u32,
        text: String,
    },
}

/// Longest head of a call (up to where its arguments are given) that is held back; a longer one is
/// text. Bounds what a model can make us keep, and the work of reading it again.
const LONGEST_HEAD: usize = 16 << 10;

/// White space that is held back because a call may follow, or the end of one.
const MOST_SPACE: usize = 1 << 10;

#[derive(Clone, Debug)]
enum State {
    /// `start`: nothing but white space was said. A bare object is a call only there: Llama's way, and
    /// what small models of Hermes' syntax write (Qwen2.5-Coder).
    Text {
        start: bool,
    },
    Head(Head),
    /// `bare`: no object around the arguments has to close behind them.
    Arguments {
        nesting: Nesting,
        bare: bool,
    },
    /// Behind the arguments, inside of the call's object.
    Rest(Nesting),
    /// Behind the call's object.
    Close,
}

/// A call's object up to its arguments.
#[derive(Clone, Debug)]
struct Head {
    at: At,
    key: String,
    name: Option<String>,
    /// Arguments that came before the name, as a range of `held`.
    early: Option<(usize, usize)>,
}

#[derive(Clone, Debug)]
enum At {
    Open,
    Key,
    InKey,
    Colon,
    Value,
    InName,
    /// Arguments before the name, from this byte of `held`.
    Early(usize, Nesting),
    /// A member that means nothing to us.
    Other(Nesting),
    Next,
    /// Mistral's `name[ARGS]`, the name so far.
    Bare(String),
    /// Behind `[ARGS]`.
    BareArguments,
}

impl CallParser {
    /// `tools`: the names of those that were offered.
    pub fn new(syntax: ToolSyntax, tools: Vec<String>) -> Self {
        let state = State::Text { start: true };
        Self {
            syntax,
            tools,
            state,
            held: String::new(),
            again: VecDeque::new(),
            in_list: false,
            bare: false,
            calls: 0,
        }
    }

    /// Calls that were recognised so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Takes the next text of the answer and appends what it decides.
    pub fn push(&mut self, text: &str, heard: &mut Vec<Heard>) {
        for c in text.chars() {
            self.read(c, heard);
            while let Some(c) = self.again.pop_front() {
                self.read(c, heard);
            }
        }
    }

    /// The answer is over: what was held back is text, unless it only lacked the end of a call.
    pub fn finish(&mut self, heard: &mut Vec<Heard>) {
        loop {
            match self.state {
                State::Text { .. } => {
                    say(&std::mem::take(&mut self.held), heard);
                    return;
                }
                State::Head(_) => self.not_a_call(heard),
                State::Arguments { .. } | State::Rest(_) | State::Close => return,
            }
            while let Some(c) = self.again.pop_front() {
                self.read(c, heard);
            }
        }
    }

    fn read(&mut self, c: char, heard: &mut Vec<Heard>) {
        match &mut self.state {
            State::Text { start } => {
                let start = *start;
                self.held.push(c);
                self.text(start, heard);
            }
            State::Head(_) => {
                self.held.push(c);
                if self.held.len() > LONGEST_HEAD {
                    return self.not_a_call(heard);
                }
                self.head(c, heard);
            }
            State::Arguments { nesting, bare } => {
                let (step, bare) = (nesting.read(c), *bare);
                if step == Step::Broken {
                    // Not JSON any more. The call stands with what it has; the rest is text.
                    return self.back_to_text(c);
                }
                argue(self.calls - 1, c, heard);
                if step == Step::Closed {
                    let (text, rest) = (State::Text { start: false }, State::Rest(Nesting::inside_object()));
                    self.state = if bare { text } else { rest };
                }
            }
            State::Rest(nesting) => {
                let ends_early = c == '<' && !nesting.in_string && self.syntax == ToolSyntax::Hermes;
                if ends_early {
                    // Small models forget the last brace.
                    self.state = State::Close;
                    return self.read(c, heard);
                }
                match nesting.read(c) {
                    Step::Inside => {}
                    Step::Closed => self.state = State::Close,
                    Step::Broken => self.back_to_text(c),
                }
            }
            State::Close => {
                self.held.push(c);
                self.close();
            }
        }
    }

    /// Gives what cannot be the start of a call.
    fn text(&mut self, mut start: bool, heard: &mut Vec<Heard>) {
        let marker = self.syntax.marker();
        while !self.held.is_empty() {
            let rest = self.held.trim_start();
            let bare = start && self.syntax != ToolSyntax::Mistral && rest == "{";
            if bare || rest == marker {
                (self.in_list, self.bare) = (false, bare);
                self.state = State::Head(Head::new(if bare { At::Key } else { At::Open }));
                return;
            }
            let space = self.held.len() - rest.len();
            let first = match rest.chars().next() {
                None if space < MOST_SPACE => break,
                Some(_) if marker.starts_with(rest) => break,
                first => first.map_or(0, char::len_utf8),
            };
            // White space and one character are decided; the rest may be the start of a marker.
            say(&self.held[..space + first], heard);
            self.held.drain(..space + first);
            start &= first == 0;
        }
        self.state = State::Text { start };
    }

    fn head(&mut self, c: char, heard: &mut Vec<Heard>) {
        let State::Head(head) = &mut self.state else { return };
        let space = c.is_ascii_whitespace();
        let known = |name: &str| self.tools.iter().any(|tool| tool == name);
        let mistral = self.syntax == ToolSyntax::Mistral;
        let end = self.held.len();
        match &mut head.at {
            At::Open if space => {}
            At::Open => match c {
                '{' => head.at = At::Key,
                '[' if mistral && !self.in_list => self.in_list = true,
                _ if mistral && !self.in_list => head.at = At::Bare(c.into()),
                _ => self.not_a_call(heard),
            },
            At::Bare(name) => {
                name.push(c);
                if let Some(written) = name.strip_suffix("[ARGS]") {
                    let written = written.split("[CALL_ID]").next().unwrap_or_default().trim();
                    if known(written) {
                        head.name = Some(written.to_owned());
                        head.at = At::BareArguments;
                    } else {
                        self.not_a_call(heard);
                    }
                } else if name.len() > 256 {
                    self.not_a_call(heard);
                }
            }
            At::BareArguments if space => {}
            At::Key if space => {}
            At::Key => match c {
                '"' => {
                    head.key.clear();
                    head.at = At::InKey;
                }
                _ => self.not_a_call(heard),
            },
            At::InKey => match c {
                '"' => head.at = At::Colon,
                '\\' => self.not_a_call(heard),
                c => head.key.push(c),
            },
            At::Colon if space => {}
            At::Colon => match c {
                ':' => head.at = At::Value,
                _ => self.not_a_call(heard),
            },
            At::Value if space => {}
            At::Value | At::BareArguments => {
                let bare = matches!(head.at, At::BareArguments);
                match (if bare { "arguments" } else { head.key.as_str() }, c) {
                    ("name", '"') if head.name.is_none() => {
                        head.name = Some(String::new());
                        head.at = At::InName;
                    }
                    ("arguments" | "parameters", '{') if head.early.is_none() => {
                        if let Some(name) = head.name.take() {
                            self.state = State::Arguments { nesting: Nesting::inside_object(), bare };
                            self.begin(name, heard);
                            argue(self.calls - 1, c, heard);
                        } else {
                            head.at = At::Early(end - 1, Nesting::inside_object());
                        }
                    }
                    ("name" | "arguments" | "parameters", _) => self.not_a_call(heard),
                    (_, c) => {
                        let mut nesting = Nesting::default();
                        match nesting.read(c) {
                            Step::Broken => self.not_a_call(heard),
                            Step::Inside | Step::Closed => head.at = At::Other(nesting),
                        }
                    }
                }
            }
            At::InName => match c {
                '"' if head.name.as_deref().is_some_and(known) => head.at = At::Next,
                '"' | '\\' => self.not_a_call(heard),
                c => head.name.get_or_insert_default().push(c),
            },
            At::Early(from, nesting) => match nesting.read(c) {
                Step::Inside => {}
                Step::Closed => {
                    head.early = Some((*from, end));
                    head.at = At::Next;
                }
                Step::Broken => self.not_a_call(heard),
            },
            // Numbers and words end at what follows them.
            At::Other(nesting) if nesting.is_outside() && matches!(c, ',' | '}') => {
                head.at = At::Next;
                self.head(c, heard);
            }
            At::Other(nesting) => {
                if nesting.read(c) == Step::Broken {
                    self.not_a_call(heard);
                }
            }
            At::Next if space => {}
            At::Next => match c {
                ',' => head.at = At::Key,
                // A call without arguments is one with none.
                '}' => match head.name.take() {
                    Some(name) => {
                        let arguments = head.early.and_then(|(from, to)| self.held.get(from..to));
                        let arguments = arguments.unwrap_or("{}").to_owned();
                        self.state = State::Close;
                        self.begin(name, heard);
                        heard.push(Heard::Arguments { index: self.calls - 1, text: arguments });
                    }
                    None => self.not_a_call(heard),
                },
                _ => self.not_a_call(heard),
            },
        }
    }

    fn begin(&mut self, name: String, heard: &mut Vec<Heard>) {
        heard.push(Heard::Call { index: self.calls, name });
        self.calls += 1;
        self.held.clear();
    }

    /// What was held is text: its first character for certain, the rest is read again.
    fn not_a_call(&mut self, heard: &mut Vec<Heard>) {
        let held = std::mem::take(&mut self.held);
        let first = held.trim_start().chars().next().map_or(0, char::len_utf8);
        let decided = held.len() - held.trim_start().len() + first;
        say(&held[..decided], heard);
        for c in held[decided..].chars().rev() {
            self.again.push_front(c);
        }
        self.state = State::Text { start: false };
    }

    /// Behind a call, what does not close it.
    fn back_to_text(&mut self, c: char) {
        self.held.clear();
        self.again.push_front(c);
        self.state = State::Text { start: false };
    }

    /// `held` begins behind the call's object.
    fn close(&mut self) {
        let rest = self.held.trim_start();
        let next = match self.syntax {
            // Too much to look through again with every character: a model may say white space for ever.
            _ if self.held.len() > MOST_SPACE => {
                self.again.extend(std::mem::take(&mut self.held).chars());
                State::Text { start: false }
            }
            _ if rest.is_empty() => return,
            ToolSyntax::Hermes if rest == "</tool_call>" => State::Text { start: false },
            ToolSyntax::Hermes if "</tool_call>".starts_with(rest) => return,
            ToolSyntax::Mistral if self.in_list && rest == "]" => State::Text { start: false },
            ToolSyntax::Mistral if self.in_list && rest == "," => {
                self.state = State::Head(Head::new(At::Open));
                return;
            }
            syntax
                if (self.bare || syntax == ToolSyntax::Llama)
                    && matches!(rest.trim_start_matches([';', ' ', '\n']), "" | "{") =>
            {
                if rest.ends_with('{') {
                    self.state = State::Head(Head::new(At::Key));
                }
                return;
            }
            _ => {
                self.again.extend(std::mem::take(&mut self.held).chars());
                State::Text { start: false }
            }
        };
        self.held.clear();
        self.state = next;
    }
}

impl Head {
    fn new(at: At) -> Self {
        Self { at, key: String::new(), name: None, early: None }
    }
}

fn say(text: &str, heard: &mut Vec<Heard>) {
    match heard.last_mut() {
        _ if text.is_empty() => {}
        Some(Heard::Text(last)) => last.push_str(text),
        _ => heard.push(Heard::Text(text.to_owned())),
    }
}

fn argue(index: u32, c: char, heard: &mut Vec<Heard>) {
    match heard.last_mut() {
        Some(Heard::Arguments { index: last, text }) if *last == index => text.push(c),
        _ => heard.push(Heard::Arguments { index, text: c.into() }),
    }
}

#[cfg(test)]
mod tests;
