//! What waits to be sent to a drafter: one entry a session, commits merged.

use engine::CommitFrame;
use proto::frame::{FromWorker, Open};

/// Commits longer than this go in several frames.
const COMMIT_IDS: usize = proto::bounds::MAX_CHUNK_TOKENS;

/// What waits to be sent for one session.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) open: Option<Open>,
    pub(super) commit: Option<CommitFrame>,
    pub(super) credit: Option<u32>,
    pub(super) close: bool,
}

/// Adds `frame` to what waits: a commit that continues it extends it, one that starts earlier or
/// elsewhere (a resync) replaces it.
pub(super) fn merge(waiting: &mut Option<CommitFrame>, frame: CommitFrame) {
    match waiting {
        Some(old) if frame.at >= old.at && frame.at - old.at <= old.ids.len() as u32 => {
            old.ids.truncate((frame.at - old.at) as usize);
            old.ids.extend(frame.ids);
        }
        _ => *waiting = Some(frame),
    }
}

/// The frames of an entry, in the order in which the drafter must see them.
pub(super) fn frames(session: u64, entry: Outgoing) -> Vec<FromWorker> {
    let mut frames: Vec<FromWorker> = entry.open.map(Open::into_frames).unwrap_or_default();
    if let Some(CommitFrame { mut at, mut prefix_hash, ids }) = entry.commit {
        let mut hashes = speculation::PrefixHashes::resume(prefix_hash);
        for ids in ids.chunks(COMMIT_IDS) {
            frames.push(FromWorker::Commit { session, at, prefix_hash, ids: ids.to_vec() });
            hashes.extend(ids);
            (at, prefix_hash) = (at + ids.len() as u32, hashes.last());
        }
    }
    frames.extend(entry.credit.map(|window| FromWorker::Credit { session, window }));
    if entry.close {
        frames.push(FromWorker::Close { session });
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use request::TokenId;
    use speculation::PrefixHashes;

    fn frame(at: u32, ids: &[u32]) -> CommitFrame {
        CommitFrame { at, prefix_hash: u64::from(at), ids: ids.iter().copied().map(TokenId).collect() }
    }

    #[test]
    fn waiting_commits_merge() {
        for (old, new, merged) in [
            (frame(5, &[1, 2]), frame(7, &[3]), frame(5, &[1, 2, 3])),
            (frame(5, &[1, 2]), frame(6, &[2, 3]), frame(5, &[1, 2, 3])),
            (frame(5, &[1, 2]), frame(3, &[8, 9, 1, 2]), frame(3, &[8, 9, 1, 2])),
            (frame(5, &[1, 2]), frame(9, &[4]), frame(9, &[4])),
        ] {
            let mut waiting = Some(old);
            merge(&mut waiting, new);
            assert_eq!(waiting, Some(merged));
        }
    }

    #[test]
    fn a_long_commit_goes_in_frames_whose_hashes_continue() {
        let ids: Vec<TokenId> = (0..COMMIT_IDS as u32 + 3).map(TokenId).collect();
        let past = [TokenId(9)];
        let entry = Outgoing {
            commit: Some(CommitFrame {
                at: 1,
                prefix_hash: PrefixHashes::new(&past).last(),
                ids: ids.clone(),
            }),
            ..Outgoing::default()
        };
        let sent = frames(4, entry);
        assert_eq!(sent.len(), 2);
        let FromWorker::Commit { at, prefix_hash, ids: rest, .. } = &sent[1] else { panic!("{sent:?}") };
        let before = [past.as_slice(), &ids[..COMMIT_IDS]].concat();
        assert_eq!((*at as usize, *prefix_hash), (before.len(), PrefixHashes::new(&before).last()));
        assert_eq!(rest, &ids[COMMIT_IDS..]);
    }
}
