//! Golden plans (`testdata/*.txt`) and properties. Each file is a script of commands; what follows
//! `----` is what the last command printed:
//!
//! ```text
//! add a prompt=1000 max=10     a sequence; max = tokens it may add
//! drafts a 3                   three drafts are there at the next plan
//! accept a 1                   of which one will hold (default: all)
//! hold a / go a                leave it out of plans / take it in again
//! rewrite a at=12 add=1        the drafter's tail is replaced
//! limit a 20                   the length up to which it may grow
//! remove a
//! plan                         plans, commits; prints `NAME from..to +drafts pick`
//! state                        prints running, waiting and free pages
//! ```
//!
//! `BLESS=1 cargo test -p scheduler` writes what is printed; read the diff before you keep it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Script {
    scheduler: Option<Scheduler>,
    names: BTreeMap<String, SequenceId>,
    drafts: BTreeMap<SequenceId, Vec<TokenId>>,
    accept: BTreeMap<SequenceId, u32>,
    held: Vec<SequenceId>,
}

fn number<T: std::str::FromStr>(words: &[&str], key: &str) -> Option<T> {
    words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

impl Script {
    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "config" {
            let pages = number(&words, "pages").unwrap();
            let class = match number(&words, "window") {
                Some(recent) => HeadClass::Window { sink: 16, recent },
                None => HeadClass::Full,
            };
            self.scheduler = Some(Scheduler::new(Config {
                token_budget: number(&words, "budget").unwrap(),
                max_waiting: number(&words, "queue").unwrap_or(8),
                context: number(&words, "context").unwrap_or(4096),
                slots: number(&words, "slots").unwrap(),
                classes: vec![(class, pages)],
                prefix_cache: true,
            }));
            return String::new();
        }
        let scheduler = self.scheduler.as_mut().expect("config comes first");
        let id = words.get(1).and_then(|name| self.names.get(*name)).copied();
        match words[0] {
            "add" => {
                let id = SequenceId(self.names.len() as u64);
                self.names.insert(words[1].into(), id);
                let prompt: u32 = number(&words, "prompt").unwrap();
                let longest = prompt + number::<u32>(&words, "max").unwrap();
                let new = NewSequence {
                    id,
                    tokens: vec![TokenId(1); prompt as usize],
                    limit: number(&words, "limit").unwrap_or(longest),
                    longest,
                    priority: 0,
                    root: kvcache::PrefixRoot::salted(""),
                    settled: u32::MAX,
                };
                return scheduler.add(new).map_or_else(|e| format!("refused: {e}\n"), |()| String::new());
            }
            "drafts" => {
                self.drafts.insert(id.unwrap(), vec![TokenId(2); words[2].parse().unwrap()]);
            }
            "accept" => {
                self.accept.insert(id.unwrap(), words[2].parse().unwrap());
            }
            "hold" => self.held.push(id.unwrap()),
            "go" => self.held.retain(|h| Some(*h) != id),
            "limit" => scheduler.set_limit(id.unwrap(), words[2].parse().unwrap()),
            "rewrite" => {
                let add: usize = number(&words, "add").unwrap();
                scheduler.rewrite(id.unwrap(), number(&words, "at").unwrap(), &vec![TokenId(3); add]);
            }
            "remove" => scheduler.remove(id.unwrap()),
            "state" => {
                let (running, waiting) = (scheduler.running(), scheduler.waiting());
                return format!("running={running} waiting={waiting} free={}\n", scheduler.free_pages());
            }
            "plan" => return self.plan(),
            other => panic!("unknown command {other}"),
        }
        String::new()
    }

    fn plan(&mut self) -> String {
        let scheduler = self.scheduler.as_mut().unwrap();
        let plan = scheduler.plan(|id| {
            if self.held.contains(&id) {
                return Ahead::Hold;
            }
            Ahead::Go(self.drafts.get(&id).map_or(&[], Vec::as_slice))
        });
        let mut out = String::new();
        for slice in &plan.slices {
            let name = self.names.iter().find(|(_, id)| **id == slice.sequence).unwrap().0;
            write!(out, "{name} {}..{}", slice.position, slice.position + slice.known).unwrap();
            if slice.drafts > 0 {
                write!(out, " +{}", slice.drafts).unwrap();
            }
            out.push_str(if slice.picks { " pick\n" } else { "\n" });
            let accepted = self.accept.remove(&slice.sequence).unwrap_or(u32::MAX).min(slice.drafts);
            let tokens = if slice.picks { vec![TokenId(4); accepted as usize + 1] } else { vec![] };
            scheduler.commit(slice, accepted, &tokens);
            if slice.drafts > 0 {
                self.drafts.remove(&slice.sequence);
            }
        }
        if plan.slices.is_empty() { "nothing\n".into() } else { out }
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
        if option_env!("BLESS").is_some() {
            std::fs::write(&file, rewritten.trim_end().to_owned() + "\n").unwrap();
            continue;
        }
        assert_eq!(text.trim_end(), rewritten.trim_end(), "{}", file.display());
    }
}

