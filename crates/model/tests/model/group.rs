//! A model that several ranks share gives the bits of one rank.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::{Model as _, ModelError};
use gguf::TensorKind;
use kvcache::{ClassId, HeadClass, HeadMap, PageId};
use model::{CpuModel, CpuOptions, Group, GroupPlan, Options, PageBudget};
use scheduler::{Slot, TableChange, TableDelta};
use transport::Fabric;
use transport::local::Network;
use transport::tcp::TcpFabric;

use crate::bits::{assert_batch_equals_alone, assert_equal};
use crate::steps::{Sequences, logits};
use crate::tiny::{LAYERS, Shape, Tiny, tokens};

const START: Duration = Duration::from_secs(30);

fn plan(memory: &[u32]) -> GroupPlan {
    let said = "fp_test context 1024".to_owned();
    GroupPlan { memory: memory.to_vec(), said, start: START, within: Duration::from_secs(2) }
}

fn options(heads: Option<HeadMap>) -> Options {
    let pages = PageBudget::Pages(4 * 64);
    Options { context: None, vocab: None, slots: 4, pages, threads: 1, heads }
}

/// How the followers of a group ended.
type Ends = Vec<JoinHandle<Result<(), String>>>;

/// Rank 0 of a group over these fabrics, whose first is rank 0's; the others follow on threads.
fn group(path: &Path, options: &Options, memory: &[u32], fabrics: Vec<Box<dyn Fabric>>) -> (CpuModel, Ends) {
    let leader = fabrics[0].address();
    let mut fabrics = fabrics.into_iter();
    let first = fabrics.next().unwrap();
    let follow = |(index, fabric): (usize, Box<dyn Fabric>)| {
        let (path, options, leader, plan) = (path.to_owned(), options.clone(), leader.clone(), plan(memory));
        std::thread::spawn(move || {
            let group = Group::follow(&*fabric, &leader, index + 1, plan).map_err(|e| e.to_string())?;
            let model = CpuModel::load_in(&path, &options, &CpuOptions::default(), group);
            let mut model = model.map_err(|e| e.to_string())?;
            model.follow().map_err(|e| e.to_string())
        })
    };
    let ends = fabrics.enumerate().map(follow).collect();
    let group = Group::lead(&*first, plan(memory), 7).unwrap();
    (CpuModel::load_in(path, options, &CpuOptions::default(), group).unwrap(), ends)
}

fn local(network: &Network, ranks: usize) -> Vec<Box<dyn Fabric>> {
    (0..ranks).map(|rank| Box::new(network.fabric(&format!("rank-{rank}"))) as Box<dyn Fabric>).collect()
}

fn tcp(ranks: usize) -> Vec<Box<dyn Fabric>> {
    let fabric = || TcpFabric::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    (0..ranks).map(|_| Box::new(fabric()) as Box<dyn Fabric>).collect()
}

fn written(tiny: &Tiny) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny.bytes()).unwrap();
    file
}

/// Layer by layer another mix of full and window heads.
fn mixed(kv_heads: usize) -> HeadMap {
    HeadMap {
        classes: vec![HeadClass::Full, HeadClass::Window { sink: 3, recent: 20 }],
        class_of: (0..LAYERS).map(|l| (0..kv_heads).map(|h| ((l + h) % 2) as u8).collect()).collect(),
    }
}

