//! Golden plans (`testdata/*.txt`) and laws. Each golden file is a script of commands; what follows
//! `----` is what the commands before it printed:
//!
//! ```text
//! add a prompt=1000 max=10     a sequence; max = tokens it may add
//!       text=b                 its tokens are those of b (default: its own)
//!       salt=x priority=1 limit=20
//!       settled=8              a draft sequence: tokens from there on may be rewritten
//! drafts a 3                   three drafts are there at the next plan
//! accept a 1                   of which one will hold (default: all)
//! hold a / go a                leave it out of plans / take it in again
//! rewrite a at=12 add=1        the drafter's tail is replaced
//! settle a 12
//! limit a 20                   the length up to which it may grow
//! remove a
//! plan                         plans, executes, commits; prints
//!                                a gives way
//!                                a [again] cached N       when a prefix was found or it comes back
//!                                NAME from..to +drafts pick
//! table a                      its pages of each class; `.` is a hole
//! state                        prints running, waiting and free pages, cached ones if there are any
//! counters
//! ```
//!
//! `BLESS=1 cargo test -p scheduler` writes what is printed; read the diff before you keep it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvcache::{HeadClass, PrefixRoot};

use crate::Policy;

use super::*;

mod ahead;
mod cost;
mod laws;
mod mirror;
mod sarathi;

use mirror::Mirror;

#[derive(Default)]
struct Script {
    scheduler: Option<Scheduler>,
    mirror: Mirror,
    names: BTreeMap<String, SequenceId>,
    texts: BTreeMap<SequenceId, u64>,
    drafts: BTreeMap<SequenceId, u32>,
    accept: BTreeMap<SequenceId, u32>,
    held: Vec<SequenceId>,
}

