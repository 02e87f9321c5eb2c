use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::time::Instant;

use kvcache::{PrefixChain, PrefixRoot};
use proptest::prelude::*;
use request::TokenId;

use super::*;

const WITHIN: Duration = Duration::from_secs(1);

fn hashes(pages: u32) -> Vec<PageHash> {
    let tokens: Vec<TokenId> = (0..pages * 16).map(TokenId).collect();
    PrefixChain::new(PrefixRoot::salted("")).reach(&tokens).to_vec()
}

/// Two classes with pages of 5 + 3 and of 2 bytes.
fn tier(pages: u64) -> (FileTier, std::fs::File) {
    let folder = tempfile::tempdir().unwrap();
    let mut tier = FileTier::new(folder.path(), pages * 10, WITHIN).unwrap();
    let file = tier.file.as_ref().unwrap().try_clone().unwrap();
    tier.open(Ok(vec![vec![5, 3], vec![2]]));
    assert_eq!(tier.opened().get(), Some(&Ok(())));
    (tier, file)
}

fn page(n: u8) -> Vec<Vec<u8>> {
    vec![vec![n; 5], vec![n + 100; 3]]
}

fn wanted(hash: PageHash, index: u32) -> Fetch {
    Fetch { sequence: scheduler::SequenceId(1), index, class: ClassId(0), hash }
}

fn came(tier: &mut FileTier) -> Came {
    let start = Instant::now();
    loop {
        if let Some(came) = tier.poll() {
            return came;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_spilled_comes_back_and_the_oldest_goes_first() {
    let (mut tier, _) = tier(3);
    let hashes = hashes(4);
    for (n, hash) in hashes[..3].iter().enumerate() {
        assert_eq!(tier.put(ClassId(0), *hash, &page(n as u8)), Put::Taken { pushed_out: None });
    }
    assert_eq!(tier.put(ClassId(1), hashes[0], &[vec![7; 2]]), Put::Taken { pushed_out: None });
    assert!(tier.fetch(wanted(hashes[0], 0)));
    let Came::Page { wanted: back, layers } = came(&mut tier) else { panic!("no page") };
    assert_eq!((back, layers), (wanted(hashes[0], 0), page(0)));
    // The second is now the one that was not asked for the longest.
    assert_eq!(tier.put(ClassId(0), hashes[3], &page(3)), Put::Taken { pushed_out: Some(hashes[1]) });
    assert!(!tier.has(ClassId(0), &hashes[1]) && !tier.fetch(wanted(hashes[1], 1)));
    for (n, there) in [(0, true), (2, true), (3, true)] {
        assert_eq!(tier.has(ClassId(0), &hashes[n]), there);
        assert!(tier.fetch(wanted(hashes[n], n as u32)));
        let Came::Page { layers, .. } = came(&mut tier) else { panic!("no page") };
        assert_eq!(layers, page(n as u8));
    }
    assert_eq!(tier.put(ClassId(0), hashes[1], &[vec![0; 4], vec![0; 3]]), Put::Behind, "another size");
}

#[test]
fn a_flipped_bit_or_a_file_that_is_too_short_is_found() {
    let hashes = hashes(2);
    for short in [false, true] {
        let (mut tier, mut file) = tier(2);
        for hash in &hashes {
            tier.put(ClassId(0), *hash, &page(9));
        }
        // Once this was read, all before it was written.
        assert!(tier.fetch(wanted(hashes[1], 1)));
        assert!(matches!(came(&mut tier), Came::Page { .. }));
        if short {
            file.set_len(3).unwrap();
        } else {
            let mut byte = [0];
            file.seek(SeekFrom::Start(6)).unwrap();
            file.read_exact(&mut byte).unwrap();
            file.seek(SeekFrom::Start(6)).unwrap();
            file.write_all(&[byte[0] ^ 4]).unwrap();
        }
        assert!(tier.fetch(wanted(hashes[0], 0)));
        let why = if short { "io" } else { "checksum" };
        assert_eq!(came(&mut tier), Came::Damaged { wanted: wanted(hashes[0], 0), why });
        assert!(!tier.has(ClassId(0), &hashes[0]), "it is not asked for again");
    }
}

#[test]
fn what_cannot_work_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = FileTier::new(&folder.path().join("nowhere"), 1 << 20, WITHIN).unwrap_err();
    assert!(matches!(nowhere, NoTier::Folder { .. }) && nowhere.to_string().contains("nowhere"), "{nowhere}");
    let open = |sizes| {
        let mut tier = FileTier::new(folder.path(), 100, WITHIN).unwrap();
        tier.open(sizes);
        let told = tier.opened().get().cloned().unwrap();
        assert_eq!(tier.put(ClassId(0), hashes(1)[0], &[vec![0; 5]]), Put::Behind);
        told
    };
    assert_eq!(open(Ok(vec![vec![90], vec![11]])), Err(NoTier::TooSmall { bytes: 100, page: 101 }));
    assert_eq!(open(Err("pages".into())), Err(NoTier::Unsupported("pages".into())));
}

proptest! {
    /// Slots are never shared, and what is found is what a list of the latest would hold.
    #[test]
    fn slots_are_a_list_of_the_latest(asked in prop::collection::vec((0usize..12, 0u8..3), 0..80), slots in 1u32..6) {
        let hashes = hashes(12);
        let (mut real, mut naive) = (Slots::new(slots), Vec::<usize>::new());
        for (n, what) in asked {
            let there = naive.iter().position(|other| *other == n);
            match what {
                0 if there.is_none() => {
                    let (slot, pushed_out) = real.next();
                    let oldest = (naive.len() == slots as usize).then(|| naive.remove(0));
                    prop_assert_eq!(pushed_out, oldest.map(|n| hashes[n]));
                    real.fill(slot, hashes[n], n as u64);
                    naive.push(n);
                }
                2 => {
                    real.forget(&hashes[n]);
                    naive.retain(|other| *other != n);
                }
                _ => {
                    prop_assert_eq!(real.touch(&hashes[n]), there.is_some());
                    if let Some(at) = there {
                        naive.remove(at);
                        naive.push(n);
                    }
                }
            }
            let mut used: Vec<u32> = naive.iter().map(|n| real.find(&hashes[*n]).unwrap().0).collect();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), naive.len());
            prop_assert!(used.iter().all(|slot| *slot < slots));
            for (n, hash) in hashes.iter().enumerate() {
                prop_assert_eq!(real.find(hash).map(|(_, sum)| sum), naive.contains(&n).then_some(n as u64));
            }
        }
    }
}
