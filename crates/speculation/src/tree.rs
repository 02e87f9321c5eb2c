//! Drafts that fork: several guesses for one place.

use request::TokenId;

/// A tree of drafts after the last known token, parents before their children. Siblings differ: a token drafted
/// twice for one place would be one draft too many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    ids: Vec<TokenId>,
    /// `None`: right after the last known token.
    parents: Vec<Option<u32>>,
}

/// Why drafts form no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTree {
    /// The parent of this draft is not before it.
    Parent(u32),
    /// This draft has a sibling with the same token.
    Doubled(u32),
    /// There are not as many parents as ids.
    Lengths,
}

/// What a verification step decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The accepted drafts, from the first on.
    pub accepted: Vec<u32>,
    /// Tokens to commit: theirs, then the target's own next token.
    pub tokens: Vec<TokenId>,
}

impl Tree {
    /// Deeper trees are cut: a back end keeps room for so many places behind a draft.
    pub const DEEPEST: usize = 16;

    /// Without forks.
    pub fn chain(ids: Vec<TokenId>) -> Self {
        let parents = (0..ids.len() as u32).map(|i| i.checked_sub(1)).collect();
        Self { ids, parents }
    }

    pub fn is_chain(&self) -> bool {
        self.parents.iter().enumerate().all(|(i, parent)| *parent == (i as u32).checked_sub(1))
    }

    /// Only the first drafts stay; parents come first, so they are a tree.
    pub fn truncate(&mut self, drafts: usize) {
        self.ids.truncate(drafts);
        self.parents.truncate(drafts);
    }

    pub fn clear(&mut self) {
        self.truncate(0);
    }

    pub fn new(ids: Vec<TokenId>, parents: Vec<Option<u32>>) -> Result<Self, NoTree> {
        if ids.len() != parents.len() {
            return Err(NoTree::Lengths);
        }
        for (index, parent) in parents.iter().enumerate() {
            let node = index as u32;
            if parent.is_some_and(|parent| parent >= node) {
                return Err(NoTree::Parent(node));
            }
            let doubled = |i: usize| parents[i] == *parent && ids[i] == ids[index];
            if (0..index).any(doubled) {
                return Err(NoTree::Doubled(node));
            }
        }
        Ok(Self { ids, parents })
    }