#[test]
fn ranks_change_no_bit() {
    let tokens = tokens(300);
    for (architecture, kind, heads, kv_heads, memory, windows) in [
        ("llama", TensorKind::Q8_0, 4, 2, &[1, 1][..], false),
        ("qwen2", TensorKind::Q4_0, 6, 3, &[1, 1], false),
        ("qwen2", TensorKind::Q4_K, 4, 2, &[1, 1], true),
        ("qwen3", TensorKind::Q5_K, 4, 4, &[3, 1], false),
        ("llama", TensorKind::Q4_0, 6, 3, &[1, 1, 1], true),
    ] {
        let shape = Shape { heads, kv_heads, tied: kv_heads != 2, ..Shape::of(architecture, kind) };
        let file = written(&Tiny::new(shape));
        let options = options(windows.then(|| mixed(kv_heads)));
        let what = format!("{architecture} {kind}, {kv_heads} KV heads, {memory:?}, windows {windows}");
        let mut alone = CpuModel::load(file.path(), &options).unwrap();
        let expected = logits(&mut alone, &tokens, 300).unwrap();
        for over_tcp in [false, true] {
            let fabrics = if over_tcp { tcp(memory.len()) } else { local(&Network::new(), memory.len()) };
            let (mut model, ends) = group(file.path(), &options, memory, fabrics);
            // A group does not draft for itself.
            assert_eq!(*model.spec(), engine::ModelSpec { layered: None, ..alone.spec().clone() }, "{what}");
            assert!(model.weight_bytes() < alone.weight_bytes(), "{what}: a part of the weights");
            for chunk in [300, 23] {
                assert_equal(&logits(&mut model, &tokens, chunk).unwrap(), &expected, &what);
            }
            assert_batch_equals_alone(&mut model, &tokens[..40], &what);
            drop(model);
            for end in ends {
                assert_eq!(end.join().unwrap(), Ok(()), "{what}");
            }
        }
    }
}

/// With fewer KV heads than ranks a sequence is shared out: each rank has some of its spans.
#[test]
fn ranks_that_share_sequences_change_no_bit() {
    let tokens = tokens(1300);
    for (architecture, kind, heads, kv_heads, memory) in [
        ("llama", TensorKind::Q8_0, 4, 1, &[1, 1][..]),
        ("qwen2", TensorKind::Q4_0, 6, 3, &[1, 1, 1, 1]),
        ("qwen3", TensorKind::Q5_K, 4, 2, &[3, 1, 2]),
    ] {
        let shape = Shape { heads, kv_heads, ..Shape::of(architecture, kind) };
        let file = written(&Tiny::new(shape));
        let pages = PageBudget::Pages(4 * 96);
        let options = Options { pages, ..options(None) };
        let what = format!("{architecture} {kind}, {kv_heads} KV heads, {memory:?}");
        let mut alone = CpuModel::load(file.path(), &options).unwrap();
        let expected = logits(&mut alone, &tokens, 1300).unwrap();
        for over_tcp in [false, true] {
            let fabrics = if over_tcp { tcp(memory.len()) } else { local(&Network::new(), memory.len()) };
            let (mut model, ends) = group(file.path(), &options, memory, fabrics);
            assert!(model.weight_bytes() < alone.weight_bytes(), "{what}: a part of the weights");
            for chunk in [1300, 130] {
                assert_equal(&logits(&mut model, &tokens, chunk).unwrap(), &expected, &what);
            }
            assert_batch_equals_alone(&mut model, &tokens[..40], &what);
            // What lies on one rank alone is not handed over.
            assert_eq!(model.layers(), 0);
            let refused = model.export(ClassId(0), PageId(0), 0, &mut Vec::new()).unwrap_err();
            assert!(matches!(refused, ModelError::Unsupported { .. }), "{refused}");
            drop(model);
            for end in ends {
                assert_eq!(end.join().unwrap(), Ok(()), "{what}");
            }
        }
    }
}

