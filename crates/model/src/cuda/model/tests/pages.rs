//! Pages out of one model and into another, through the host's memory.

use super::*;
use crate::cuda::device_count;
use crate::cuda::testing::relative;

const LENGTH: u32 = 200;
/// Full pages of the prompt.
const SEALED: u32 = LENGTH / 16;

/// Where page `index` of a prompt is, in a model that orders its pages by `step`.
fn page(index: u32, step: u32) -> PageId {
    PageId((index * step + 5) % 64)
}

fn made(made: &Made, ordinals: Vec<usize>, dtype: Dtype, heads: Option<&HeadMap>) -> CudaModel {
    let pages = PageBudget::Pages(64);
    let options = Options { heads: heads.cloned(), pages, slots: 4, ..Made::options() };
    // Parts that share a GPU wait for each other: they must leave each other room.
    let rows = if ordinals.len() > device_count() { 64 } else { CudaOptions::default().rows };
    let cuda = CudaOptions { ordinals, dtype, rows, mode: Mode::Invariant, ..CudaOptions::default() };
    CudaModel::load(&made.path(), &options, &cuda).unwrap()
}

fn tables(classes: u8, step: u32) -> Vec<TableDelta> {
    let append = |class| {
        (0..=SEALED + 1).map(move |index| TableDelta {
            slot: Slot(0),
            class: ClassId(class),
            change: TableChange::Append(page(index, step)),
        })
    };
    (0..classes).flat_map(append).collect()
}

/// Logits of what follows the sealed pages, a few rows a step; all rows pick.
fn follow(model: &mut CudaModel, text: &[TokenId], mut deltas: Vec<TableDelta>) -> Vec<Vec<f32>> {
    let (mut all, mut at) = (Vec::new(), SEALED as usize * 16);
    while at < text.len() {
        let end = (at + 3).min(text.len());
        let step =
            Step { deltas: std::mem::take(&mut deltas), rows: rows(0, at as u32, &text[at..end], true) };
        all.extend(model.logits(&step).unwrap().into_iter().map(|(_, logits)| logits));
        at = end;
    }
    all
}

fn read(model: &mut CudaModel, class: u8, page: PageId) -> Vec<Vec<u8>> {
    let read = |layer| {
        let mut bytes = vec![0xee];
        model.export(ClassId(class), page, layer, &mut bytes).unwrap();
        assert_eq!(bytes.remove(0), 0xee, "what was there stays");
        bytes
    };
    (0..3).map(read).collect()
}

/// What one model computes another of other cuts goes on with: the same bits where both have as many GPUs. On one GPU
/// it holds both parts of a model that is cut in two.
#[test]
fn pages_of_one_model_are_another_ones() {
    if device().is_none() {
        return;
    }
    let second_gpu = 1 % device_count();
    let files = Made::new("llama", 64, 8, 4, false);
    let text = tokens(77, LENGTH + 12);
    let uneven = HeadMap {
        classes: vec![kvcache::HeadClass::Full, kvcache::HeadClass::Window { sink: 16, recent: 64 }],
        // No heads of a class in some layers, on some ranks.
        class_of: vec![vec![0, 1, 1, 0], vec![0, 0, 0, 0], vec![1, 1, 0, 0]],
    };
    for (dtype, heads) in [
        (Dtype::Bf16, None),
        (Dtype::F32, None),
        (Dtype::Bf16, Some(HeadMap::half_windows(3, 4, 16, 64))),
        (Dtype::F32, Some(uneven.clone())),
        (Dtype::F16, Some(uneven)),
    ] {
        let classes = heads.as_ref().map_or(1, |map| map.classes.len()) as u8;
        for (from, to) in [
            (vec![0], vec![second_gpu]),
            (vec![0], vec![0, second_gpu]),
            (vec![0, second_gpu], vec![0]),
            (vec![0, second_gpu], vec![second_gpu, 0]),
        ] {
            let what = format!("{dtype:?}, {classes} classes, {from:?} to {to:?}");
            println!("{what}");
            let mut first = made(&files, from.clone(), dtype, heads.as_ref());
            let prompt = &text[..SEALED as usize * 16];
            let step = Step { deltas: tables(classes, 3), rows: rows(0, 0, prompt, false) };
            let ticket = first.submit(&step).unwrap();
            first.collect(ticket, &[]).unwrap();
            let mut second = made(&files, to.clone(), dtype, heads.as_ref());
            for index in 0..SEALED {
                for class in 0..classes {
                    let layers = read(&mut first, class, page(index, 3));
                    let (class, to) = (ClassId(class), page(index, 7));
                    for (layer, bytes) in (0..).zip(&layers) {
                        second.import(class, to, layer, bytes).unwrap();
                    }
                    // As it was given, whatever the ranks are.
                    assert_eq!(read(&mut second, class.0, to), layers, "{what}: page {index}");
                }
            }
            let there = follow(&mut second, &text, tables(classes, 7));
            let here = follow(&mut first, &text, Vec::new());
            if from.len() == to.len() {
                assert!(there == here, "{what}: other bits");
            } else {
                // Sums over ranks are other bits: heads that were mixed up would be far off.
                let here: Vec<f64> = here.concat().into_iter().map(f64::from).collect();
                let off = relative(&there.concat(), &here);
                println!("{what}: {off:e}");
                assert!(off < if dtype == Dtype::F32 { 1e-4 } else { 0.04 }, "{what}: {off}");
            }
        }
    }
}

