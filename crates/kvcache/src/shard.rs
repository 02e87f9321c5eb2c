//! Which rank of a group holds what: one pure function, the same on every rank.

use std::ops::Range;

use crate::{HeadClass, HeadMap};

/// A part of a model that is on one rank as a whole. Blocks are whole quantisation blocks of the matrices they cut,
/// so no sum of the arithmetic contract is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A KV head, its query heads, and their keys and values.
    KvHead { layer: u32, head: u32 },
    /// Keys and values of all heads at the positions of a span, of every sequence; where there are fewer KV heads than
    /// ranks.
    Span { span: u32 },
    /// Inner values of a feed-forward.
    FfnBlock { layer: u32, block: u32 },
    /// An expert of a mixture.
    Expert { layer: u32, expert: u32 },
    /// Values of the residual stream: outputs of the matrices that lead back to it.
    HiddenBlock { block: u32 },
    /// Outputs of the output layer.
    VocabBlock { block: u32 },
}

/// How many units a model has.
#[derive(Clone, Copy, Debug)]
pub struct Units<'a> {
    pub heads: &'a HeadMap,
    /// Of the longest sequence, [`Shards::SPAN`] positions each; 0: sequences are not shared out.
    pub spans: u32,
    /// Of each layer.
    pub ffn_blocks: u32,
    /// Of each layer; none in a dense model.
    pub experts: u32,
    pub hidden_blocks: u32,
    pub vocab_blocks: u32,
}

/// The owner of every unit.
///
/// Shares follow the ranks' memory. *Bound*: over the first layers of a model, however many, a rank's Full heads
/// differ from its share by at most `1 - 1/(2n - 2)` heads of n ranks, and so do its feed-forward blocks and its
/// experts: less than one, in all layers together as well (R. Tijdeman, *The chairman assignment problem*, 1980). Window
/// heads, which cost little, even out each layer: none gives a rank two heads more than its share. Hidden and vocabulary
/// blocks lie in one run a rank and differ by less than one.
///
/// With fewer KV heads than ranks in some layer, no head has an owner, but spans do: the same bound holds for the spans of a
/// sequence, however long. The first span of all sequences is one rank's: short ones are not shared out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    ranks: usize,
    /// `[layer][KV head]`; empty where spans are shared out instead.
    heads: Vec<Vec<usize>>,
    spans: Vec<usize>,
    /// `[layer]`: where each rank's run begins, and the end.
    ffn: Vec<Vec<u32>>,
    /// `[layer][expert]`.
    experts: Vec<Vec<usize>>,
    hidden: Vec<u32>,
    vocab: Vec<u32>,
}

/// Why a model cannot be shared out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unshardable {
    #[error("a group has 1 to {most} ranks, not {ranks}")]
    Ranks { ranks: usize, most: usize },
    #[error("rank {rank} of the group has no memory")]
    NoMemory { rank: usize },
    #[error(
        "layer {layer} has {heads} KV heads for {ranks} ranks; sharing a head's sequence out is not built here: use at \
         most as many ranks as KV heads"
    )]
    FewHeads { layer: usize, heads: usize, ranks: usize },
    #[error(
        "layer {layer} has {heads} KV heads for {ranks} ranks, and some heads have a window; only heads that see everything \
         are shared out by their sequence: use at most as many ranks as KV heads, or no windows"
    )]
    Windows { layer: usize, heads: usize, ranks: usize },
}

impl Shards {
    pub const MOST_RANKS: usize = 64;
    /// Positions whose keys and values are on one rank, where sequences are shared out: those whose softmax is taken
    /// together (`architecture.md`, *Arithmetic contract*).
    pub const SPAN: u32 = 512;