proptest! {
    /// Any arrivals, drafts and acceptances: the budget holds, every decode gets its row in every
    /// step, rows are contiguous and start at what is computed, every sequence ends, no page leaks.
    #[test]
    fn plans_keep_their_promises(
        sequences in prop::collection::vec((1u32..200, 1u32..40), 1..12),
        budget in 2u32..64, slots in 1u32..6, choices in prop::collection::vec(0u32..5, 400),
    ) {
        let classes = vec![(HeadClass::Full, 40), (HeadClass::Window { sink: 4, recent: 32 }, 40)];
        let mut scheduler = Scheduler::new(Config { token_budget: budget, max_waiting: 16, context: 4096, slots, classes, prefix_cache: true });
        let mut alive = 0usize;
        for (i, (prompt, max)) in sequences.iter().enumerate() {
            let new = NewSequence {
                id: SequenceId(i as u64), tokens: vec![TokenId(0); *prompt as usize],
                limit: prompt + max, longest: prompt + max, priority: 0, root: kvcache::PrefixRoot::salted(""), settled: u32::MAX,
            };
            scheduler.add(new).unwrap();
            alive += 1;
        }
        let drafts = [TokenId(9); 4];
        let mut choices = choices.into_iter().cycle();
        let mut steps = 0;
        while alive > 0 {
            steps += 1;
            prop_assert!(steps < 20_000, "starved");
            let k = choices.next().unwrap() as usize;
            let due: Vec<SequenceId> = scheduler.running.iter().copied()
                .filter(|id| scheduler.sequences[id].behind() == 1).collect();
            let plan = scheduler.plan(|_| Ahead::Go(&drafts[..k.min(4)]));
            prop_assert!(!plan.slices.is_empty());
            for id in &due {
                prop_assert!(plan.slices.iter().any(|s| s.sequence == *id), "a decode stalled");
            }
            prop_assert!(plan.step.rows.len() as u32 <= budget.max(due.len() as u32 + 1));
            let mut row = 0;
            for slice in &plan.slices {
                prop_assert_eq!(slice.first_row, row);
                row += slice.rows();
                prop_assert_eq!(slice.position, scheduler.sequences[&slice.sequence].computed);
            }
            for slice in plan.slices {
                let accepted = choices.next().unwrap().min(slice.drafts);
                let tokens = if slice.picks { vec![TokenId(1); accepted as usize + 1] } else { vec![] };
                scheduler.commit(&slice, accepted, &tokens);
                let sequence = &scheduler.sequences[&slice.sequence];
                prop_assert!(sequence.len() <= sequence.limit);
                if !sequence.grows() {
                    scheduler.remove(slice.sequence);
                    alive -= 1;
                }
            }
        }
        prop_assert_eq!(scheduler.free_pages(), 40);
        prop_assert_eq!(scheduler.free_slots.len() as u32, slots);
    }
}