/// Layers that came are in force before anything else is done, whichever they are.
#[test]
fn layers_of_pages_come_and_go_in_any_order() {
    if device().is_none() {
        return;
    }
    let files = Made::new("llama", 64, 8, 4, false);
    let second_gpu = 1 % device_count();
    for ordinals in [vec![0], vec![0, second_gpu]] {
        let mut model = made(&files, ordinals, Dtype::Bf16, None);
        let mut random = Random::new(3);
        let size = 4 * 2 * 16 * 64 * 2;
        let mut expected: Vec<Vec<Vec<u8>>> = vec![vec![vec![0; size]; 3]; 4];
        for _ in 0..200 {
            let (at, layer) = (random.below(4), random.below(3));
            if random.below(3) == 0 {
                let mut found = Vec::new();
                model.export(ClassId(0), PageId(at), layer, &mut found).unwrap();
                assert_eq!(found, expected[at as usize][layer as usize], "layer {layer} of page {at}");
            } else {
                let bytes: Vec<u8> = (0..size).map(|_| random.bits() as u8 & 0x3f).collect();
                model.import(ClassId(0), PageId(at), layer, &bytes).unwrap();
                expected[at as usize][layer as usize] = bytes;
            }
        }
        for (at, layers) in (0..).zip(&expected) {
            assert_eq!(&read(&mut model, 0, PageId(at)), layers);
        }
        // A step reads what came before it, though its page is not whole.
        let text = tokens(5, 17);
        let table = (0..2).map(|index| TableDelta {
            slot: Slot(0),
            class: ClassId(0),
            change: TableChange::Append(PageId(40 + index)),
        });
        let step = Step { deltas: table.collect(), rows: rows(0, 0, &text, true) };
        model.logits(&step).unwrap();
        let again = Step { deltas: Vec::new(), rows: rows(0, 16, &text[16..], true) };
        let before = model.logits(&again).unwrap();
        assert_eq!(model.logits(&again).unwrap(), before);
        let other: Vec<u8> = read(&mut model, 0, PageId(0)).remove(1);
        model.import(ClassId(0), PageId(40), 1, &other).unwrap();
        assert_ne!(model.logits(&again).unwrap(), before);
    }
}

#[test]
fn pages_that_do_not_exist_or_have_another_size_are_refused() {
    if device().is_none() {
        return;
    }
    let files = Made::new("llama", 64, 8, 4, false);
    let mut model = made(&files, vec![0], Dtype::Bf16, None);
    assert_eq!(Model::layers(&model), 3);
    let size = 4 * 2 * 16 * 64 * 2;
    let outside = |what, index, bound| Err(ModelError::OutOfRange { what, index, bound });
    for (class, page, layer, error) in [
        (1, 0, 0, outside("head class", 1, 1)),
        (0, 64, 0, outside("page", 64, 64)),
        (0, 0, 3, outside("layer", 3, 3)),
    ] {
        let (class, page) = (ClassId(class), PageId(page));
        assert_eq!(model.export(class, page, layer, &mut Vec::new()), error);
        assert_eq!(model.import(class, page, layer, &vec![0; size]), error);
    }
    for found in [0, size - 1, size + 16] {
        let wrong = model.import(ClassId(0), PageId(0), 0, &vec![1; found]);
        assert_eq!(wrong, Err(ModelError::PageSize { expected: size, found }));
    }
    let mut bytes = Vec::new();
    model.export(ClassId(0), PageId(0), 0, &mut bytes).unwrap();
    assert_eq!(bytes, vec![0; size], "what was refused was not written");
}