    /// Shares a model out to as many ranks as `memory` has entries; only their relation counts.
    pub fn new(units: &Units<'_>, memory: &[u32]) -> Result<Self, Unshardable> {
        let ranks = memory.len();
        if !(1..=Self::MOST_RANKS).contains(&ranks) {
            return Err(Unshardable::Ranks { ranks, most: Self::MOST_RANKS });
        }
        if let Some(rank) = memory.iter().position(|memory| *memory == 0) {
            return Err(Unshardable::NoMemory { rank });
        }
        let layers = &units.heads.class_of;
        let few = layers.iter().enumerate().find(|(_, heads)| heads.len() < ranks);
        if let Some((layer, heads)) = few {
            let heads = heads.len();
            if units.spans == 0 {
                return Err(Unshardable::FewHeads { layer, heads, ranks });
            }
            if !units.heads.is_full() {
                return Err(Unshardable::Windows { layer, heads, ranks });
            }
        }
        let mut turns = Turns::new(memory);
        let spans = if few.is_some() { units.spans } else { 0 };
        let mut ffn = Turns::new(memory);
        let mut experts = Turns::new(memory);
        Ok(Self {
            ranks,
            heads: if few.is_some() { Vec::new() } else { heads(units.heads, memory) },
            spans: (0..spans).map(|_| turns.next()).collect(),
            ffn: layers.iter().map(|_| runs(&ffn.counts(units.ffn_blocks))).collect(),
            experts: layers.iter().map(|_| (0..units.experts).map(|_| experts.next()).collect()).collect(),
            hidden: runs(&Turns::new(memory).counts(units.hidden_blocks)),
            vocab: runs(&Turns::new(memory).counts(units.vocab_blocks)),
        })
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The rank that holds a unit; `None` for one that the model does not have.
    pub fn owner(&self, unit: Unit) -> Option<usize> {
        let of = |all: &[Vec<usize>], layer: u32, index: u32| {
            all.get(layer as usize)?.get(index as usize).copied()
        };
        let within =
            |runs: &[u32], block: u32| runs.windows(2).position(|run| (run[0]..run[1]).contains(&block));
        match unit {
            Unit::KvHead { layer, head } => of(&self.heads, layer, head),
            Unit::Span { span } => self.spans.get(span as usize).copied(),
            Unit::Expert { layer, expert } => of(&self.experts, layer, expert),
            Unit::FfnBlock { layer, block } => within(self.ffn.get(layer as usize)?, block),
            Unit::HiddenBlock { block } => within(&self.hidden, block),
            Unit::VocabBlock { block } => within(&self.vocab, block),
        }
    }

    /// By span its owner, where sequences are shared out instead of heads.
    pub fn spans(&self) -> Option<&[usize]> {
        (!self.spans.is_empty()).then_some(&self.spans)
    }

    /// KV heads of a rank in a layer, in order.
    pub fn heads(&self, layer: usize, rank: usize) -> impl Iterator<Item = usize> {
        let owners = self.heads.get(layer).map_or(&[][..], Vec::as_slice);
        owners.iter().enumerate().filter(move |(_, owner)| **owner == rank).map(|(head, _)| head)
    }

    /// Feed-forward blocks of a rank in a layer.
    pub fn ffn(&self, layer: usize, rank: usize) -> Range<u32> {
        self.ffn.get(layer).map_or(0..0, |runs| run(runs, rank))
    }

    pub fn hidden(&self, rank: usize) -> Range<u32> {
        run(&self.hidden, rank)
    }

    pub fn vocab(&self, rank: usize) -> Range<u32> {
        run(&self.vocab, rank)
    }
}

fn run(runs: &[u32], rank: usize) -> Range<u32> {
    match runs.get(rank..rank + 2) {
        Some(&[from, to]) => from..to,
        _ => 0..0,
    }
}

/// Counts to where runs begin, and the end.
fn runs(counts: &[u32]) -> Vec<u32> {
    let mut at = 0;
    let ends = counts.iter().map(|count| {
        at += count;
        at
    });
    std::iter::once(0).chain(ends).collect()
}

fn heads(map: &HeadMap, memory: &[u32]) -> Vec<Vec<usize>> {
    // Where nothing is Full, all heads cost the same.
    let none = !map
        .class_of
        .iter()
        .flatten()
        .any(|class| map.classes.get(usize::from(*class)) == Some(&HeadClass::Full));
    let total: i128 = memory.iter().map(|memory| i128::from(*memory)).sum();
    let mut turns = Turns::new(memory);
    let mut all = Vec::with_capacity(map.class_of.len());
    for classes in &map.class_of {
        let full = |class: &u8| none || map.classes.get(usize::from(*class)) == Some(&HeadClass::Full);
        let mut owners = vec![0; classes.len()];
        let mut counts = vec![0i128; memory.len()];
        for (owner, _) in owners.iter_mut().zip(classes).filter(|(_, class)| full(class)) {
            *owner = turns.next();
            counts[*owner] += 1;
        }
        let missing = |counts: &[i128], rank: usize| {
            i128::from(memory[rank]) * classes.len() as i128 - counts[rank] * total
        };
        for (owner, _) in owners.iter_mut().zip(classes).filter(|(_, class)| !full(class)) {
            // Of equal ones the last: the first heads of a layer tend to go to the first ranks.
            *owner = (0..memory.len()).max_by_key(|rank| missing(&counts, *rank)).unwrap_or(0);
            counts[*owner] += 1;
        }
        all.push(owners);
    }
    all
}

/// Whose turn it is, so that after any number of turns everybody had his share, less than one off (Tijdeman 1980).
struct Turns {
    shares: Vec<i128>,
    total: i128,
    had: Vec<i128>,
    turns: i128,
}

impl Turns {
    fn new(shares: &[u32]) -> Self {
        Self {
            shares: shares.iter().map(|share| i128::from(*share)).collect(),
            total: shares.iter().map(|share| i128::from(*share)).sum(),
            had: vec![0; shares.len()],
            turns: 0,
        }
    }

