//! Token recycling (arXiv 2408.08696): what came after each token is what will come.

use std::collections::BinaryHeap;

use request::TokenId;

use crate::Tree;

const NONE: u32 = u32::MAX;

/// For every token the last few that a target drew after it, the latest first, over all sequences. Also
/// draws behind a wrong draft count: the target said them after that token.
///
/// The paper keeps the eight most likely tokens of each row's logits and verifies a tree of them; this keeps
/// the tokens that were drawn, which a row gives back anyway, and proposes the chain of the latest ones.
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

    /// The `most` likeliest drafts after `last`, as a tree: a follower is taken to be right half as often as the one
    /// before it, so that a tree of any size is the best of its size (the paper has one tree of 80).
    pub fn tree(&self, last: TokenId, most: usize) -> Tree {
        let (mut ids, mut parents) = (Vec::new(), Vec::new());
        // Halvings, the fewest first; then the order in which they were found.
        let mut open = BinaryHeap::new();
        let grow =
            |open: &mut BinaryHeap<_>, from: TokenId, parent: Option<u32>, halvings: u32, found: u32| {
                for (rank, id) in self.followers(from).enumerate() {
                    let (rank, found) = (rank as u32, found + rank as u32);
                    open.push(std::cmp::Reverse((halvings + rank + 1, found, id, parent)));
                }
            };
        grow(&mut open, last, None, 0, 0);
        while ids.len() < most {
            let Some(std::cmp::Reverse((halvings, _, id, parent))) = open.pop() else { break };
            let node = ids.len() as u32;
            ids.push(id);
            parents.push(parent);
            grow(&mut open, id, Some(node), halvings, (node + 1) * Self::WIDEST as u32);
        }
        // Followers of one token differ, and a child comes after its parent.
        Tree::grown(ids, parents)
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
        assert!(Recycle::new(20).tree(TokenId(0), 9).is_empty());
        let (mut before, last) = (0, TokenId(3));
        for most in [1, 2, 7, 30, 80] {
            let tree = recycle.tree(last, most);
            assert_eq!(tree.len(), most);
            let after = |node: usize| tree.parents()[node].map_or(last, |parent| tree.ids()[parent as usize]);
            for (node, id) in tree.ids().iter().enumerate() {
                assert!(
                    recycle.followers(after(node)).any(|f| f == *id),
                    "{id:?} never came after its parent"
                );
            }
            // The smaller tree is the beginning of the larger one, and forks as well as it goes deep.
            assert_eq!(recycle.tree(last, before).ids(), &tree.ids()[..before]);
            before = most;
        }
        let tree = recycle.tree(last, 80);
        let deepest = (0..80).map(|node| tree.depth(node)).max();
        let forks = tree.parents().iter().filter(|p| p.is_none()).count();
        assert!(deepest >= Some(5) && forks == 4, "{deepest:?} {forks}");
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