/// Steps that rank 0 refuses reach nobody, and a step whose logits nobody collects disturbs none after it.
#[test]
fn what_rank_0_gives_up_leaves_the_ranks_in_step() {
    let file = written(&Tiny::new(Shape::of("llama", TensorKind::Q8_0)));
    let tokens = tokens(30);
    let expected = logits(&mut CpuModel::load(file.path(), &options(None)).unwrap(), &tokens, 30).unwrap();
    let (mut model, ends) = group(file.path(), &options(None), &[1, 1], local(&Network::new(), 2));
    let mut sequences = Sequences::new(1, 0);
    let mut step = sequences.step(&[(0, 0, &tokens[..10])]);
    let ticket = model.submit(&step).unwrap();
    let error = model.collect(ticket, &[]).unwrap_err();
    assert_eq!(error, ModelError::Draws { draws: 0, rows: 10 });
    // The engine would start over from here; the model only asks that the ticket is collected.
    let draws = vec![sampling::Draw::new(request::Sampling::GREEDY); 10];
    model.collect(engine::Ticket(1), &draws).unwrap();
    step.rows[3].position = 7;
    assert!(matches!(model.submit(&step), Err(ModelError::Unsupported { .. })));
    assert_equal(&logits(&mut model, &tokens, 30).unwrap(), &expected, "afterwards");
    drop(model);
    assert!(ends.into_iter().all(|end| end.join().unwrap() == Ok(())));
}

#[test]
fn a_lost_rank_ends_the_group_in_time() {
    let file = written(&Tiny::new(Shape::of("llama", TensorKind::Q8_0)));
    let tokens = tokens(30);
    for hang in [false, true] {
        let network = Network::new();
        let (mut model, ends) = group(file.path(), &options(None), &[1, 1], local(&network, 2));
        logits(&mut model, &tokens, 30).unwrap();
        if hang {
            network.hang("rank-1")
        } else {
            network.kill("rank-1")
        }
        let start = std::time::Instant::now();
        let error = logits(&mut model, &tokens, 30).unwrap_err();
        assert!(matches!(error, ModelError::Lost(_)) && error.to_string().contains("rank 1"), "{error}");
        assert_eq!(error.to_string().contains("no sign of life"), hang, "{error}");
        assert!(start.elapsed() < Duration::from_secs(if hang { 4 } else { 1 }), "{:?}", start.elapsed());
        drop(model);
        // It does not outlive its group, also where it cannot hear that rank 0 is gone.
        ends.into_iter().for_each(|end| drop(end.join().unwrap()));
    }
}

#[test]
fn ranks_that_were_told_different_things_do_not_meet() {
    let network = Network::new();
    let fabrics = local(&network, 2);
    let follower = network.fabric("stranger");
    let short = GroupPlan { start: Duration::from_millis(600), ..plan(&[1, 1]) };
    let leading = std::thread::spawn({
        let plan = short.clone();
        move || Group::lead(&*fabrics[0], plan, 7).map(|_| ()).unwrap_err().to_string()
    });
    let join = |rank, plan| Group::follow(&follower, "rank-0", rank, plan).unwrap_err().to_string();
    let other = GroupPlan { said: "fp_other".to_owned(), ..short.clone() };
    let refused = join(1, other);
    assert!(refused.contains("told different things") && refused.contains("fp_other"), "{refused}");
    let refused = join(1, plan(&[1, 2]));
    assert!(refused.contains("[1, 2]"), "{refused}");
    assert!(join(2, short).contains("followers are 1 to 1"));
    let error = leading.join().unwrap();
    assert!(error.contains("only 1 of 2 ranks came") && error.contains("told different things"), "{error}");
}

#[test]
fn what_a_group_cannot_share_is_refused() {
    let load = |tiny: Tiny, memory: &[u32], heads: Option<HeadMap>| {
        let file = written(&tiny);
        let network = Network::new();
        let fabrics = local(&network, memory.len());
        let leader = fabrics[0].address();
        let follow = |rank: usize| {
            let (fabric, leader, plan) = (network.fabric(&format!("f{rank}")), leader.clone(), plan(memory));
            std::thread::spawn(move || Group::follow(&fabric, &leader, rank, plan).map(drop))
        };
        let followers: Vec<_> = (1..memory.len()).map(follow).collect();
        let group = Group::lead(&*fabrics[0], plan(memory), 7).unwrap();
        followers.into_iter().for_each(|follower| follower.join().unwrap().unwrap());
        CpuModel::load_in(file.path(), &options(heads), &CpuOptions::default(), group)
            .unwrap_err()
            .to_string()
    };
    let quantised = || Tiny::new(Shape::of("llama", TensorKind::Q8_0));
    let error = load(quantised(), &[1, 1, 1], Some(mixed(2)));
    assert!(error.contains("2 KV heads for 3 ranks") && error.contains("window"), "{error}");
    let error = load(quantised(), &[1000, 1], None);
    assert!(error.contains("rank 1's share") && error.contains("too small"), "{error}");
    let error = load(Tiny::new(Shape::of("llama", TensorKind::F16)), &[1, 1], None);
    assert!(error.contains("quantised matrices") && error.contains("F16"), "{error}");
}

