//! Tokens that came, and where each short run of them came before.

use request::TokenId;

/// Tokens in a row by which a place is found again.
const ANCHOR: usize = 2;
/// How far back a match is measured.
const LONGEST: usize = 32;
/// Between two texts; no vocabulary is so large.
const BORDER: TokenId = TokenId(u32::MAX);
const NOWHERE: u32 = u32::MAX;

/// A text, or several, in bounded memory: hash chains over a ring of tokens, as LZ77 finds its matches. The
/// oldest tokens make room for new ones.
#[derive(Clone, Debug)]
pub struct History {
    tokens: Vec<TokenId>,
    /// For each place, where the anchor that ends there came before.
    before: Vec<u32>,
    /// By hash of an anchor: the place where it ended last.
    latest: Vec<u32>,
    /// Most tokens kept, a power of two.
    capacity: u32,
    /// Tokens ever pushed.
    length: u32,
}

/// A place where the end of a text came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// What follows it begins here.
    at: u32,
    /// Tokens before `at` that agree, at most 32.
    pub length: u32,
}

impl History {
    /// Keeps the last `capacity` tokens (rounded up to a power of two, at most 2^24): 8 bytes a token, and 4
    /// for each four of them.
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity.clamp(64, 1 << 24).next_power_of_two();
        let latest = vec![NOWHERE; (capacity / 4) as usize];
        Self { tokens: Vec::new(), before: Vec::new(), latest, capacity, length: 0 }
    }

    /// Tokens ever pushed.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn extend(&mut self, tokens: &[TokenId]) {
        for &token in tokens {
            self.push(token);
        }
    }

    /// What follows is another text: no match reaches across.
    pub fn border(&mut self) {
        self.push(BORDER);
    }

    fn push(&mut self, token: TokenId) {
        // Places are 32 bits; after 4 billion tokens it starts over.
        if self.length == NOWHERE {
            *self = Self::new(self.capacity);
        }
        let at = self.length;
        let index = self.index(at);
        if index == self.tokens.len() {
            self.tokens.push(token);
            self.before.push(NOWHERE);
        } else {
            self.tokens[index] = token;
        }
        self.length += 1;
        let last = self.get(at.wrapping_sub(1));
        self.before[index] = match last {
            Some(last) if last != BORDER && token != BORDER => {
                let slot = self.slot([last, token]);
                std::mem::replace(&mut self.latest[slot], at)
            }
            _ => NOWHERE,
        };
    }

    /// Up to `most` places, the latest first, where `text`'s last tokens came before and something follows.
    pub fn matches(&self, text: &[TokenId], most: usize) -> impl Iterator<Item = Match> {
        let anchor = text.last_chunk::<ANCHOR>();
        let mut next = anchor.map_or(NOWHERE, |anchor| self.latest[self.slot(*anchor)]);
        let places = std::iter::from_fn(move || {
            let place = next;
            self.get(place)?;
            // What wrote over the rest of the chain is later than this place.
            let older = self.before[self.index(place)];
            next = if older < place { older } else { NOWHERE };
            Some(place)
        });
        places.take(most).filter_map(|place| {
            let at = place + 1;
            let follows = self.get(at).is_some_and(|token| token != BORDER);
            let agrees = |back: &usize| {
                let ours = place.checked_sub(*back as u32).and_then(|place| self.get(place));
                ours.is_some_and(|ours| text.len() > *back && ours == text[text.len() - 1 - back])
            };
            let length = (0..LONGEST).take_while(agrees).count();
            (follows && length >= ANCHOR).then_some(Match { at, length: length as u32 })
        })
    }

    /// What followed a match: its `nth` token, from 0 on.
    pub fn after(&self, found: Match, nth: usize) -> Option<TokenId> {
        let place = u32::try_from(nth).ok().and_then(|nth| found.at.checked_add(nth))?;
        self.get(place).filter(|token| *token != BORDER)
    }

    fn get(&self, place: u32) -> Option<TokenId> {
        let kept = place < self.length && self.length - place <= self.capacity;
        if kept { self.tokens.get(self.index(place)).copied() } else { None }
    }

    fn index(&self, place: u32) -> usize {
        (place & (self.capacity - 1)) as usize
    }

    fn slot(&self, [a, b]: [TokenId; ANCHOR]) -> usize {
        let key = u64::from(a.0) << 32 | u64::from(b.0);
        // Fibonacci hashing: the upper bits are the well mixed ones.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize & (self.latest.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    /// All places by brute force, the latest first: (place of what follows, tokens that agree).
    fn naive(history: &[TokenId], text: &[TokenId]) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        for at in (1..history.len()).rev() {
            let pairs = history[..at].iter().rev().zip(text.iter().rev());
            let same = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if same >= ANCHOR {
                found.push((at as u32, same as u32));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn matches_are_those_of_brute_force(raw in prop::collection::vec(0u32..5, 0..120), own in any::<bool>(), other in prop::collection::vec(0u32..5, 0..40)) {
            let tokens = ids(&raw);
            let mut history = History::new(256);
            history.extend(&tokens);
            // Its own end, as a sequence looks at itself, or another text.
            let text = if own { tokens.clone() } else { ids(&other) };
            let found: Vec<_> = history.matches(&text, usize::MAX).map(|m| (m.at, m.length)).collect();
            prop_assert_eq!(&found, &naive(&tokens, &text));
            for (at, _) in found {
                prop_assert_eq!(history.after(Match { at, length: 2 }, 0), Some(tokens[at as usize]));
            }
        }

        /// A full ring forgets the oldest and never gives what it has not.
        #[test]
        fn a_full_ring_finds_what_it_still_holds(raw in prop::collection::vec(0u32..4, 65..400)) {
            let tokens = ids(&raw);
            let mut history = History::new(64);
            history.extend(&tokens);
            prop_assert!(history.tokens.len() == 64 && history.before.len() == 64);
            let kept = &tokens[tokens.len() - 64..];
            let shift = (tokens.len() - 64) as u32;
            let found: Vec<_> = history.matches(&tokens, usize::MAX).map(|m| (m.at - shift, m.length)).collect();
            prop_assert_eq!(found, naive(kept, kept));
        }
    }

    #[test]
    fn no_match_reaches_across_a_border() {
        let mut history = History::new(64);
        history.extend(&ids(&[1, 2, 3]));
        history.border();
        history.extend(&ids(&[2, 3]));
        history.border();
        history.extend(&ids(&[9, 3, 4]));
        let found =
            |text: &[u32]| history.matches(&ids(text), 9).map(|m| (m.at, m.length)).collect::<Vec<_>>();
        assert_eq!(found(&[1, 2]), [(2, 2)]);
        assert_eq!(found(&[2, 3]), [], "nothing follows either place");
        assert_eq!(found(&[3, 4]), [], "the end");
        assert_eq!(found(&[7, 9, 3]), [(9, 2)]);
        let one = history.matches(&ids(&[1, 2]), 9).next().unwrap();
        assert_eq!((history.after(one, 0), history.after(one, 1)), (Some(TokenId(3)), None));
    }
}
