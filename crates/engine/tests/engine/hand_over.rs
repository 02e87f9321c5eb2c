//! Pages of one engine in another: a hit like any other, or nothing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lanes::open;
use crate::link::{Kept, MODEL_SEED, VOCAB, Watched, request};
use engine::{
    Command, Engine, Model, Outcome, PageIn, PageOut, PageRefused, PrefillEvent, PrefillOpen, Room, Settings,
    TargetEvent, ToyModel,
};
use kvcache::{HeadClass, PageHash, PrefixChain, PrefixRoot};
use request::{Sampling, Speculation, Strategy, TokenId};
use scheduler::SequenceId;

fn engine(prefix_cache: bool, windowed: bool) -> Engine<ToyModel> {
    let mut spec = ToyModel::spec(VOCAB, 512, 4, 64);
    if windowed {
        spec.classes.push((HeadClass::Window { sink: 4, recent: 20 }, 64));
    }
    let settings = Settings { token_budget: 24, prefix_cache, ..Settings::default() };
    Engine::new(ToyModel::new(spec, MODEL_SEED), settings)
}

fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| (i * i + i / 7) % VOCAB).collect()
}

fn prefill(engine: &mut Engine<ToyModel>, id: u64, prompt: &[u32]) -> Kept<PrefillEvent> {
    let outlet = Kept::new();
    let open = PrefillOpen {
        sequence: SequenceId(id),
        prompt: prompt.iter().copied().map(TokenId).collect(),
        priority: 0,
        cache_salt: String::new(),
        outlet: Box::new(outlet.share()),
        admitted: Box::new(|admitted| admitted.unwrap()),
    };
    engine.command(Duration::ZERO, Command::Prefill(Box::new(open)));
    outlet
}

/// Everything that goes out, and how many events brought it.
fn pages(engine: &mut Engine<ToyModel>, outlet: &Kept<PrefillEvent>) -> (Vec<PageOut>, usize) {
    let (mut out, mut events) = (Vec::new(), 0);
    for _ in 0..1000 {
        engine.step(Duration::ZERO);
        for event in outlet.take() {
            match event {
                PrefillEvent::Pages(pages) => {
                    out.extend(pages);
                    events += 1;
                }
                PrefillEvent::Done => return (out, events),
                PrefillEvent::Failed => panic!("it failed"),
            }
        }
    }
    panic!("it never ends")
}

fn hashes(prompt: &[u32]) -> Vec<PageHash> {
    let tokens: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
    PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec()
}

fn hand_in<M: Model>(
    engine: &mut Engine<M>,
    id: u64,
    hashes: &[PageHash],
    pages: &[PageOut],
) -> Vec<Result<(), PageRefused>> {
    let answers = Arc::new(Mutex::new(Vec::new()));
    for of_index in pages.chunk_by(|a, b| a.index == b.index) {
        let told = answers.clone();
        let page = PageIn {
            sequence: SequenceId(id),
            index: of_index[0].index,
            hash: hashes[of_index[0].index as usize],
            classes: of_index.iter().map(|page| (page.class, page.layers.clone())).collect(),
            taken: Box::new(move |taken| told.lock().unwrap().push(taken)),
        };
        engine.command(Duration::ZERO, Command::Page(Box::new(page)));
    }
    std::mem::take(&mut *answers.lock().unwrap())
}

/// The text, and how much of the prompt was a hit.
fn answer<M: Model>(engine: &mut Engine<M>, id: u64, prompt: &[u32]) -> (Vec<TokenId>, u32) {
    let asked = request(prompt, 12, Sampling::GREEDY, Speculation::default());
    let (outlet, admitted) = open(engine, id, asked);
    admitted.unwrap();
    let (mut text, mut hit) = (Vec::new(), 0);
    for _ in 0..200 {
        engine.step(Duration::ZERO);
        for event in outlet.take() {
            match event {
                TargetEvent::Started { cached } => hit = cached,
                TargetEvent::Committed { frame, .. } => text.extend(frame.ids),
                TargetEvent::Ended(_) => return (text, hit),
                TargetEvent::Ask { .. } | TargetEvent::Again(_) => {}
            }
        }
    }
    panic!("it never ends")
}

#[test]
fn a_text_does_not_depend_on_who_computed_the_prompt() {
    for (tokens, windowed) in [(17, false), (100, false), (300, false), (300, true), (161, true)] {
        for prefix_cache in [true, false] {
            let prompt = prompt(tokens);
            let (plain, hit) = answer(&mut engine(prefix_cache, windowed), 1, &prompt);
            assert_eq!(hit, 0);
            let mut there = engine(prefix_cache, windowed);
            let free = there.scheduler().free_pages();
            let outlet = prefill(&mut there, 1, &prompt);
            let (pages, events) = pages(&mut there, &outlet);
            assert!(events as u32 >= tokens / 48, "pages go out behind each chunk: {events} events");
            assert_eq!((there.is_empty(), there.scheduler().free_pages()), (true, free));
            let mut here = engine(prefix_cache, windowed);
            let taken = hand_in(&mut here, 7, &hashes(&prompt), &pages);
            assert!(taken.iter().all(Result::is_ok), "{taken:?}");
            let (text, hit) = answer(&mut here, 7, &prompt);
            assert_eq!(text, plain, "{tokens} tokens, windowed {windowed}, prefix cache {prefix_cache}");
            assert_eq!(hit, (tokens - 1) / 16 * 16);
            assert_eq!(here.scheduler().free_pages(), free, "nothing is held any more");
        }
    }
}