    /// Of drafts that are a tree by how they were found.
    pub(crate) fn grown(ids: Vec<TokenId>, parents: Vec<Option<u32>>) -> Self {
        debug_assert!(Self::new(ids.clone(), parents.clone()).is_ok());
        Self { ids, parents }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    pub fn parents(&self) -> &[Option<u32>] {
        &self.parents
    }

    /// Drafts before this one on its path, itself included: how far behind the last known token it is.
    pub fn depth(&self, node: u32) -> u32 {
        let parent = |node: &u32| self.parents.get(*node as usize).copied().flatten();
        std::iter::successors(Some(node), parent).count() as u32
    }

    /// Drafts right after this one; of `None`: after the last known token.
    pub fn children(&self, of: Option<u32>) -> impl Iterator<Item = u32> {
        let first = of.map_or(0, |node| node + 1);
        (first..self.len() as u32).filter(move |i| self.parents[*i as usize] == of)
    }

    /// Tokens from the first draft on its path to this one.
    pub fn path(&self, node: u32) -> Vec<TokenId> {
        let parent = |node: &u32| self.parents.get(*node as usize).copied().flatten();
        let mut path: Vec<TokenId> =
            std::iter::successors(Some(node), parent).map(|node| self.ids[node as usize]).collect();
        path.reverse();
        path
    }

    fn child(&self, of: Option<u32>, id: TokenId) -> Option<u32> {
        self.children(of).find(|child| self.ids[*child as usize] == id)
    }

    /// Judges the drafts. `picks[0]` is what the target drew after the last known token, `picks[i + 1]` what it
    /// drew after draft i and those before that on its path, each with the noise of its place.
    ///
    /// The draft that equals the target's draw for its place stands, whichever of its siblings it is, and the
    /// walk goes on behind it. So the text is the target's own under coupled, strict and greedy, as for a chain
    /// ([`crate::verify`]): which drafts there are decides only how many of its tokens one step finds.
    pub fn verify(&self, picks: &[TokenId]) -> Path {
        debug_assert_eq!(picks.len(), self.len() + 1, "one pick after each draft and one before");
        let mut path = Path { accepted: Vec::new(), tokens: Vec::new() };
        let mut at = None;
        while let Some(pick) = picks.get(at.map_or(0, |node: u32| node as usize + 1)) {
            path.tokens.push(*pick);
            let Some(child) = self.child(at, *pick) else { break };
            path.accepted.push(child);
            at = Some(child);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use request::{Sampling, SamplingParams};
    use sampling::pick;

    use super::*;

    const VOCAB: u32 = 6;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    fn mix(mut x: u64) -> u64 {
        x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A law that depends on the last three tokens.
    fn logits(text: &[TokenId]) -> Vec<f32> {
        let seen = text.iter().rev().take(3).fold(7, |hash, id| mix(hash ^ u64::from(id.0)));
        (0..VOCAB).map(|id| (mix(seen ^ u64::from(id)) >> 40) as f32 / (1 << 24) as f32 * 3.0).collect()
    }

    fn draw(text: &[TokenId], sampling: &Sampling) -> TokenId {
        pick(&logits(text), sampling, text.len() as u32).unwrap()
    }

    /// Any tree: siblings differ, children may hang anywhere.
    fn some_tree(seed: u64) -> Tree {
        let (mut ids, mut parents, mut taken) = (Vec::new(), Vec::new(), BTreeSet::new());
        for i in 0..mix(seed) % 24 {
            let at = mix(seed ^ (i << 8)) % (ids.len() as u64 + 1);
            let parent = at.checked_sub(1).map(|at| at as u32);
            let id = TokenId((mix(seed ^ (i << 9)) % u64::from(VOCAB)) as u32);
            if taken.insert((parent, id)) {
                ids.push(id);
                parents.push(parent);
            }
        }
        Tree::new(ids, parents).unwrap()
    }

    /// Picks of all rows of a step, each after its own path.
    fn picks(text: &[TokenId], tree: &Tree, sampling: &Sampling) -> Vec<TokenId> {
        let after = |node: u32| [text, &tree.path(node)].concat();
        let rows = (0..tree.len() as u32).map(|node| draw(&after(node), sampling));
        std::iter::once(draw(text, sampling)).chain(rows).collect()
    }

    /// With any trees the text is plain decoding's, token for token; a verifier that prefers a draft to the
    /// target's draw is told apart.
    #[test]
    fn the_text_does_not_depend_on_the_trees() {
        let (mut steps, mut accepted, mut later_siblings, mut biased_differs) = (0, 0, 0, 0);
        for case in 0..300u64 {
            let params = if case % 3 == 0 { SamplingParams::GREEDY } else { SamplingParams::at(0.9) };
            let sampling = Sampling { params, seed: case, choice: 0 };
            let mut plain = ids(&[1]);
            while plain.len() < 60 {
                plain.push(draw(&plain, &sampling));
            }
            let (mut text, mut biased) = (ids(&[1]), ids(&[1]));
            while text.len() < 60 {
                let tree = some_tree(case << 20 ^ text.len() as u64);
                let path = tree.verify(&picks(&text, &tree, &sampling));
                assert_eq!(path.tokens.len(), path.accepted.len() + 1);
                for (depth, node) in path.accepted.iter().enumerate() {
                    assert_eq!(tree.depth(*node), depth as u32 + 1);
                    let parent = tree.parents()[*node as usize];
                    later_siblings += u32::from(tree.parents()[..*node as usize].contains(&parent));
                }
                (steps, accepted) = (steps + 1, accepted + path.accepted.len());
                text.extend(path.tokens);
                // The first draft, whatever the target drew.
                biased.extend(tree.ids().first().copied().or(Some(draw(&biased, &sampling))));
            }
            assert_eq!(text[..60], plain[..60], "case {case}");
            biased.truncate(60);
            biased_differs += u32::from(biased[..] != plain[..biased.len()]);
        }
        assert!(accepted > 5000 && later_siblings > 1000, "{accepted} in {steps} steps, {later_siblings}");
        assert_eq!(biased_differs, 300);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let tree =
            |raw: &[u32], parents: &[Option<u32>]| Tree::new(ids(raw), parents.to_vec()).map(|t| t.len());
        assert_eq!(tree(&[1, 2, 1], &[None, None, Some(1)]), Ok(3));
        assert_eq!(tree(&[1, 2], &[None]), Err(NoTree::Lengths));
        assert_eq!(tree(&[1], &[Some(0)]), Err(NoTree::Parent(0)));
        assert_eq!(tree(&[1, 2], &[Some(1), None]), Err(NoTree::Parent(0)));
        assert_eq!(tree(&[1, 2, 1], &[None, None, None]), Err(NoTree::Doubled(2)));
    }
}
