//! Token recycling (arXiv 2408.08696): what came after each token is what will come.

use request::TokenId;

use crate::{Sureness, Tree};

const NONE: u32 = u32::MAX;

/// For every token the last few that a target drew after it, the latest first, over all sequences. Also
/// draws behind a wrong draft count: the target said them after that token.
///
/// The paper keeps the eight most likely tokens of each row's logits; this keeps the tokens that were drawn, which a
/// row gives back anyway.
#[derive(Clone, Debug)]
pub struct Recycle {
    /// `width` ids for each token.
    followers: Vec<u32>,
    width: usize,
}

impl Recycle {
    /// For the whole table.
    pub const MOST_BYTES: usize = 2_000_000;
    const WIDEST: usize = 8;

    /// Eight followers a token, or as many as fit; at least one.
    pub fn new(vocab_size: u32) -> Self {
        let vocab = vocab_size.max(1) as usize;
        let width = (Self::MOST_BYTES / size_of::<u32>() / vocab).clamp(1, Self::WIDEST);
        Self { followers: vec![NONE; vocab * width], width }
    }

    /// The target drew `next` after `token`.
    pub fn observe(&mut self, token: TokenId, next: TokenId) {
        let first = token.0 as usize * self.width;
        let Some(row) = self.followers.get_mut(first..first + self.width) else { return };
        // To the front; who was there moves back, the last one goes.
        let old = row.iter().position(|id| *id == next.0).unwrap_or(self.width - 1);
        row[..=old].rotate_right(1);
        row[0] = next.0;
    }

    /// What was drawn after `token`, the latest first.
    pub fn followers(&self, token: TokenId) -> impl Iterator<Item = TokenId> {
        let first = token.0 as usize * self.width;
        let row = self.followers.get(first..first + self.width).unwrap_or_default();
        row.iter().take_while(|id| **id != NONE).map(|id| TokenId(*id))
    }

    /// The `most` likeliest drafts after `last`, as a tree that grows where the next draft is likeliest, and by draft
    /// its place among its siblings, the latest follower first. `chance`: of such a place at a depth, given that the
    /// parent is right. (The paper has one tree of 80; here the beliefs of the moment shape it.)
    pub fn tree(
        &self,
        last: TokenId,
        most: usize,
        chance: impl Fn(Sureness, usize) -> f64,
    ) -> (Tree, Vec<Sureness>) {
        /// A draft that could be next.
        struct Open {
            chance: f64,
            id: TokenId,
            parent: Option<u32>,
            rank: Sureness,
            depth: usize,
        }
        let (mut ids, mut parents, mut ranks) = (Vec::new(), Vec::new(), Vec::new());
        let mut open: Vec<Open> = Vec::new();
        let grow = |open: &mut Vec<Open>, from: TokenId, parent: Option<u32>, before: f64, depth: usize| {
            for (rank, id) in self.followers(from).enumerate() {
                let rank = rank as Sureness;
                open.push(Open { chance: before * chance(rank, depth), id, parent, rank, depth });
            }
        };
        grow(&mut open, last, None, 1.0, 0);
        while ids.len() < most {
            // Of equals the one that was found first.
            let best = (0..open.len()).reduce(|a, b| if open[b].chance > open[a].chance { b } else { a });
            let Some(next) = best.map(|best| open.remove(best)) else { break };
            let node = ids.len() as u32;
            ids.push(next.id);
            parents.push(next.parent);
            ranks.push(next.rank);
            if next.depth + 1 < Tree::DEEPEST {
                grow(&mut open, next.id, Some(node), next.chance, next.depth + 1);
            }
        }
        // Followers of one token differ, and a child comes after its parent.
        (Tree::grown(ids, parents), ranks)
    }

