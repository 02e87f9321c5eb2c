//! The target's side: drafts that arrived and fit.

use request::TokenId;
use sampling::Distribution;

use crate::PrefixHashes;

/// A frame of draft tokens: `ids[0]` is for position `at`; `prefix_hash` names all tokens before it,
/// the drafter's unconfirmed ones included.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafts {
    pub at: u32,
    pub prefix_hash: u64,
    pub ids: Vec<TokenId>,
    /// What each id was drawn from (rejection rule): one per id, or none.
    pub q: Vec<Distribution>,
}

/// Why a frame (or the rest of it) was not taken. None of these is an error: the next step is a
/// plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// It starts beyond everything known here.
    Gap,
    /// Its past is not ours.
    Prefix,
    /// It disagrees with tokens committed meanwhile.
    Stale,
    /// Everything in it is committed already.
    Late,
    /// It holds an id outside the vocabulary: the drafter is broken or lies.
    Vocabulary,
}

/// Draft tokens that were not taken, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    pub gap: u32,
    pub prefix: u32,
    pub stale: u32,
    pub late: u32,
    pub vocabulary: u32,
}

impl Drops {
    pub fn count(&mut self, reason: Dropped, tokens: usize) {
        let counter = match reason {
            Dropped::Gap => &mut self.gap,
            Dropped::Prefix => &mut self.prefix,
            Dropped::Stale => &mut self.stale,
            Dropped::Late => &mut self.late,
            Dropped::Vocabulary => &mut self.vocabulary,
        };
        *counter = counter.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
    }
}

/// Committed tokens and the drafts pending after them, as seen by the target.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Of committed + pending.
    hashes: PrefixHashes,
    committed: u32,
    pending: Vec<TokenId>,
    /// One per pending draft; `None` when its drafter sent none.
    laws: Vec<Option<Distribution>>,
    vocab_size: u32,
    longest: usize,
}

impl Tail {
    /// `known`: prompt and committed output. At most `longest` drafts are kept pending.
    pub fn new(known: &[TokenId], vocab_size: u32, longest: usize) -> Self {
        Self {
            hashes: PrefixHashes::new(known),
            committed: known.len() as u32,
            pending: Vec::new(),
            laws: Vec::new(),
            vocab_size,
            longest,
        }
    }

    /// Drafts for the places right after the committed tokens.
    pub fn pending(&self) -> &[TokenId] {
        &self.pending
    }

    /// What the pending draft at this depth was drawn from.
    pub fn law(&self, depth: usize) -> Option<&Distribution> {
        self.laws.get(depth)?.as_ref()
    }

    /// Hash of the committed tokens.
    pub fn committed_hash(&self) -> u64 {
        self.hashes.at(self.committed).unwrap_or_default()
    }

    /// Hash of the first `length` tokens, committed or pending.
    pub fn hash_at(&self, length: u32) -> Option<u64> {
        self.hashes.at(length)
    }

    /// Takes what fits of a frame: tokens committed meanwhile are compared and stripped, the rest
    /// replaces what was pending from its place on. `committed` are the sequence's tokens. Returns
    /// how many drafts were taken; a frame that brings nothing new is `Late`.
    pub fn offer(&mut self, committed: &[TokenId], drafts: &Drafts) -> Result<usize, Dropped> {
        debug_assert_eq!(committed.len() as u32, self.committed, "the tail follows the sequence");
        if drafts.ids.iter().any(|id| id.0 >= self.vocab_size) {
            return Err(Dropped::Vocabulary);
        }
        let ours = self.hashes.at(drafts.at).ok_or(Dropped::Gap)?;
        if ours != drafts.prefix_hash {
            return Err(Dropped::Prefix);
        }
        let past = committed.get(drafts.at as usize..).unwrap_or_default();
        let shared = past.len().min(drafts.ids.len());
        if past[..shared] != drafts.ids[..shared] {
            return Err(Dropped::Stale);
        }
        let fresh = &drafts.ids[shared..];
        if fresh.is_empty() {
            return Err(Dropped::Late);
        }
        let kept = drafts.at.saturating_sub(self.committed) as usize;
        self.pending.truncate(kept);
        let room = self.longest.saturating_sub(kept);
        self.pending.extend(fresh.iter().take(room));
        self.laws.truncate(kept);
        // Laws for some ids only would be laws of nobody knows which.
        let laws = if drafts.q.len() == drafts.ids.len() { &drafts.q[shared..] } else { &[] };
        self.laws.extend((0..fresh.len().min(room)).map(|i| laws.get(i).cloned()));
        self.hashes.truncate(self.committed + kept as u32);
        self.hashes.extend(&self.pending[kept..]);
        Ok(fresh.len().min(room))
    }

    /// The sequence committed `ids`. Pending drafts that they confirm move on, the rest of a
    /// disagreeing tail is dropped; returns how many were dropped.
    pub fn commit(&mut self, ids: &[TokenId]) -> usize {
        let same = self.pending.iter().zip(ids).take_while(|(draft, id)| draft == id).count();
        let agrees = same == ids.len().min(self.pending.len());
        let dropped = if agrees { 0 } else { self.pending.len() - same };
        let gone = if agrees { same } else { self.pending.len() };
        self.pending.drain(..gone);
        self.laws.drain(..gone);
        self.hashes.truncate(self.committed + same as u32);
        self.hashes.extend(&ids[same..]);
        self.committed += ids.len() as u32;
        if same == ids.len() {
            self.hashes.extend(&self.pending);
        } else {
            self.pending.clear();
            self.laws.clear();
        }
        dropped
    }

