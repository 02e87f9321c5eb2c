//! The drafter's side: an optimistic tail after the last commit known.

use std::time::Duration;

use request::TokenId;

use crate::{Acceptance, Drafts, PrefixHashes};

/// One target sequence as its drafter sees it. The tokens themselves live in the drafter's engine
/// (`known` in the calls); this decides what a commit does to them and how far to run ahead.
#[derive(Clone, Debug)]
pub struct Session {
    /// Of committed + tail.
    hashes: PrefixHashes,
    committed: u32,
    /// Positions of the target's prompt that the drafter does not have: its own are so many fewer.
    skipped: u32,
    window: u32,
    /// The first token of a sequence comes from the target (algorithms.md 1.8: a drafter that
    /// samples its own keeps a wrong token in its context for good).
    opened: bool,
}

/// What a commit asks the drafter to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The tail agreed; go on up to the new limit.
    Agreed,
    /// Drop everything from `at` on and put `ids` there.
    Rewrite { at: u32, ids: Vec<TokenId> },
    /// A commit is missing; ask for everything from `have` on.
    Resync { have: u32 },
    /// Nothing new in it.
    Known,
    /// Its past is not ours: the session is of no use and must be closed.
    Diverged,
}

impl Session {
    pub fn new(known: &[TokenId], window: u32) -> Self {
        Self::retrieved(known, 0, window)
    }

    /// Of a drafter that lacks `skipped` tokens of the target's prompt. All places here are the target's but for
    /// [`Self::own`].
    pub fn retrieved(known: &[TokenId], skipped: u32, window: u32) -> Self {
        let committed = known.len() as u32;
        Self { hashes: PrefixHashes::new(known), committed, skipped, window, opened: false }
    }

    /// The drafter's own place for one of the target's.
    pub fn own(&self, place: u32) -> u32 {
        place.saturating_sub(self.skipped)
    }

    pub fn skipped(&self) -> u32 {
        self.skipped
    }

    /// Length up to which the drafter may run.
    pub fn limit(&self) -> u32 {
        if self.opened { self.committed.saturating_add(self.window) } else { self.committed }
    }

    pub fn committed(&self) -> u32 {
        self.committed
    }

    /// Nobody wants drafts now: what is committed meanwhile can be computed when somebody does, all at once.
    pub fn rests(&self) -> bool {
        self.opened && self.window == 0
    }

    pub fn set_window(&mut self, window: u32) {
        self.window = window;
    }

    /// The engine drafted one more token.
    pub fn drafted(&mut self, id: TokenId) {
        self.hashes.push(id);
    }

    /// The target committed `ids` at `at`, after tokens named by `prefix_hash`. `known`: the drafter's own tokens.
    pub fn commit(&mut self, known: &[TokenId], at: u32, prefix_hash: u64, ids: &[TokenId]) -> Reaction {
        debug_assert_eq!(
            known.len() as u32 + self.skipped,
            self.hashes.len(),
            "the session follows the engine"
        );
        if at > self.committed {
            return Reaction::Resync { have: self.committed };
        }
        if self.hashes.at(at) != Some(prefix_hash) {
            return Reaction::Diverged;
        }
        let old = ids.len().min((self.committed - at) as usize);
        // Of the prompt's own tokens the drafter may have others; they were named by the hash.
        let own = self.own(at) as usize;
        if at < self.skipped || known[own..own + old] != ids[..old] {
            return Reaction::Diverged;
        }
        let fresh = &ids[old..];
        if fresh.is_empty() {
            return Reaction::Known;
        }
        self.opened = true;
        let tail = &known[self.own(self.committed) as usize..];
        let same = tail.iter().zip(fresh).take_while(|(t, f)| t == f).count();
        let reaction = if same == fresh.len() {
            Reaction::Agreed
        } else {
            let at = self.committed + same as u32;
            self.hashes.truncate(at);
            self.hashes.extend(&fresh[same..]);
            Reaction::Rewrite { at, ids: fresh[same..].to_vec() }
        };
        self.committed += fresh.len() as u32;
        reaction
    }

    /// The whole unconfirmed tail as one frame, so that a frame lost on the way is healed by the
    /// next; `None` while there is nothing to say.
    pub fn frame(&self, known: &[TokenId]) -> Option<Drafts> {
        let ids = known.get(self.own(self.committed) as usize..)?.to_vec();
        let prefix_hash = self.hashes.at(self.committed)?;
        (!ids.is_empty()).then_some(Drafts { at: self.committed, prefix_hash, ids, q: Vec::new() })
    }
}

/// What the window rule needs to know; all measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub target_step: Duration,
    pub draft_step: Duration,
    pub round_trip: Duration,
}