    /// The chain of the latest followers after `last`.
    pub fn propose(&self, last: TokenId, most: usize) -> Vec<TokenId> {
        let next = |token: &TokenId| self.followers(*token).next();
        std::iter::successors(next(&last), next).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn the_latest_followers_come_first_and_the_oldest_goes() {
        let mut recycle = Recycle::new(10);
        assert_eq!(recycle.propose(TokenId(1), 4), []);
        for next in [2, 3, 2, 4, 5, 6, 7, 8, 9, 0] {
            recycle.observe(TokenId(1), TokenId(next));
        }
        let followers: Vec<TokenId> = recycle.followers(TokenId(1)).collect();
        assert_eq!(followers, ids(&[0, 9, 8, 7, 6, 5, 4, 2]));
        recycle.observe(TokenId(1), TokenId(7));
        assert_eq!(recycle.followers(TokenId(1)).take(3).collect::<Vec<_>>(), ids(&[7, 0, 9]));
        // What is outside the vocabulary is nobody's.
        recycle.observe(TokenId(10), TokenId(1));
        assert_eq!(recycle.followers(TokenId(10)).count(), 0);
    }

    /// With the followers of an oracle that looks at one token, every draft is right.
    #[test]
    fn chains_follow_what_was_drawn() {
        let mut recycle = Recycle::new(7);
        let after = |token: u32| token * 3 % 7;
        for token in 1..7 {
            recycle.observe(TokenId(token), TokenId(after(token)));
        }
        let proposed = recycle.propose(TokenId(1), 9);
        assert_eq!(proposed.len(), 9);
        let mut token = 1;
        for id in proposed {
            token = after(token);
            assert_eq!(id, TokenId(token));
        }
    }

    #[test]
    fn trees_hold_the_likeliest_drafts_of_any_number() {
        let mut recycle = Recycle::new(20);
        for token in 0..20u32 {
            for follower in [7, 11, 13, 17] {
                recycle.observe(TokenId(token), TokenId((token + follower) % 20));
            }
        }
        let half = |rank: Sureness, _: usize| 0.5f64.powi(i32::from(rank) + 1);
        assert!(Recycle::new(20).tree(TokenId(0), 9, half).0.is_empty());
        let (mut before, last) = (0, TokenId(3));
        for most in [1, 2, 7, 30, 80] {
            let (tree, ranks) = recycle.tree(last, most, half);
            assert_eq!((tree.len(), ranks.len()), (most, most));
            let after = |node: usize| tree.parents()[node].map_or(last, |parent| tree.ids()[parent as usize]);
            for (node, id) in tree.ids().iter().enumerate() {
                assert!(
                    recycle.followers(after(node)).any(|f| f == *id),
                    "{id:?} never came after its parent"
                );
            }
            // The smaller tree is the beginning of the larger one, and forks as well as it goes deep.
            assert_eq!(recycle.tree(last, before, half).0.ids(), &tree.ids()[..before]);
            before = most;
            for (node, rank) in ranks.iter().enumerate() {
                let place = recycle.followers(after(node)).position(|f| f == tree.ids()[node]);
                assert_eq!(place, Some(usize::from(*rank)));
            }
        }
        let (tree, _) = recycle.tree(last, 80, half);
        let deepest = (0..80).map(|node| tree.depth(node)).max();
        let forks = tree.parents().iter().filter(|p| p.is_none()).count();
        assert!(deepest >= Some(5) && forks == 4, "{deepest:?} {forks}");
        // Where nothing but the latest follower is ever right it is a chain, and no deeper than a tree may be.
        let (chain, _) = recycle.tree(last, 80, |rank, _| if rank == 0 { 0.9 } else { 0.0 });
        assert!((0..Tree::DEEPEST as u32).all(|node| chain.depth(node) == node + 1));
        assert!((0..80).all(|node| chain.depth(node) <= Tree::DEEPEST as u32));
        // The chain is its leftmost path.
        assert_eq!(recycle.propose(last, 1)[0], tree.ids()[0]);
    }

    #[test]
    fn the_table_stays_small_at_any_vocabulary() {
        for (vocab, width) in [(1, 8), (49_152, 8), (151_665, 3), (500_000, 1)] {
            let recycle = Recycle::new(vocab);
            assert_eq!(recycle.width, width, "{vocab}");
            assert!(recycle.followers.len() * 4 <= Recycle::MOST_BYTES.max(vocab as usize * 4));
        }
    }
}