    /// Forgets pending drafts (the drafter is gone or another one took over).
    pub fn clear(&mut self) -> usize {
        self.hashes.truncate(self.committed);
        self.laws.clear();
        std::mem::take(&mut self.pending).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    fn frame(past: &[u32], drafts: &[u32]) -> Drafts {
        let prefix_hash = PrefixHashes::new(&ids(past)).last();
        Drafts { at: past.len() as u32, prefix_hash, ids: ids(drafts), q: Vec::new() }
    }

    /// One committed sequence 1 2 3 with 4 5 pending, against every kind of frame.
    #[test]
    fn frames_are_taken_or_dropped_by_reason() {
        let committed = ids(&[1, 2, 3]);
        type Case<'a> = (&'a str, Drafts, Result<usize, Dropped>, &'a [u32]);
        let cases: &[Case<'_>] = &[
            ("right after the committed", frame(&[1, 2, 3], &[4, 6]), Ok(2), &[4, 6]),
            ("after the pending", frame(&[1, 2, 3, 4, 5], &[6]), Ok(1), &[4, 5, 6]),
            ("replaces from the middle", frame(&[1, 2, 3, 4], &[7, 8]), Ok(2), &[4, 7, 8]),
            ("overlaps the committed", frame(&[1], &[2, 3, 9]), Ok(1), &[9]),
            ("all committed already", frame(&[1], &[2, 3]), Err(Dropped::Late), &[4, 5]),
            ("empty", frame(&[1, 2, 3], &[]), Err(Dropped::Late), &[4, 5]),
            ("disagrees with the committed", frame(&[1], &[9, 3, 4]), Err(Dropped::Stale), &[4, 5]),
            ("beyond the pending", frame(&[1, 2, 3, 4, 5, 6], &[7]), Err(Dropped::Gap), &[4, 5]),
            ("another past", frame(&[1, 2, 9], &[4]), Err(Dropped::Prefix), &[4, 5]),
            ("outside the vocabulary", frame(&[1, 2, 3], &[100]), Err(Dropped::Vocabulary), &[4, 5]),
            ("longer than is kept", frame(&[1, 2, 3], &[5, 6, 7, 8, 9]), Ok(4), &[5, 6, 7, 8]),
        ];
        for (name, drafts, expected, pending) in cases {
            let mut tail = Tail::new(&committed, 100, 4);
            tail.offer(&committed, &frame(&[1, 2, 3], &[4, 5])).unwrap();
            assert_eq!(tail.offer(&committed, drafts), *expected, "{name}");
            assert_eq!(tail.pending(), ids(pending), "{name}");
            assert_eq!(tail.hashes, PrefixHashes::new(&[committed.clone(), ids(pending)].concat()), "{name}");
        }
    }

    #[test]
    fn commits_confirm_or_clear_the_pending() {
        for (committed, pending_after, dropped) in
            [(&[4][..], &[5, 6][..], 0), (&[4, 5, 6, 7], &[], 0), (&[4, 9], &[], 2), (&[8], &[], 3)]
        {
            let known = ids(&[1, 2, 3]);
            let mut tail = Tail::new(&known, 100, 8);
            tail.offer(&known, &frame(&[1, 2, 3], &[4, 5, 6])).unwrap();
            assert_eq!(tail.commit(&ids(committed)), dropped, "{committed:?}");
            assert_eq!(tail.pending(), ids(pending_after), "{committed:?}");
            let all = [known, ids(committed), ids(pending_after)].concat();
            assert_eq!(tail.hashes, PrefixHashes::new(&all));
            assert_eq!(tail.committed_hash(), PrefixHashes::new(&all[..3 + committed.len()]).last());
        }
    }

    proptest! {
        /// Whatever frames and commits come, the tail's hashes name committed + pending.
        #[test]
        fn hashes_always_name_the_tokens(
            moves in prop::collection::vec((0u32..12, prop::collection::vec(0u32..3, 0..6), any::<bool>()), 1..40)
        ) {
            let mut committed = ids(&[0]);
            let mut tail = Tail::new(&committed, 3, 5);
            for (at, raw, is_commit) in moves {
                if is_commit {
                    tail.commit(&ids(&raw));
                    committed.extend(ids(&raw));
                } else {
                    let all = [committed.clone(), tail.pending().to_vec()].concat();
                    let at = (at as usize).min(all.len());
                    let hash = PrefixHashes::new(&all[..at]).last();
                    // Each draft's law names the draft alone, so a law in the wrong place is seen.
                    let q = raw.iter().map(|id| Distribution::new(vec![(TokenId(*id), 1.0)]).unwrap()).collect();
                    let frame = Drafts { at: at as u32, prefix_hash: hash, ids: ids(&raw), q };
                    let _ = tail.offer(&committed, &frame);
                }
                prop_assert!(tail.pending().len() <= 5);
                prop_assert_eq!(tail.laws.len(), tail.pending().len());
                for (depth, id) in tail.pending().iter().enumerate() {
                    prop_assert_eq!(tail.law(depth).map(|q| q.entries()[0].0), Some(*id));
                }
                let all = [committed.clone(), tail.pending().to_vec()].concat();
                prop_assert_eq!(&tail.hashes, &PrefixHashes::new(&all));
            }
        }
    }
}
