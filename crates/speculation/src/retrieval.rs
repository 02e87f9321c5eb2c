//! What a drafter reads of a prompt that is too long for it (RAPID, arXiv 2502.20330): its beginning, the chunks that
//! look most like its end, in the order of the document, and its end.
//!
//! Chunks are measured in tokens, and looked up by tokens: BM25 (Robertson and Zaragoza, 2009) whose words are token
//! ids. So a drafter needs no text and no second model. Embeddings are not built.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use request::{Retrieval, TokenId};

/// The chunks of one document and which tokens each has.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    document: Vec<TokenId>,
    chunk: usize,
    /// By chunk: how often it has each token.
    counts: Vec<HashMap<TokenId, u32>>,
    /// Chunks that have a token.
    having: HashMap<TokenId, u32>,
}

/// How soon more of the same token counts for less, and how much longer chunks are held against.
const K1: f64 = 1.2;
const B: f64 = 0.75;

impl Chunks {
    /// Cuts a document into chunks of `chunk` tokens, the last one shorter.
    pub fn new(document: &[TokenId], chunk: u32) -> Self {
        let chunk = chunk.max(1) as usize;
        let mut having: HashMap<TokenId, u32> = HashMap::new();
        let counts = document
            .chunks(chunk)
            .map(|tokens| {
                let mut counts: HashMap<TokenId, u32> = HashMap::new();
                for token in tokens {
                    let count = counts.entry(*token).or_default();
                    *having.entry(*token).or_default() += u32::from(*count == 0);
                    *count += 1;
                }
                counts
            })
            .collect();
        Self { document: document.to_vec(), chunk, counts, having }
    }

    fn range(&self, at: usize) -> Range<usize> {
        at * self.chunk..((at + 1) * self.chunk).min(self.document.len())
    }

    /// How much each chunk looks like the query; each of its tokens counts once.
    fn scores(&self, query: &[TokenId]) -> Vec<f64> {
        let (all, mean) =
            (self.counts.len() as f64, self.document.len() as f64 / self.counts.len().max(1) as f64);
        let mut words = query.to_vec();
        words.sort_unstable();
        words.dedup();
        let score = |(at, counts): (usize, &HashMap<TokenId, u32>)| {
            let length = self.range(at).len() as f64 / mean.max(1.0);
            let of = |word: &TokenId| {
                let count = f64::from(counts.get(word).copied().unwrap_or(0));
                let having = f64::from(self.having.get(word).copied().unwrap_or(0));
                let rare = ((all - having + 0.5) / (having + 0.5)).ln_1p();
                rare * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length))
            };
            words.iter().map(of).sum()
        };
        self.counts.iter().enumerate().map(score).collect()
    }

    /// The chunks that look most like the query, in the document's order: at most `budget` tokens, none that matches
    /// less than `threshold` of the best one, none that matches nothing.
    pub fn find(&self, query: &[TokenId], budget: u32, threshold: f32) -> Vec<Range<usize>> {
        let scores = self.scores(query);
        let least = scores.iter().copied().fold(0.0, f64::max) * f64::from(threshold);
        let mut ranked: Vec<usize> =
            (0..scores.len()).filter(|at| scores[*at] > 0.0 && scores[*at] >= least).collect();
        // Of equals the earlier one.
        ranked.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let mut left = budget as usize;
        ranked.retain(|at| {
            let fits = self.range(*at).len() <= left;
            left -= if fits { self.range(*at).len() } else { 0 };
            fits
        });
        ranked.sort_unstable();
        ranked.into_iter().map(|at| self.range(at)).collect()
    }
}

/// Documents that were cut before, a few of each tenant's own: which document somebody else asked about would be told by
/// how soon an answer comes.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// The latest first.
    kept: Vec<(String, Arc<Chunks>)>,
}

impl Documents {
    /// Documents that are kept; their tokens and counts are about 20 bytes a token.
    const MOST: usize = 8;

    fn chunks(&mut self, salt: &str, document: &[TokenId], chunk: u32) -> Arc<Chunks> {
        let same = |(of, kept): &(String, Arc<Chunks>)| {
            of == salt && kept.chunk == chunk as usize && kept.document == document
        };
        let found = match self.kept.iter().position(same) {
            Some(at) => self.kept.remove(at),
            None => (salt.to_owned(), Arc::new(Chunks::new(document, chunk))),
        };
        let chunks = found.1.clone();
        self.kept.insert(0, found);
        self.kept.truncate(Self::MOST);
        chunks
    }