    fn next(&mut self) -> usize {
        self.turns += 1;
        // Times the total: what is due less what was had. All numbers stay below 2^110.
        let due = |i: usize| self.shares[i] * self.turns - self.had[i] * self.total;
        let slack = 2 * self.shares.len() as i128 - 2;
        let next = if slack == 0 {
            0
        } else {
            // Of those to whom at least 1 / (2n - 2) is due, the one that is the first to be owed too much.
            let waits = |i: usize| (slack - 1) * self.total - slack * due(i);
            let may = (0..self.shares.len()).filter(|i| slack * due(*i) >= self.total);
            may.min_by(|a, b| (waits(*a) * self.shares[*b]).cmp(&(waits(*b) * self.shares[*a]))).unwrap_or(0)
        };
        self.had[next] += 1;
        next
    }

    /// The next so many turns, counted.
    fn counts(&mut self, turns: u32) -> Vec<u32> {
        let mut counts = vec![0; self.shares.len()];
        for _ in 0..turns {
            counts[self.next()] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Off its share times the total, so that all is whole numbers: `count * total - share * all`.
    fn off(count: usize, share: u32, all: usize, total: u64) -> i128 {
        count as i128 * i128::from(total) - i128::from(share) * all as i128
    }

    #[test]
    fn three_heads_over_two_ranks_take_turns() {
        let map = HeadMap::uniform(HeadClass::Full, 4, 3);
        let units =
            Units { heads: &map, spans: 9, ffn_blocks: 5, experts: 0, hidden_blocks: 36, vocab_blocks: 7 };
        let shards = Shards::new(&units, &[1, 1]).unwrap();
        let counts: Vec<usize> = (0..4).map(|layer| shards.heads(layer, 0).count()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 6);
        assert!(counts.iter().all(|count| [1, 2].contains(count)), "{counts:?}");
        let ffn: Vec<u32> = (0..4).map(|layer| shards.ffn(layer, 1).len() as u32).collect();
        assert_eq!(ffn.iter().sum::<u32>(), 10);
        assert_eq!((shards.hidden(0), shards.hidden(1)), (0..18, 18..36));
        // One Full and one window head a layer: each rank has one of both, and Full heads alternate.
        let map = HeadMap::half_windows(6, 2, 1, 2);
        let shards = Shards::new(&Units { heads: &map, ..units }, &[7, 7]).unwrap();
        for rank in 0..2 {
            assert!((0..6).all(|layer| shards.heads(layer, rank).count() == 1));
            assert_eq!((0..6).filter(|layer| shards.heads(*layer, rank).next() == Some(0)).count(), 3);
        }
    }

    #[test]
    fn what_cannot_be_shared_out_is_refused() {
        let map = HeadMap::uniform(HeadClass::Full, 2, 2);
        let units =
            Units { heads: &map, spans: 0, ffn_blocks: 1, experts: 0, hidden_blocks: 1, vocab_blocks: 1 };
        assert_eq!(Shards::new(&units, &[]), Err(Unshardable::Ranks { ranks: 0, most: 64 }));
        assert_eq!(Shards::new(&units, &[1, 0]), Err(Unshardable::NoMemory { rank: 1 }));
        let error = Shards::new(&units, &[1; 3]).unwrap_err();
        assert_eq!(error, Unshardable::FewHeads { layer: 0, heads: 2, ranks: 3 });
        assert!(error.to_string().contains("not built"), "{error}");
        Shards::new(&units, &[u32::MAX; 2]).unwrap();
        let map = HeadMap::half_windows(2, 2, 1, 2);
        let windows = Units { heads: &map, spans: 4, ..units };
        let error = Shards::new(&windows, &[1; 3]).unwrap_err();
        assert_eq!(error, Unshardable::Windows { layer: 0, heads: 2, ranks: 3 });
        Shards::new(&windows, &[1; 2]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn every_span_has_one_owner_and_the_bound_holds(
            memory in prop::collection::vec(prop_oneof![1u32..4, 1u32..100, 1u32..], 2..9),
            heads in any::<prop::sample::Index>(), layers in 1usize..5, spans in 1u32..300, ffn_blocks in 0u32..40,
        ) {
            let (ranks, kv_heads) = (memory.len(), 1 + heads.index(memory.len() - 1));
            let map = HeadMap::uniform(HeadClass::Full, layers, kv_heads);
            let units = Units { heads: &map, spans, ffn_blocks, experts: 0, hidden_blocks: 9, vocab_blocks: 9 };
            let shards = Shards::new(&units, &memory).unwrap();
            let total: u64 = memory.iter().map(|memory| u64::from(*memory)).sum();
            let n = ranks as i128;
            let mut counts = vec![0; ranks];
            for span in 0..spans {
                let owner = shards.owner(Unit::Span { span }).unwrap();
                prop_assert_eq!(shards.spans().unwrap()[span as usize], owner);
                counts[owner] += 1;
                // Of a sequence that ends here.
                for (count, share) in counts.iter().zip(&memory) {
                    let off = off(*count, *share, span as usize + 1, total);
                    prop_assert!(off.abs() * (2 * n - 2) <= (2 * n - 3) * i128::from(total), "{:?}", counts);
                }
            }
            prop_assert_eq!(shards.owner(Unit::Span { span: spans }), None);
            // What is shared out by spans is not by heads; everything else is as ever.
            prop_assert_eq!(shards.owner(Unit::KvHead { layer: 0, head: 0 }), None);
            prop_assert!((0..ranks).all(|rank| shards.heads(0, rank).next().is_none()));
            let blocks = (0..ffn_blocks).map(|block| shards.owner(Unit::FfnBlock { layer: 0, block }));
            prop_assert!(blocks.into_iter().all(|owner| owner.is_some_and(|rank| rank < ranks)));
        }

        #[test]
        fn every_unit_has_one_owner_and_the_bound_holds(
            memory in prop::collection::vec(prop_oneof![1u32..4, 1u32..100, 1u32..], 1..9),
            layers in 1usize..12, extra in 0usize..6, windows in any::<[u64; 12]>(), all_full: bool,
            ffn_blocks in 0u32..40, experts in 0u32..12, hidden_blocks in 0u32..50, vocab_blocks in 0u32..90,
        ) {
            let (ranks, kv_heads) = (memory.len(), memory.len() + extra);
            let class = |layer: usize, head: usize| u8::from(!all_full && windows[layer] >> head & 1 == 1);
            let map = HeadMap {
                classes: vec![HeadClass::Full, HeadClass::Window { sink: 1, recent: 2 }],
                class_of: (0..layers).map(|l| (0..kv_heads).map(|h| class(l, h)).collect()).collect(),
            };
            let units = Units { heads: &map, spans: 7, ffn_blocks, experts, hidden_blocks, vocab_blocks };
            let shards = Shards::new(&units, &memory).unwrap();
            let total: u64 = memory.iter().map(|memory| u64::from(*memory)).sum();
            // (2n - 2) times what a rank is off is at most (2n - 3) times one unit.
            let n = ranks as i128;
            let bound = |count, share, all| {
                off(count, share, all, total).abs() * (2 * n - 2).max(1) <= (2 * n - 3).max(0) * i128::from(total)
            };
            for (rank, share) in memory.iter().copied().enumerate() {
                let (mut full, mut all_full, mut ffn, mut experts_) = (0, 0, 0, 0);
                for layer in 0..layers {
                    let l = layer as u32;
                    let owned: Vec<usize> = (0..kv_heads)
                        .filter(|h| shards.owner(Unit::KvHead { layer: l, head: *h as u32 }) == Some(rank))
                        .collect();
                    prop_assert_eq!(&owned, &shards.heads(layer, rank).collect::<Vec<_>>());
                    full += owned.iter().filter(|head| class(layer, **head) == 0).count();
                    all_full += (0..kv_heads).filter(|head| class(layer, *head) == 0).count();
                    let none = !map.class_of.iter().flatten().any(|class| *class == 0);
                    prop_assert!(none || bound(full, share, all_full), "Full heads up to layer {}", layer);
                    let more = off(owned.len(), share, kv_heads, total);
                    prop_assert!(more < 2 * i128::from(total), "layer {}: {:?}", layer, owned);
                    ffn += (0..ffn_blocks)
                        .filter(|block| shards.owner(Unit::FfnBlock { layer: l, block: *block }) == Some(rank))
                        .inspect(|block| assert!(shards.ffn(layer, rank).contains(block)))
                        .count();
                    prop_assert!(bound(ffn, share, (layer + 1) * ffn_blocks as usize));
                    experts_ += (0..experts)
                        .filter(|expert| shards.owner(Unit::Expert { layer: l, expert: *expert }) == Some(rank))
                        .count();
                    prop_assert!(bound(experts_, share, (layer + 1) * experts as usize));
                }
                assert!(bound(shards.hidden(rank).len(), share, hidden_blocks as usize));
                assert!(bound(shards.vocab(rank).len(), share, vocab_blocks as usize));
            }
            // One owner each: `owner` names one, and no unit beyond the model has any.
            let owned = |unit| shards.owner(unit).is_some_and(|rank| rank < ranks);
            prop_assert_eq!((shards.spans(), shards.owner(Unit::Span { span: 0 })), (None, None));
            for layer in 0..layers as u32 {
                assert!((0..kv_heads as u32).all(|head| owned(Unit::KvHead { layer, head })));
                assert!((0..ffn_blocks).all(|block| owned(Unit::FfnBlock { layer, block })));
                assert!((0..experts).all(|expert| owned(Unit::Expert { layer, expert })));
                assert!(!owned(Unit::FfnBlock { layer, block: ffn_blocks }));
            }
            assert!((0..hidden_blocks).all(|block| owned(Unit::HiddenBlock { block })));
            assert!((0..vocab_blocks).all(|block| owned(Unit::VocabBlock { block })));
            assert!(!owned(Unit::VocabBlock { block: vocab_blocks }));
        }
    }
}
