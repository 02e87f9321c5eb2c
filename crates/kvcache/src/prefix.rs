use request::TokenId;
use sha2::{Digest, Sha256};

use crate::PAGE_POSITIONS;

/// Everything besides tokens that keys and values depend on, or that must keep tenants apart. Equal
/// scopes may share pages, others never do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Weights, head map and KV dtype. One rank has one, so it may stay empty until pages travel.
    pub fingerprint: &'a str,
    /// LoRA adapter.
    pub adapter: Option<u32>,
    /// The tenant's salt (`cache_salt` of a request).
    pub salt: &'a str,
}

/// The first link of a hash chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixRoot(PageHash);

impl PrefixRoot {
    pub fn new(scope: &Scope<'_>) -> Self {
        let mut hash = Sha256::new_with_prefix(b"paceline prefix 1");
        for text in [scope.fingerprint, scope.salt] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update([u8::from(scope.adapter.is_some())]);
        hash.update(scope.adapter.unwrap_or(0).to_le_bytes());
        Self(PageHash(hash.finalize().into()))
    }

    /// The root of a tenant on a rank with one model and no adapters.
    pub fn salted(salt: &str) -> Self {
        Self::new(&Scope { salt, ..Scope::default() })
    }
}

/// Names the content of a full page: SHA-256 over the hash before it and its 16 token ids, so it
/// stands for the scope and for every token up to the page's end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHash([u8; 32]);

impl PageHash {
    /// For the wire.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first eight bytes: for advice, where a collision does no harm.
    pub fn short(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl std::fmt::Debug for PageHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PageHash({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// The hashes of a sequence's full pages, as far as they were asked for.
#[derive(Clone, Debug)]
pub struct PrefixChain {
    root: PrefixRoot,
    links: Vec<PageHash>,
}

impl PrefixChain {
    pub fn new(root: PrefixRoot) -> Self {
        Self { root, links: Vec::new() }
    }

    /// The hashes of the full pages in `tokens`. What was hashed before is not looked at again: the
    /// caller passes tokens that are settled, or calls [`PrefixChain::truncate`].
    pub fn reach(&mut self, tokens: &[TokenId]) -> &[PageHash] {
        let pages = tokens.chunks_exact(PAGE_POSITIONS as usize);
        let wanted = pages.len();
        for page in pages.skip(self.links.len()) {
            let parent = self.links.last().unwrap_or(&self.root.0);
            let mut hash = Sha256::new_with_prefix(parent.0);
            for token in page {
                hash.update(token.0.to_le_bytes());
            }
            self.links.push(PageHash(hash.finalize().into()));
        }
        &self.links[..wanted]
    }

    /// Forgets the hashes of pages that `positions` positions do not fill.
    pub fn truncate(&mut self, positions: u32) {
        self.links.truncate((positions / PAGE_POSITIONS) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(scope: &Scope<'_>, tokens: &[u32]) -> Vec<PageHash> {
        let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
        PrefixChain::new(PrefixRoot::new(scope)).reach(&tokens).to_vec()
    }

    #[test]
    fn a_hash_stands_for_everything_before_it() {
        let tokens: Vec<u32> = (0..50).collect();
        let plain = chain(&Scope::default(), &tokens);
        assert_eq!(plain.len(), 3, "only full pages have a hash");
        let mut other = tokens.clone();
        other[20] += 1;
        let changed = chain(&Scope::default(), &other);
        assert_eq!(plain[0], changed[0]);
        assert!(plain[1] != changed[1] && plain[2] != changed[2]);
    }

    #[test]
    fn every_part_of_a_scope_counts_and_none_runs_into_another() {
        let scopes = [
            Scope::default(),
            Scope { salt: "a", ..Scope::default() },
            Scope { salt: "ab", ..Scope::default() },
            Scope { fingerprint: "a", ..Scope::default() },
            Scope { fingerprint: "a", salt: "b", ..Scope::default() },
            Scope { adapter: Some(0), ..Scope::default() },
            Scope { adapter: Some(1), ..Scope::default() },
        ];
        let mut seen: Vec<PageHash> = scopes.iter().map(|scope| chain(scope, &[7; 16])[0]).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), scopes.len());
    }

    #[test]
    fn a_chain_grows_and_is_cut() {
        let tokens: Vec<TokenId> = (0..64).map(TokenId).collect();
        let mut chain = PrefixChain::new(PrefixRoot::salted(""));
        let first = chain.reach(&tokens[..16]).to_vec();
        assert_eq!(chain.reach(&tokens)[..1], first[..]);
        let mut other = tokens.clone();
        other[40] = TokenId(0);
        chain.truncate(40);
        let again = chain.reach(&other).to_vec();
        assert_eq!(again, PrefixChain::new(PrefixRoot::salted("")).reach(&other));
        assert_eq!(chain.reach(&tokens[..40]).len(), 2, "no more than was asked for");
    }
}
