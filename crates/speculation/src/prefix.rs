use request::TokenId;

/// A hash for every prefix of a token sequence: `at(n)` names its first n tokens.
///
/// It tells honest parties apart that lost sight of each other; it is no defence against a drafter
/// that lies, and needs none: a wrong draft is rejected by the target's own pick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixHashes(Vec<u64>);

impl PrefixHashes {
    pub fn new(tokens: &[TokenId]) -> Self {
        let mut hashes = Self(vec![0x5041_4345_4C49_4E45]);
        hashes.extend(tokens);
        hashes
    }

    /// Continues from a known hash: lengths then count from there.
    pub fn resume(hash: u64) -> Self {
        Self(vec![hash])
    }

    /// Tokens covered.
    pub fn len(&self) -> u32 {
        self.0.len() as u32 - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hash of the first `length` tokens; `None` beyond the end.
    pub fn at(&self, length: u32) -> Option<u64> {
        self.0.get(length as usize).copied()
    }

    pub fn last(&self) -> u64 {
        self.0.last().copied().unwrap_or_default()
    }

    pub fn push(&mut self, token: TokenId) {
        self.0.push(mix(self.last() ^ (u64::from(token.0) + 1)));
    }

    pub fn extend(&mut self, tokens: &[TokenId]) {
        for &token in tokens {
            self.push(token);
        }
    }

    /// Forgets everything after the first `length` tokens.
    pub fn truncate(&mut self, length: u32) {
        self.0.truncate(length as usize + 1);
    }
}

/// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(raw: &[u32]) -> Vec<TokenId> {
        raw.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_hash_names_a_prefix() {
        let a = PrefixHashes::new(&ids(&[1, 2, 3]));
        let mut b = PrefixHashes::new(&ids(&[1, 2, 9, 9]));
        assert_eq!(a.at(2), b.at(2));
        assert_ne!(a.at(3), b.at(3));
        assert_eq!(a.at(4), None);
        b.truncate(2);
        b.push(TokenId(3));
        assert_eq!(a, b);
        assert_ne!(PrefixHashes::new(&ids(&[1, 2])).last(), PrefixHashes::new(&ids(&[2, 1])).last());
        assert_ne!(PrefixHashes::new(&ids(&[0])).last(), PrefixHashes::new(&ids(&[0, 0])).last());
    }
}
