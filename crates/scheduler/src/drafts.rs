use request::TokenId;

/// Drafts as a plan takes them: a chain, or a tree whose parents come before their children, so that the first
/// few of either are one as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drafts<'a> {
    pub(crate) ids: &'a [TokenId],
    /// Of a tree, as many as ids.
    pub(crate) parents: Option<&'a [Option<u32>]>,
}

impl<'a> Drafts<'a> {
    pub(crate) fn chain(ids: &'a [TokenId]) -> Self {
        Self { ids, parents: None }
    }

    pub(crate) fn tree(ids: &'a [TokenId], parents: &'a [Option<u32>]) -> Self {
        let both = ids.len().min(parents.len());
        Self { ids: &ids[..both], parents: Some(&parents[..both]) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(crate) fn len(&self) -> u32 {
        self.ids.len() as u32
    }

    pub(crate) fn first(self, drafts: u32) -> Self {
        let first = (drafts as usize).min(self.ids.len());
        Self { ids: &self.ids[..first], parents: self.parents.map(|parents| &parents[..first]) }
    }

    /// Positions behind the last known token of each draft, from 1 on.
    pub(crate) fn depths(&self) -> Vec<u32> {
        let Some(parents) = self.parents else { return (1..=self.len()).collect() };
        let mut depths: Vec<u32> = Vec::with_capacity(parents.len());
        for parent in parents {
            let above = parent.and_then(|parent| depths.get(parent as usize)).copied();
            depths.push(above.unwrap_or(0) + 1);
        }
        depths
    }

    /// Positions that they take.
    pub(crate) fn reach(&self) -> u32 {
        self.depths().into_iter().max().unwrap_or(0)
    }

    /// The first ones, as far as none reaches beyond `positions`.
    pub(crate) fn within(self, positions: u32) -> Self {
        let fit = self.depths().into_iter().take_while(|depth| *depth <= positions).count();
        self.first(fit as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_takes_places_by_depth_and_rows_by_number() {
        let ids = [5, 6, 7, 8, 9].map(TokenId);
        let parents = [None, None, Some(0), Some(2), Some(1)];
        let tree = Drafts::tree(&ids, &parents);
        assert_eq!((tree.len(), tree.reach(), tree.depths()), (5, 3, vec![1, 1, 2, 3, 2]));
        assert_eq!((tree.within(2).len(), tree.within(1).len(), tree.within(0).len()), (3, 2, 0));
        assert_eq!(tree.within(9), tree);
        assert_eq!(Drafts::tree(&ids, &parents[..2]).len(), 2);
        let chain = Drafts::chain(&ids);
        assert_eq!((chain.reach(), chain.within(3).len(), chain.first(2).ids), (5, 3, &ids[..2]));
    }
}