/// What a step kept of a tree is copied into its page by the next one. A sequence that ended meanwhile has given that page
/// back, and one that comes in from elsewhere may be written over it: the copy must not come after.
#[test]
fn pages_that_come_in_are_not_written_over_by_what_was_kept_of_a_tree() {
    let asked = prompt(300);
    let (plain, _) = answer(&mut engine(true, false), 1, &asked);
    let mut there = engine(true, false);
    let outlet = prefill(&mut there, 1, &asked);
    let (pages, _) = pages(&mut there, &outlet);
    // Nothing is free beside what comes in: it takes the pages of the text before.
    let spec = ToyModel::spec(VOCAB, 512, 1, 22);
    let mut later = 0;
    for round in 0..40 {
        let chosen = Arc::default();
        let toy = Watched::new(ToyModel::new(spec.clone(), MODEL_SEED), &chosen);
        let mut here = Engine::new(toy, Settings::default());
        let mut trees = request(&prompt(20 + round), 60 + round, Sampling::GREEDY, Speculation::default());
        trees.speculation.strategy = Strategy::Recycle;
        trees.limits.stop_ids.clear();
        let (outlet, admitted) = open(&mut here, 1, trees);
        admitted.unwrap();
        while !outlet.take().iter().any(|event| matches!(event, TargetEvent::Ended(_))) {
            here.step(Duration::ZERO);
        }
        later += chosen.load(Ordering::Relaxed);
        let taken = hand_in(&mut here, 2, &hashes(&asked), &pages);
        assert!(taken.iter().all(Result::is_ok), "{taken:?}");
        let (text, hit) = answer(&mut here, 2, &asked);
        assert_eq!((text, hit), (plain.clone(), 288), "round {round}");
    }
    assert!(later > 20, "drafts that stood and were not the first of their siblings: {later}");
}

/// Whatever is missing at the end is computed.
#[test]
fn half_of_the_pages_is_half_a_hit() {
    let prompt = prompt(200);
    let (plain, _) = answer(&mut engine(true, false), 1, &prompt);
    let mut there = engine(true, false);
    let outlet = prefill(&mut there, 1, &prompt);
    let (pages, _) = pages(&mut there, &outlet);
    let mut here = engine(true, false);
    // A gap: what comes behind it is of no use.
    let some: Vec<PageOut> = pages.iter().filter(|page| page.index != 5).cloned().collect();
    hand_in(&mut here, 7, &hashes(&prompt), &some);
    assert_eq!(answer(&mut here, 7, &prompt), (plain, 5 * 16));
}

/// A prompt that the rank has in its cache goes out too, in pieces.
#[test]
fn a_cached_prompt_is_handed_over_again() {
    let prompt = prompt(400);
    let mut there = engine(true, false);
    let first = prefill(&mut there, 1, &prompt);
    let (all, _) = pages(&mut there, &first);
    let second = prefill(&mut there, 2, &prompt);
    let (again, events) = pages(&mut there, &second);
    assert_eq!((all, events), (again, 2));
}

#[test]
fn a_reader_without_room_gets_nothing_and_one_that_left_ends_it() {
    let prompt = prompt(200);
    let mut there = engine(true, false);
    let outlet = prefill(&mut there, 1, &prompt);
    *outlet.room.lock().unwrap() = Room::Full;
    for _ in 0..20 {
        there.step(Duration::ZERO);
        assert!(outlet.take().is_empty());
    }
    *outlet.room.lock().unwrap() = Room::Gone;
    assert_eq!(there.step(Duration::ZERO), Outcome::Idle { until: None });
    assert!(there.is_empty());
}

#[test]
fn what_comes_late_or_is_no_page_is_refused() {
    let prompt = prompt(100);
    let mut there = engine(true, false);
    let outlet = prefill(&mut there, 1, &prompt);
    let (pages, _) = pages(&mut there, &outlet);
    let mut here = engine(true, false);
    let free = here.scheduler().free_pages();
    let mut short = pages[..1].to_vec();
    short[0].layers[1].pop();
    let mut single = pages[..1].to_vec();
    single[0].layers.pop();
    for bad in [short, single] {
        let refused = hand_in(&mut here, 7, &hashes(&prompt), &bad);
        assert!(matches!(refused[..], [Err(PageRefused::Model(_))]), "{refused:?}");
    }
    assert_eq!(here.scheduler().free_pages(), free);
    hand_in(&mut here, 7, &hashes(&prompt), &pages[..2]);
    assert_eq!(here.scheduler().free_pages(), free - 2);
    // The request never comes.
    here.command(Duration::ZERO, Command::Cancel(SequenceId(7)));
    assert_eq!(here.scheduler().free_pages(), free);
    let (_, admitted) = open(&mut here, 8, request(&prompt, 12, Sampling::GREEDY, Speculation::default()));
    admitted.unwrap();
    let late = hand_in(&mut here, 8, &hashes(&prompt), &pages[..1]);
    assert_eq!(late, [Err(PageRefused::Late)]);
}
