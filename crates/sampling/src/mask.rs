use request::TokenId;

/// A set of tokens: 32 to a word, the lowest id in the lowest bit (the layout of llguidance and of GPU
/// samplers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    words: Vec<u32>,
}

impl Mask {
    /// No token of a vocabulary of this size.
    pub fn none(vocab: usize) -> Self {
        Self { words: vec![0; vocab.div_ceil(32)] }
    }

    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Ids beyond the vocabulary are ignored.
    pub fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token.0 as usize / 32) {
            *word |= 1 << (token.0 % 32);
        }
    }

    pub fn forbid(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token.0 as usize / 32) {
            *word &= !(1 << (token.0 % 32));
        }
    }

    /// Ids beyond the vocabulary are not allowed.
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Makes all other tokens impossible.
    pub fn apply(&self, logits: &mut [f32]) {
        for (group, logits) in logits.chunks_mut(32).enumerate() {
            let word = self.words.get(group).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_keeps_what_it_allows() {
        let mut mask = Mask::none(70);
        assert!(mask.is_empty());
        for id in [0, 31, 32, 69] {
            mask.allow(TokenId(id));
        }
        mask.allow(TokenId(4000));
        let mut logits = vec![1.0; 80];
        mask.apply(&mut logits);
        let kept: Vec<u32> = (0..80).filter(|i| logits[*i as usize] == 1.0).collect();
        assert_eq!(kept, [0, 31, 32, 69]);
        assert!(mask.allows(TokenId(69)) && !mask.allows(TokenId(68)) && !mask.allows(TokenId(4000)));
        mask.forbid(TokenId(69));
        assert!(!mask.allows(TokenId(69)));
        assert_eq!(Mask::from_words(mask.words().to_vec()), mask);
    }
}
