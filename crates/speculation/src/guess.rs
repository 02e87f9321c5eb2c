//! Drafts without a model: from what was said before.

use request::{Source, TokenId};

use crate::history::Match;
use crate::{History, Recycle, Sureness};

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
    pub ids: Vec<TokenId>,
    pub sureness: Sureness,
}

/// Places that are looked at.
const PLACES: usize = 24;

/// What follows the longest of the latest matches of the text's end in the text itself: prompt lookup.
fn ngram(own: &History, text: &[TokenId], most: usize) -> Proposal {
    // Of equally long ones the latest, which comes first.
    let best = own.matches(text, PLACES).reduce(|best, m| if m.length > best.length { m } else { best });
    let Some(best) = best else { return Proposal::default() };
    Proposal {
        ids: (0..most).map_while(|nth| own.after(best, nth)).collect(),
        sureness: sureness(best.length),
    }
}

/// What most often followed the longest matches, in the text itself and in earlier answers
/// (SuffixDecoding, arXiv 2411.04975, over hash chains instead of trees). It ends where the places disagree
/// too much to be likely.
fn suffix(own: &History, answers: &History, text: &[TokenId], most: usize) -> Proposal {
    const UNLIKELY: f64 = 0.25;
    let places = own.matches(text, PLACES).map(|m| (own, m));
    let mut places: Vec<(&History, Match)> =
        places.chain(answers.matches(text, PLACES).map(|m| (answers, m))).collect();
    let Some(longest) = places.iter().map(|(_, m)| m.length).max() else { return Proposal::default() };
    places.retain(|(_, m)| 2 * m.length > longest);
    let mut ids = Vec::with_capacity(most);
    let mut likely = 1.0;
    while ids.len() < most {
        let next = |(history, found): &(&History, Match)| history.after(*found, ids.len());
        let votes: Vec<(Option<TokenId>, f64)> =
            places.iter().map(|place| (next(place), f64::from(place.1.length))).collect();
        let of = |id: TokenId| votes.iter().filter(|(v, _)| *v == Some(id)).map(|(_, w)| w).sum::<f64>();
        let all: f64 = votes.iter().filter(|(v, _)| v.is_some()).map(|(_, w)| w).sum();
        let mut best: Option<(TokenId, f64)> = None;
        for id in votes.iter().filter_map(|(v, _)| *v) {
            if best.is_none_or(|(_, most)| of(id) > most) {
                best = Some((id, of(id)));
            }
        }
        let Some((id, weight)) = best else { break };
        likely *= weight / all;
        if likely < UNLIKELY {
            break;
        }
        places.retain(|place| next(place) == Some(id));
        ids.push(id);
    }
    Proposal { ids, sureness: sureness(longest) }
}

/// The chain of the latest followers of the text's last token.
fn recycled(recycle: &Recycle, text: &[TokenId], most: usize) -> Proposal {
    let Some(last) = text.last() else { return Proposal::default() };
    Proposal { ids: recycle.propose(*last, most), sureness: 0 }
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
pub fn propose(source: Source, own: &History, library: &Library, text: &[TokenId], most: usize) -> Proposal {
    match source {
        Source::Ngram => ngram(own, text, most),
        Source::Suffix => suffix(own, &library.answers, text, most),
        Source::Recycle => recycled(&library.recycle, text, most),
        Source::Drafter | Source::Prediction => Proposal::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
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
            assert_eq!((found.ids, found.sureness), (ids(expected), *sure), "{why}");
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
        let found = suffix(&history(&text), &answers, &ids(&text), 8);
        assert_eq!(found.ids, ids(&[3, 5]), "3 followed three times of four, then 5 twice of three");
        // A longer match outweighs what is more frequent.
        answers.extend(&ids(&[0, 9, 7, 1, 2, 6, 6]));
        answers.border();
        let long = [0, 9, 7, 1, 2];
        assert_eq!(suffix(&history(&long), &answers, &ids(&long), 8).ids, ids(&[6, 6]));
        assert_eq!(suffix(&history(&[1]), &answers, &ids(&[1]), 8), Proposal::default());
    }

    /// The text that repeats itself is foretold by all; each says nothing about what it never saw.
    #[test]
    fn every_source_knows_what_repeats() {
        let text: Vec<u32> = (0..60).map(|i| i % 7).collect();
        let mut library = Library::new(10);
        ids(&text).windows(2).for_each(|w| library.recycle.observe(w[0], w[1]));
        for source in [Source::Ngram, Source::Suffix, Source::Recycle] {
            let found = propose(source, &history(&text), &library, &ids(&text), 5);
            let expected: Vec<u32> = (60..65).map(|i| i % 7).collect();
            assert_eq!(found.ids, ids(&expected), "{source:?}");
            let nothing = propose(source, &history(&[8, 9]), &library, &ids(&[8, 9]), 5);
            assert_eq!(nothing.ids, [], "{source:?}");
        }
        for source in [Source::Drafter, Source::Prediction] {
            assert_eq!(propose(source, &history(&text), &library, &ids(&text), 5).ids, []);
        }
    }
}