/// Pages of a group are those of one rank, byte for byte, and either takes the other's.
#[test]
fn pages_leave_and_enter_a_group_as_they_do_one_rank() {
    let tokens = tokens(70);
    for (kv_heads, memory, windows) in [(3, &[1, 1][..], false), (4, &[3, 1], true), (3, &[1, 1, 1], true)] {
        let shape = Shape { heads: 2 * kv_heads, kv_heads, ..Shape::of("qwen2", TensorKind::Q4_0) };
        let file = written(&Tiny::new(shape));
        let options = options(windows.then(|| mixed(kv_heads)));
        let what = format!("{kv_heads} KV heads, {memory:?}, windows {windows}");
        let mut alone = CpuModel::load(file.path(), &options).unwrap();
        let expected = logits(&mut alone, &tokens, 70).unwrap();
        let (mut shared, ends) = group(file.path(), &options, memory, tcp(memory.len()));
        assert_equal(&logits(&mut shared, &tokens, 70).unwrap(), &expected, &what);
        let classes = alone.spec().classes.len() as u8;
        let units = || {
            let pages = (0..classes).flat_map(|class| (0..4).map(move |page| (class, page)));
            pages.flat_map(|(class, page)| (0..LAYERS as u32).map(move |layer| (ClassId(class), page, layer)))
        };
        assert_eq!(shared.layers(), LAYERS as u32);
        let read = |model: &mut CpuModel, (class, page, layer)| {
            let mut bytes = Vec::new();
            model.export(class, PageId(page), layer, &mut bytes).unwrap();
            bytes
        };
        // Into pages that nobody wrote, on both sides crosswise; the rest of the text is computed over them.
        for unit @ (class, page, layer) in units() {
            let (ours, theirs) = (read(&mut alone, unit), read(&mut shared, unit));
            assert_eq!(ours, theirs, "{what}: {unit:?}");
            alone.import(class, PageId(page + 100), layer, &theirs).unwrap();
            shared.import(class, PageId(page + 100), layer, &ours).unwrap();
            let wrong = shared.import(class, PageId(page + 100), layer, &[0; 3]).unwrap_err();
            assert!(matches!(wrong, ModelError::PageSize { found: 3, .. }), "{wrong}");
        }
        for model in [&mut alone, &mut shared] {
            let mut sequences = Sequences::new(2, 200).of(model);
            let mut step = sequences.step(&[(1, 64, &tokens[64..])]);
            step.deltas.clear();
            for class in 0..classes {
                let share = (100..104).map(|page| TableChange::Share(PageId(page)));
                let table = share.chain([TableChange::Append(PageId(200))]);
                let delta = |change| TableDelta { slot: Slot(1), class: ClassId(class), change };
                step.deltas.extend(table.map(delta));
            }
            let found: Vec<_> = model.logits(&step).unwrap().into_iter().map(|(_, l)| l).collect();
            assert_equal(&found, &expected[64..], &what);
        }
        assert!(shared.export(ClassId(0), PageId(100_000), 0, &mut Vec::new()).is_err());
        drop(shared);
        assert!(ends.into_iter().all(|end| end.join().unwrap() == Ok(())), "{what}");
    }
}
