//! Drafts without a model: from what was said before.

use request::{Source, TokenId};

use crate::history::Match;
use crate::{History, Recycle, Sureness, Tree};

/// What the sequences of one tenant leave for later ones. Nothing of it can change a text; how fast one comes
/// tells what is in it, so tenants do not share it.
#[derive(Clone, Debug)]
pub struct Library {
    /// Answers, in bounded memory.
    pub answers: History,
    pub recycle: Recycle,
}

impl Library {
    /// Tokens of answers that are kept: 8 bytes each.
    const ANSWERS: u32 = 1 << 18;

    pub fn new(vocab_size: u32) -> Self {
        Self { answers: History::new(Self::ANSWERS), recycle: Recycle::new(vocab_size) }
    }

    /// An answer is complete.
    pub fn keep(&mut self, answer: &[TokenId]) {
        self.answers.extend(answer);
        self.answers.border();
    }
}

/// Drafts of one source for the places after a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// The likelier ones first, as far as parents allow it.
    pub drafts: Tree,
    /// By draft: which of the beliefs in its source it falls under.
    pub sureness: Vec<Sureness>,
}

impl Proposal {
    pub fn chain(ids: Vec<TokenId>, sureness: Sureness) -> Self {
        Self { sureness: vec![sureness; ids.len()], drafts: Tree::chain(ids) }
    }

    /// The first drafts of it.
    pub fn first(&self, drafts: usize) -> Self {
        let mut first = self.clone();
        first.drafts.truncate(drafts);
        first.sureness.truncate(drafts);
        first
    }
}

/// What a source is asked for.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Drafts in all.
    pub most: usize,
    /// What is believed of a sureness at a depth; `None`: no forks, the likeliest chain.
    pub forks: Option<&'a dyn Fn(Source, Sureness, usize) -> f64>,
}

impl std::fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("most", &self.most).field("forks", &self.forks.is_some()).finish()
    }
}

/// Places that are looked at.
const PLACES: usize = 24;

/// What follows the longest of the latest matches of the text's end in the text itself: prompt lookup.
fn ngram(own: &History, text: &[TokenId], most: usize) -> Proposal {
    // Of equally long ones the latest, which comes first.
    let best = own.matches(text, PLACES).reduce(|best, m| if m.length > best.length { m } else { best });
    let Some(best) = best else { return Proposal::default() };
    Proposal::chain((0..most).map_while(|nth| own.after(best, nth)).collect(), sureness(best.length))
}

/// What most often followed the longest matches, in the text itself and in earlier answers
/// (SuffixDecoding, arXiv 2411.04975, over hash chains instead of trees). It ends where the places disagree
/// too much to be likely; with forks it goes on with what some of them say.
fn suffix(own: &History, answers: &History, text: &[TokenId], asked: Asked<'_>) -> Proposal {
    let places = own.matches(text, PLACES).map(|m| (own, m));
    let mut places: Vec<Place<'_>> =
        places.chain(answers.matches(text, PLACES).map(|m| (answers, m))).collect();
    let Some(longest) = places.iter().map(|(_, m)| m.length).max() else { return Proposal::default() };
    places.retain(|(_, m)| 2 * m.length > longest);
    let (sure, forks) = (sureness(longest), asked.forks.is_some());
    let (mut ids, mut parents, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    let mut open = Vec::new();
    grow(&mut open, &places, None, (1.0, 0), (sure, forks));
    while ids.len() < asked.most {
        let best = (0..open.len()).reduce(|a, b| if open[b].likely > open[a].likely { b } else { a });
        let Some(next) = best.map(|best| open.remove(best)) else { break };
        let node = ids.len() as u32;
        ids.push(next.id);
        parents.push(next.parent);
        classes.push(next.class);
        if !forks || next.depth + 1 < Tree::DEEPEST {
            grow(&mut open, &next.places, Some(node), (next.likely, next.depth + 1), (sure, forks));
        }
    }
    Proposal { drafts: Tree::grown(ids, parents), sureness: classes }
}

/// A text and a place in it that looks like the end of another.
type Place<'a> = (&'a History, Match);

/// Sureness of what is not the likeliest of its siblings, beyond that of the match.
const SECOND: Sureness = 4;

/// A draft that the tree of [`suffix`] could have next.
struct Branch<'a> {
    id: TokenId,
    likely: f64,
    /// Those that say so.
    places: Vec<Place<'a>>,
    parent: Option<u32>,
    depth: usize,
    class: Sureness,
}

/// Adds what the places say at a depth: the heaviest, and with forks the others. What is too unlikely is left out.
fn grow<'a>(
    open: &mut Vec<Branch<'a>>,
    places: &[Place<'a>],
    parent: Option<u32>,
    (before, depth): (f64, usize),
    (sure, forks): (Sureness, bool),
) {
    let unlikely = if forks { 0.1 } else { 0.25 };
    let branches = branches(places, depth);
    let most = if forks { branches.len() } else { 1 };
    for (rank, (id, share, places)) in branches.into_iter().take(most).enumerate() {
        let (likely, class) = (before * share, if rank == 0 { sure } else { sure + SECOND });
        if likely >= unlikely {
            open.push(Branch { id, likely, places, parent, depth, class });
        }
    }
}

