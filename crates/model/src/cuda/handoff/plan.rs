//! Which rank of one model sends what to which rank of another: pure, whatever the two are cut into.

use super::super::shard::Shard;
use kvcache::HeadMap;

/// Neighbouring KV heads of one class in one layer that go from one rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) source: usize,
    pub(crate) target: usize,
    pub(crate) layer: usize,
    pub(crate) class: usize,
    /// Place of the first among the source's heads of the class in the layer, and among the target's.
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) heads: usize,
}

/// All runs between a model over `sources` ranks and one over `targets`.
pub(crate) fn runs(map: &HeadMap, sources: usize, targets: usize) -> Vec<Run> {
    let mut all = Vec::new();
    for (layer, of) in map.class_of.iter().enumerate() {
        for class in 0..map.classes.len() {
            let heads: Vec<usize> = map.heads(layer, class).collect();
            for source in 0..sources {
                for target in 0..targets {
                    let theirs = Shard { rank: source, ranks: sources }.of(of.len());
                    let ours = Shard { rank: target, ranks: targets }.of(of.len());
                    let both = theirs.start.max(ours.start)..theirs.end.min(ours.end);
                    let first = heads.partition_point(|head| *head < both.start);
                    let end = heads.partition_point(|head| *head < both.end);
                    if first >= end {
                        continue;
                    }
                    let before = |start: usize| heads.partition_point(|head| *head < start);
                    let (from, to) = (first - before(theirs.start), first - before(ours.start));
                    all.push(Run { source, target, layer, class, from, to, heads: end - first });
                }
            }
        }
    }
    all
}

/// Consecutive units of one size that pass through the staging buffers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Of a unit.
    pub(crate) bytes: usize,
}

/// Bytes that pass through the staging buffers together when `total` do in all: a chunk costs some microseconds
/// besides its copy, and the first's gather and the last's scatter have no copy beside them.
pub(crate) fn chunk_bytes(total: usize) -> usize {
    (total / 8).clamp(8 << 20, 32 << 20)
}

/// Cuts units, given by their sizes in order, into chunks of at most `most` bytes, or of one unit.
pub(crate) fn chunks(sizes: &[usize], most: usize) -> Vec<Chunk> {
    let mut all: Vec<Chunk> = Vec::new();
    for (index, &bytes) in sizes.iter().enumerate() {
        match all.last_mut() {
            Some(last) if last.bytes == bytes && (last.count + 1) * bytes <= most => last.count += 1,
            _ => all.push(Chunk { first: index, count: 1, bytes }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use kvcache::HeadClass;

    use super::*;
    use crate::cuda::testing::Random;

    #[test]
    fn every_head_arrives_once_and_in_its_place() {
        let mut random = Random::new(std::process::id().into());
        for (sources, targets) in [(1, 1), (1, 2), (2, 1), (2, 4), (4, 2), (8, 1), (4, 8), (2, 2)] {
            let class_of = (0..3).map(|_| (0..8).map(|_| random.below(2) as u8).collect()).collect();
            let map = HeadMap {
                classes: vec![HeadClass::Full, HeadClass::Window { sink: 1, recent: 2 }],
                class_of,
            };
            let mut arrived = vec![vec![0; 8]; 3];
            for run in runs(&map, sources, targets) {
                let parts = |rank, ranks: usize, place: usize| {
                    let shard = Shard { rank, ranks };
                    let own = shard.heads(&map);
                    let heads: Vec<usize> =
                        own.heads(run.layer, run.class).map(|head| head + shard.of(8).start).collect();
                    heads[place..place + run.heads].to_vec()
                };
                let sent = parts(run.source, sources, run.from);
                assert_eq!(sent, parts(run.target, targets, run.to), "{run:?}");
                for head in sent {
                    assert_eq!(map.class_of[run.layer][head], run.class as u8);
                    arrived[run.layer][head] += 1;
                }
            }
            assert_eq!(arrived, vec![vec![1; 8]; 3], "{sources} to {targets}");
        }
    }

    #[test]
    fn chunks_hold_all_units_in_order() {
        assert_eq!(chunks(&[], 8), []);
        let chunk = |first, count, bytes| Chunk { first, count, bytes };
        assert_eq!(
            chunks(&[4, 4, 4, 2, 2, 16], 8),
            [chunk(0, 2, 4), chunk(2, 1, 4), chunk(3, 2, 2), chunk(5, 1, 16)]
        );
    }
}