fn number<T: std::str::FromStr>(words: &[&str], key: &str) -> Option<T> {
    words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// Token `position` of a text.
fn token(text: u64, position: u32) -> TokenId {
    TokenId(text as u32 * 100_000 + position)
}

impl Script {
    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "config" {
            let pages = number(&words, "pages").unwrap();
            let mut classes = vec![(HeadClass::Full, pages)];
            if let Some(recent) = number(&words, "window") {
                classes.push((HeadClass::Window { sink: 16, recent }, pages));
            }
            *self = Self::default();
            self.scheduler = Some(Scheduler::new(Config {
                token_budget: number(&words, "budget").unwrap(),
                tile: number(&words, "tile").unwrap_or(1),
                policy: match words.iter().find_map(|w| w.strip_prefix("policy=")) {
                    None => Policy::Sarathi,
                    Some("prefill-first") => Policy::PrefillFirst,
                    Some("decode-first") => Policy::DecodeFirst,
                    Some(other) => panic!("no policy {other}"),
                },
                max_waiting: number(&words, "queue").unwrap_or(8),
                context: number(&words, "context").unwrap_or(4096),
                slots: number(&words, "slots").unwrap(),
                tree_rows: 64,
                prefix_cache: number(&words, "prefix_cache").unwrap_or(true),
                classes,
            }));
            return String::new();
        }
        let scheduler = self.scheduler.as_mut().expect("config comes first");
        let id = words.get(1).and_then(|name| self.names.get(*name)).copied();
        match words[0] {
            "add" => {
                let id = SequenceId(self.names.len() as u64);
                self.names.insert(words[1].into(), id);
                let text = number::<String>(&words, "text").map_or(id.0, |name| self.names[&name].0);
                self.texts.insert(id, text);
                let prompt: u32 = number(&words, "prompt").unwrap();
                let longest = prompt + number::<u32>(&words, "max").unwrap();
                let root = PrefixRoot::salted(&number::<String>(&words, "salt").unwrap_or_default());
                self.mirror.open(id, root);
                let new = NewSequence {
                    id,
                    tokens: (0..prompt).map(|at| token(text, at)).collect(),
                    limit: number(&words, "limit").unwrap_or(longest),
                    longest,
                    priority: number(&words, "priority").unwrap_or(0),
                    root,
                    settled: number(&words, "settled").unwrap_or(u32::MAX),
                };
                return scheduler.add(new).map_or_else(|e| format!("refused: {e}\n"), |()| String::new());
            }
            "drafts" => drop(self.drafts.insert(id.unwrap(), words[2].parse().unwrap())),
            "accept" => drop(self.accept.insert(id.unwrap(), words[2].parse().unwrap())),
            "hold" => self.held.push(id.unwrap()),
            "go" => self.held.retain(|h| Some(*h) != id),
            "limit" => scheduler.set_limit(id.unwrap(), words[2].parse().unwrap()),
            "settle" => scheduler.settle(id.unwrap(), words[2].parse().unwrap()),
            "rewrite" => {
                let (at, add): (u32, u32) = (number(&words, "at").unwrap(), number(&words, "add").unwrap());
                let ids: Vec<TokenId> = (at..at + add).map(|at| token(99, at)).collect();
                scheduler.rewrite(id.unwrap(), at, &ids);
            }
            "remove" => scheduler.remove(id.unwrap()),
            "table" => return self.mirror.show(scheduler, id.unwrap()),
            "state" => {
                let (running, waiting, pages) = (scheduler.running(), scheduler.waiting(), scheduler.pages());
                let cached =
                    if pages.cached > 0 { format!(" cached={}", pages.cached) } else { String::new() };
                return format!("running={running} waiting={waiting} free={}{cached}\n", pages.free);
            }
            "counters" => {
                let counters = format!("{:?}", scheduler.counters());
                return counters["Counters { ".len()..counters.len() - " }".len()].to_owned() + "\n";
            }
            "plan" => return self.plan(),
            other => panic!("unknown command {other}"),
        }
        String::new()
    }

    fn plan(&mut self) -> String {
        let scheduler = self.scheduler.as_mut().unwrap();
        // Drafts are a text of their own, so that one taken for committed would be noticed.
        let drafts: Vec<TokenId> = (0..64).map(|at| token(98, at)).collect();
        let plan = scheduler.plan(|id| {
            if self.held.contains(&id) {
                return Ahead::Hold;
            }
            Ahead::Go(&drafts[..self.drafts.get(&id).map_or(0, |drafts| *drafts as usize)])
        });
        self.mirror.execute(scheduler, &plan);
        let name = |id| self.names.iter().find(|(_, other)| **other == id).unwrap().0;
        let mut out = String::new();
        for id in &plan.preempted {
            writeln!(out, "{} gives way", name(*id)).unwrap();
        }
        for admitted in plan.admitted.iter().filter(|admitted| admitted.again || admitted.cached > 0) {
            let again = if admitted.again { " again" } else { "" };
            writeln!(out, "{}{again} cached {}", name(admitted.sequence), admitted.cached).unwrap();
        }
        for slice in &plan.slices {
            write!(out, "{} {}..{}", name(slice.sequence), slice.position, slice.position + slice.known)
                .unwrap();
            if slice.drafts > 0 {
                write!(out, " +{}", slice.drafts).unwrap();
            }
            out.push_str(if slice.picks { " pick\n" } else { "\n" });
            let accepted = self.accept.remove(&slice.sequence).unwrap_or(u32::MAX).min(slice.drafts);
            let mut tokens = Vec::new();
            if slice.picks {
                tokens.extend_from_slice(&drafts[..accepted as usize]);
                let at = slice.position + slice.known + accepted;
                tokens.push(token(self.texts[&slice.sequence], at));
            }
            scheduler.commit(slice, accepted, &tokens);
            if slice.drafts > 0 {
                self.drafts.remove(&slice.sequence);
            }
        }
        mirror::audit(scheduler);
        if out.is_empty() { "nothing\n".into() } else { out }
    }
}

#[test]
fn golden_plans() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (mut script, mut rewritten) = (Script::default(), String::new());
        for block in text.split_inclusive("\n\n") {
            let commands = block.split("----").next().unwrap().trim_end();
            let mut printed = String::new();
            for line in commands.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
                printed.push_str(&script.run(line));
            }
            rewritten.push_str(commands);
            rewritten.push('\n');
            if !printed.is_empty() {
                rewritten.push_str("----\n");
                rewritten.push_str(&printed);
            }
            rewritten.push('\n');
        }
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&file, rewritten.trim_end().to_owned() + "\n").unwrap();
            continue;
        }
        assert_eq!(text.trim_end(), rewritten.trim_end(), "{}", file.display());
    }
}