/// What comes `nth` after the places, the heaviest first: the token, its share of the weight, and who says so.
fn branches<'a>(places: &[Place<'a>], nth: usize) -> Vec<(TokenId, f64, Vec<Place<'a>>)> {
    let mut found: Vec<(TokenId, f64, Vec<Place<'a>>)> = Vec::new();
    let mut all = 0.0;
    for (history, place) in places {
        let Some(id) = history.after(*place, nth) else { continue };
        let weight = f64::from(place.length);
        all += weight;
        match found.iter_mut().find(|(other, ..)| *other == id) {
            Some((_, sum, says)) => {
                *sum += weight;
                says.push((history, *place));
            }
            None => found.push((id, weight, vec![(history, *place)])),
        }
    }
    // Of equals the one that was found first.
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found.iter_mut().for_each(|(_, share, _)| *share /= all);
    found
}

/// What was drawn last after the text's last token, and so on; a tree of the last few with forks.
fn recycled(recycle: &Recycle, text: &[TokenId], asked: Asked<'_>) -> Proposal {
    let Some(last) = text.last() else { return Proposal::default() };
    let Some(chance) = asked.forks else {
        return Proposal::chain(recycle.propose(*last, asked.most), 0);
    };
    let chance = |rank, depth| chance(Source::Recycle, rank, depth);
    let (drafts, sureness) = recycle.tree(*last, asked.most, chance);
    Proposal { drafts, sureness }
}

fn sureness(length: u32) -> Sureness {
    match length {
        0..4 => 0,
        4..8 => 1,
        8..16 => 2,
        _ => 3,
    }
}

/// A source that needs no model, by its name.
pub fn propose(
    source: Source,
    own: &History,
    library: &Library,
    text: &[TokenId],
    asked: Asked<'_>,
) -> Proposal {
    match source {
        Source::Ngram => ngram(own, text, asked.most),
        Source::Suffix => suffix(own, &library.answers, text, asked),
        Source::Recycle => recycled(&library.recycle, text, asked),
        Source::Drafter | Source::Prediction | Source::Del | Source::Window => Proposal::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    fn chain(most: usize) -> Asked<'static> {
        Asked { most, forks: None }
    }

    fn history(raw: &[u32]) -> History {
        let mut history = History::new(1024);
        history.extend(&ids(raw));
        history
    }

    #[test]
    fn ngrams_take_the_longest_and_then_the_latest_match() {
        type Case<'a> = (&'a [u32], &'a [u32], Sureness, &'a str);
        let cases: &[Case<'_>] = &[
            (&[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], &[9, 2, 3], 0, "the longer one, though earlier"),
            (&[2, 3, 9, 2, 3, 8, 7, 2, 3], &[8, 7, 2], 0, "the latest of equals"),
            (&[1, 2, 3, 4], &[], 0, "nothing came before"),
            (&[5], &[], 0, "too short"),
            (&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4], &[5, 6, 7], 1, "four"),
            (&[6, 6, 6, 6], &[6], 0, "itself, as far as it goes"),
        ];
        for (text, expected, sure, why) in cases {
            let found = ngram(&history(text), &ids(text), 3);
            assert_eq!(found, Proposal::chain(ids(expected), *sure), "{why}");
        }
    }

    #[test]
    fn suffixes_take_what_followed_most_often() {
        let text = [7, 1, 2];
        let mut answers = History::new(1024);
        for answer in [&[1, 2, 3, 4][..], &[1, 2, 3, 5], &[1, 2, 3, 5], &[1, 2, 6]] {
            answers.extend(&ids(answer));
            answers.border();
        }
        let found = suffix(&history(&text), &answers, &ids(&text), chain(8));
        assert_eq!(found.drafts.ids(), ids(&[3, 5]), "3 followed three times of four, then 5 twice of three");
        // Forks: 6 followed once of four, 4 once of three behind 3.
        let forked = Asked { most: 8, forks: Some(&|_, _, _| 0.5) };
        let found = suffix(&history(&text), &answers, &ids(&text), forked);
        assert_eq!(found.drafts.ids(), ids(&[3, 5, 6, 4]));
        assert_eq!(found.drafts.parents(), [None, Some(0), None, Some(0)]);
        assert_eq!(found.sureness, [0, 0, 4, 4]);
        // A longer match outweighs what is more frequent.
        answers.extend(&ids(&[0, 9, 7, 1, 2, 6, 6]));
        answers.border();
        let long = [0, 9, 7, 1, 2];
        assert_eq!(suffix(&history(&long), &answers, &ids(&long), chain(8)).drafts.ids(), ids(&[6, 6]));
        assert_eq!(suffix(&history(&[1]), &answers, &ids(&[1]), chain(8)), Proposal::default());
    }

    /// The text that repeats itself is foretold by all; each says nothing about what it never saw.
    #[test]
    fn every_source_knows_what_repeats() {
        let text: Vec<u32> = (0..60).map(|i| i % 7).collect();
        let mut library = Library::new(10);
        ids(&text).windows(2).for_each(|w| library.recycle.observe(w[0], w[1]));
        for source in [Source::Ngram, Source::Suffix, Source::Recycle] {
            let expected: Vec<u32> = (60..65).map(|i| i % 7).collect();
            for asked in [chain(5), Asked { most: 5, forks: Some(&|_, _, _| 0.5) }] {
                let found = propose(source, &history(&text), &library, &ids(&text), asked);
                assert_eq!(found.drafts.ids(), ids(&expected), "{source:?}");
                assert!(found.drafts.is_chain());
                let nothing = propose(source, &history(&[8, 9]), &library, &ids(&[8, 9]), asked);
                assert_eq!(nothing, Proposal::default(), "{source:?}");
            }
        }
        for source in [Source::Drafter, Source::Prediction] {
            let found = propose(source, &history(&text), &library, &ids(&text), chain(5));
            assert_eq!(found, Proposal::default());
        }
    }
}