    /// The prompt as the drafter reads it; a prompt that is no longer than that is read whole.
    pub fn retrieve(&mut self, salt: &str, prompt: &[TokenId], wanted: &Retrieval) -> Vec<TokenId> {
        let Retrieval { head, question, chunk, budget, threshold } = *wanted;
        if prompt.len() as u64 <= u64::from(head) + u64::from(question) + u64::from(budget) {
            return prompt.to_vec();
        }
        let (head, rest) = prompt.split_at(head as usize);
        let (document, question) = rest.split_at(rest.len() - question as usize);
        let found = self.chunks(salt, document, chunk).find(question, budget, threshold);
        let chunks = found.into_iter().flat_map(|range| &document[range]);
        head.iter().chain(chunks).chain(question).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(raw: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
        raw.into_iter().map(TokenId).collect()
    }

    /// A document of common words, with a rare one in some chunks.
    fn document() -> Vec<TokenId> {
        let mut document = ids((0..200).map(|i| i % 10));
        for (at, word) in [(35, 77), (36, 78), (120, 77), (181, 79)] {
            document[at] = TokenId(word);
        }
        document
    }

    #[test]
    fn chunks_that_have_the_questions_words_are_found() {
        let chunks = Chunks::new(&document(), 10);
        let find = |query: &[u32], budget, threshold| -> Vec<(usize, usize)> {
            let found = chunks.find(&ids(query.iter().copied()), budget, threshold);
            found.into_iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(find(&[77, 78], 10, 0.0), [(30, 40)], "both words go before one");
        assert_eq!(find(&[77, 78], 20, 0.0), [(30, 40), (120, 130)], "in the document's order");
        assert_eq!(find(&[79, 77], 200, 0.0), [(30, 40), (120, 130), (180, 190)]);
        assert_eq!(find(&[77, 78], 200, 0.9), [(30, 40)], "the others match less than nine tenths");
        assert_eq!(find(&[500], 200, 0.0), [], "nothing matches");
        assert_eq!(find(&[77], 9, 0.0), [], "none fits");
        // A word that all chunks have says nearly nothing.
        assert_eq!(find(&[3, 79], 10, 0.0), [(180, 190)]);
    }

    #[test]
    fn the_question_and_the_beginning_are_always_read() {
        let mut documents = Documents::default();
        let prompt = [ids([90, 91]), document(), ids([77, 92])].concat();
        let wanted = Retrieval { head: 2, question: 2, chunk: 10, budget: 20, threshold: 0.0 };
        let read = documents.retrieve("a", &prompt, &wanted);
        let expected = [&prompt[..2], &prompt[32..42], &prompt[122..132], &prompt[202..]].concat();
        assert_eq!(read, expected);
        // All of it fits: read whole.
        assert_eq!(documents.retrieve("a", &prompt, &Retrieval { budget: 4096, ..wanted }), prompt);
        // Cut once for a tenant, whatever is asked; another tenant does not find it.
        for (salt, chunk, kept) in [("a", 10, 1), ("a", 20, 2), ("b", 10, 3), ("a", 10, 3)] {
            documents.retrieve(salt, &prompt, &Retrieval { chunk, ..wanted });
            assert_eq!(documents.kept.len(), kept, "{salt} {chunk}");
        }
        (0..20).for_each(|i| drop(documents.retrieve(&format!("{i}"), &prompt, &wanted)));
        assert_eq!(documents.kept.len(), Documents::MOST);
    }

    proptest! {
        #[test]
        fn what_is_found_fits_is_in_order_and_matches(
            document in prop::collection::vec(0u32..40, 1..300), query in prop::collection::vec(0u32..60, 0..12),
            chunk in 1u32..40, budget in 0u32..200, threshold in 0.0..1.0f32,
        ) {
            let (document, query) = (ids(document), ids(query));
            let chunks = Chunks::new(&document, chunk);
            let (found, scores) = (chunks.find(&query, budget, threshold), chunks.scores(&query));
            let best = scores.iter().copied().fold(0.0, f64::max);
            prop_assert!(found.iter().map(Range::len).sum::<usize>() <= budget as usize);
            prop_assert!(found.windows(2).all(|w| w[0].end <= w[1].start));
            for range in &found {
                let score = scores[range.start / chunk as usize];
                prop_assert!(score > 0.0 && score >= best * f64::from(threshold));
                prop_assert!(document[range.clone()].iter().any(|token| query.contains(token)));
            }
        }
    }
}
