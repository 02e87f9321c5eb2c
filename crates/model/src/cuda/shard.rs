//! Which part of a model a rank holds: tensor parallelism as in Megatron-LM (Shoeybi et al., 2019). Query and KV heads,
//! and the feed-forward's inner values, are shared out evenly; `o` and `down` take their share of inputs and give
//! partial sums; the embedding is everywhere, the output layer is cut by its vocabulary.

use std::ops::Range;

use kvcache::HeadMap;

use crate::LoadError;
use crate::arch::Parameters;

/// One of `ranks` parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
}

/// Outputs of the output layer come in groups of so many: as the products' kernels take them.
const COLUMNS: usize = 32;

impl Shard {
    /// The whole model.
    #[cfg(test)]
    pub(crate) const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// All parts of a model over `ranks` GPUs; what cannot be shared out is refused.
    pub(crate) fn all(p: &Parameters, ranks: usize) -> Result<Vec<Self>, LoadError> {
        let bad = |why| Err(LoadError::BadOption { option: "ordinals", why });
        if !(1..=super::exchange::MOST_RANKS).contains(&ranks) {
            return bad(format!("a model is on 1 to {} GPUs, not {ranks}", super::exchange::MOST_RANKS));
        }
        for (what, count) in
            [("query heads", p.heads), ("KV heads", p.kv_heads), ("feed-forward values", p.feed_forward)]
        {
            if !count.is_multiple_of(ranks) {
                return bad(format!(
                    "the model's {count} {what} cannot be shared out evenly over {ranks} GPUs"
                ));
            }
        }
        Ok((0..ranks).map(|rank| Self { rank, ranks }).collect())
    }

    /// This part of `whole` things that are shared out evenly.
    pub(crate) fn of(self, whole: usize) -> Range<usize> {
        let each = whole / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }

    /// This part's outputs of the output layer; none where there are fewer groups than ranks.
    pub(crate) fn columns(self, width: usize) -> Range<usize> {
        let groups = width.div_ceil(COLUMNS);
        let at = |rank: usize| (groups * rank / self.ranks * COLUMNS).min(width);
        at(self.rank)..at(self.rank + 1)
    }

    /// What the part is as a model of its own.
    pub(crate) fn parameters(self, p: &Parameters) -> Parameters {
        Parameters {
            heads: p.heads / self.ranks,
            kv_heads: p.kv_heads / self.ranks,
            feed_forward: p.feed_forward / self.ranks,
            ..p.clone()
        }
    }

    /// The classes of this part's KV heads.
    pub(crate) fn heads(self, map: &HeadMap) -> HeadMap {
        let of = |heads: &Vec<u8>| heads[self.of(heads.len())].to_vec();
        HeadMap { classes: map.classes.clone(), class_of: map.class_of.iter().map(of).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_whole_once() {
        for ranks in 1..=8 {
            let shards: Vec<Shard> = (0..ranks).map(|rank| Shard { rank, ranks }).collect();
            for width in [1, 31, 32, 512, 32_000, 128_256, 151_936, 151_665] {
                let mut at = 0;
                for shard in &shards {
                    let columns = shard.columns(width);
                    assert_eq!(columns.start, at, "{width} over {ranks}");
                    assert!(columns.start.is_multiple_of(COLUMNS) || columns.is_empty());
                    at = columns.end;
                }
                assert_eq!(at, width);
            }
            let all: Vec<usize> = shards.iter().flat_map(|s| s.of(ranks * 5)).collect();
            assert_eq!(all, (0..ranks * 5).collect::<Vec<_>>());
        }
    }

    #[test]
    fn heads_go_with_their_classes() {
        let map = HeadMap::half_windows(2, 4, 1, 2);
        let part = Shard { rank: 1, ranks: 2 }.heads(&map);
        assert_eq!(part.class_of, vec![vec![1, 1]; 2]);
        assert_eq!(Shard::WHOLE.heads(&map), map);
    }
}