/// How far past the last commit known a free-running drafter should be: enough that drafts for the
/// next step have arrived when the target gets there, `ceil((2 t_target + round trip) / t_draft) + 2`
/// (algorithms.md 1.4; with only t_target / t_draft the gain falls from 3.1 to 2.5 at c = 5), and not
/// beyond the depth at which its drafts are rarely reached.
pub fn window(timing: Timing, acceptance: &Acceptance, longest: u32) -> u32 {
    let ahead = (2 * timing.target_step + timing.round_trip).as_nanos();
    let tokens = ahead.div_ceil(timing.draft_step.as_nanos().max(1));
    let covered = u32::try_from(tokens + 2).unwrap_or(u32::MAX);
    covered.min(acceptance.useful_depth()).clamp(1, longest.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    fn hash(raw: &[u32]) -> u64 {
        PrefixHashes::new(&ids(raw)).last()
    }

    /// A session that knows 1 2, got 3 committed, and drafted 4 5 after it.
    fn running() -> (Session, Vec<TokenId>) {
        let mut known = ids(&[1, 2]);
        let mut session = Session::new(&known, 4);
        assert_eq!(session.limit(), 2, "no draft before the target's first token");
        let first = session.commit(&known, 2, hash(&[1, 2]), &ids(&[3]));
        assert_eq!(first, Reaction::Rewrite { at: 2, ids: ids(&[3]) });
        known.push(TokenId(3));
        assert_eq!(session.limit(), 7);
        assert!(!session.rests());
        for id in [4, 5] {
            known.push(TokenId(id));
            session.drafted(TokenId(id));
        }
        (session, known)
    }

    #[test]
    fn commits_agree_rewrite_or_ask() {
        type Case<'a> = (&'a str, u32, &'a [u32], &'a [u32], Reaction, u32);
        let cases: &[Case<'_>] = &[
            ("confirms part of the tail", 3, &[1, 2, 3], &[4], Reaction::Agreed, 4),
            ("confirms all of it", 3, &[1, 2, 3], &[4, 5], Reaction::Agreed, 5),
            ("goes beyond it", 3, &[1, 2, 3], &[4, 5, 6], Reaction::Rewrite { at: 5, ids: ids(&[6]) }, 6),
            ("disagrees", 3, &[1, 2, 3], &[4, 9], Reaction::Rewrite { at: 4, ids: ids(&[9]) }, 5),
            ("doubled", 2, &[1, 2], &[3], Reaction::Known, 3),
            ("overlaps", 2, &[1, 2], &[3, 4], Reaction::Agreed, 4),
            ("one was lost", 4, &[1, 2, 3, 8], &[9], Reaction::Resync { have: 3 }, 3),
            ("another past", 3, &[1, 2, 7], &[4], Reaction::Diverged, 3),
            ("another commit", 2, &[1, 2], &[8], Reaction::Diverged, 3),
        ];
        for (name, at, past, committed, expected, length) in cases {
            let (mut session, known) = running();
            assert_eq!(session.commit(&known, *at, hash(past), &ids(committed)), *expected, "{name}");
            assert_eq!(session.committed(), *length, "{name}");
        }
    }

    #[test]
    fn a_frame_carries_the_whole_unconfirmed_tail() {
        let (mut session, known) = running();
        assert_eq!(
            session.frame(&known),
            Some(Drafts { at: 3, prefix_hash: hash(&[1, 2, 3]), ids: ids(&[4, 5]), q: vec![] })
        );
        session.commit(&known, 3, hash(&[1, 2, 3]), &ids(&[4]));
        assert_eq!(
            session.frame(&known),
            Some(Drafts { at: 4, prefix_hash: hash(&[1, 2, 3, 4]), ids: ids(&[5]), q: vec![] })
        );
        session.commit(&known, 4, hash(&[1, 2, 3, 4]), &ids(&[5]));
        assert_eq!(session.frame(&known), None);
    }

    #[test]
    fn the_window_covers_two_target_steps_and_the_round_trip() {
        let ms = Duration::from_millis;
        let timing = Timing { target_step: ms(50), draft_step: ms(10), round_trip: ms(5) };
        let mut sure = Acceptance::default();
        let mut wrong = Acceptance::default();
        for _ in 0..300 {
            sure.record(1, 1);
            wrong.record(1, 0);
        }
        assert_eq!(window(timing, &sure, 64), 13);
        assert_eq!(window(timing, &sure, 8), 8);
        assert_eq!(window(Timing { draft_step: Duration::ZERO, ..timing }, &sure, 64), 64);
        assert_eq!(window(timing, &wrong, 64), 1, "what is never accepted is not drafted ahead");
    }
}
