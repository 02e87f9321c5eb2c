use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

use super::*;
use crate::cuda::testing::{self, Random};
use crate::cuda::{CudaOptions, KvKept, Mode};
use crate::{Options, PageBudget};
use engine::Model;

const POSITIONS: u32 = 200;
const PAGES: u32 = 13;

/// A small model whose weights follow from its seed, whatever it is cut into.
fn model(ordinals: Vec<usize>, heads: Option<HeadMap>, kv: KvKept) -> CudaModel {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 64, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false,
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let options = Options {
        context: Some(1024),
        vocab: None,
        slots: 4,
        pages: PageBudget::Pages(64),
        threads: 1,
        heads,
    };
    let cuda = CudaOptions { ordinals, kv, mode: Mode::Invariant, ..CudaOptions::default() };
    CudaModel::dummy(&path, 11, &options, &cuda).unwrap()
}

fn row(token: u32, position: u32, pick: bool) -> Row {
    Row {
        slot: Slot(0),
        token: RowToken::Known(TokenId(token)),
        position,
        parent: Parent::Previous,
        layers: Layers::All,
        output: if pick { Output::Pick } else { Output::None },
        adapter: None,
    }
}

/// Page `index` of slot 0, in an order of the model's own.
fn page(index: u32, step: u32) -> PageId {
    PageId((index * step + 5) % 64)
}

fn tables(classes: u8, step: u32) -> Vec<TableDelta> {
    let delta = |class, change| TableDelta { slot: Slot(0), class: ClassId(class), change };
    let all = |class| (0..=PAGES).map(move |index| delta(class, TableChange::Append(page(index, step))));
    (0..classes).flat_map(all).collect()
}

fn say(model: &mut CudaModel, step: &Step) -> Vec<TokenId> {
    let picks = step.rows.iter().filter(|row| row.output == Output::Pick).count();
    let ticket = model.submit(step).unwrap();
    let picks = model.collect(ticket, &vec![Draw::new(Sampling::GREEDY); picks]).unwrap();
    picks.0.into_iter().map(|pick| pick.drawn.token).collect()
}

/// Tokens after a prompt of which all but the last `POSITIONS % 16` are in the pages already.
fn decode(model: &mut CudaModel, prompt: &[u32], computed: u32, mut deltas: Vec<TableDelta>) -> Vec<TokenId> {
    let mut said = Vec::new();
    let mut rows: Vec<Row> =
        (computed..POSITIONS).map(|i| row(prompt[i as usize], i, i + 1 == POSITIONS)).collect();
    for position in POSITIONS..POSITIONS + 8 {
        let step = Step { deltas: std::mem::take(&mut deltas), rows };
        let token = say(model, &step)[0];
        said.push(token);
        rows = vec![row(token.0, position, true)];
    }
    said
}

/// Prefill on one model, decode on another of other cuts: the same text as from one, and spoiled pages are seen.
#[test]
fn what_one_model_computes_another_goes_on_with() {
    if testing::device().is_none() {
        return;
    }
    let gpus = crate::cuda::device_count();
    let gpu = |rank: usize| rank % gpus;
    let mut random = Random::new(std::process::id().into());
    let prompt: Vec<u32> = (0..POSITIONS).map(|_| random.below(512)).collect();
    let halves = HeadMap::half_windows(3, 4, 16, 64);
    for (heads, kv) in [
        (None, KvKept::Dtype),
        (Some(halves.clone()), KvKept::Dtype),
        (None, KvKept::Fp8),
        (Some(halves), KvKept::Fp8),
    ] {
        let classes = heads.as_ref().map_or(1, |map| map.classes.len()) as u8;
        // One model alone, and one over two GPUs: each pair's decoder says what it would say by itself.
        for (from, to) in [
            (vec![0], vec![gpu(1)]),
            (vec![0, gpu(1)], vec![gpu(1)]),
            (vec![0], vec![0, gpu(1)]),
            (vec![0, gpu(1)], vec![gpu(1), 0]),
        ] {
            let name = format!("{from:?} to {to:?}, {classes} classes, {kv:?}");
            // Parts that share all of one GPU may wait for each other in vain.
            if gpus == 1 && from.len() + to.len() > 2 {
                println!("not run: {name} takes two GPUs");
                continue;
            }
            // The last 8 positions are not in a sealed page.
            let sealed = POSITIONS / 16 * 16;
            let mut first = model(from.clone(), heads.clone(), kv);
            let mut deltas = tables(classes, 3);
            let rows = (0..sealed).map(|i| row(prompt[i as usize], i, false)).collect();
            say(&mut first, &Step { deltas: std::mem::take(&mut deltas), rows });
            let mut second = model(to.clone(), heads.clone(), kv);
            let mut way = HandOff::between(&first, &second, 64).unwrap();
            let moves: Vec<PageMove> = (0..classes)
                .flat_map(|class| {
                    (0..sealed / 16).map(move |index| PageMove {
                        class: ClassId(class),
                        from: page(index, 3),
                        to: page(index, 7),
                    })
                })
                .collect();
            let moved = way.move_pages(&first, &second, &moves).unwrap();
            assert!(moved.intact.iter().all(|intact| *intact) && moved.intact.len() == moves.len(), "{name}");
            // Every KV head of every layer of 12 pages, whatever the cuts.
            let position = if kv == KvKept::Fp8 { 2 * (64 + 4) + 16 } else { 2 * 64 * 2 };
            assert_eq!(moved.bytes, 12 * 3 * 4 * 16 * position, "{name}");
            let there = decode(&mut second, &prompt, sealed, tables(classes, 7));
            let here = decode(&mut first, &prompt, sealed, Vec::new());
            if from.len() == to.len() {
                assert_eq!(there, here, "{name}");
            } else {
                // Other sums over ranks are other bits: what arrived is checked by its pages' effect being near.
                let same = there.iter().zip(&here).take_while(|(a, b)| a == b).count();
                println!("{name}: {same} of {} tokens equal", here.len());
                assert!(same > 0, "{name}: {there:?} {here:?}");
            }
            way.spoil = true;
            let moved = way.move_pages(&first, &second, &moves).unwrap();
            let spoiled = moved.intact.iter().filter(|intact| !**intact).count();
            assert!(spoiled > 0, "{name}: a spoiled page went unseen");
            assert!(spoiled <= way.lanes.len(), "{name}: {spoiled} pages for one spoiled unit a lane");
        }
    }
}

#[test]
fn models_of_unlike_pages_are_refused() {
    if testing::device().is_none() {
        return;
    }
    let make = |heads, kv| model(vec![0], heads, kv);
    let a = make(None, KvKept::Dtype);
    let b = make(Some(HeadMap::half_windows(3, 4, 16, 64)), KvKept::Dtype);
    for other in [&b, &make(None, KvKept::Fp8)] {
        let error = HandOff::between(&a, other, 1).unwrap_err();
        assert!(error.to_string().contains("unlike pages"), "{error}");
    }
    let mut way = HandOff::between(&a, &a, 1).unwrap();
    let far = PageMove { class: ClassId(0), from: PageId(64), to: PageId(0) };
    assert!(matches!(way.move_pages(&a, &a, &[far]), Err(ModelError::OutOfRange { .. })));
    let class = PageMove { class: ClassId(1), from: PageId(0), to: PageId(0) };
    assert!(way.move_pages(&a, &a, &[class]).is_err());
    assert!(way.move_pages(&a, &b, &[]).is_err(), "another model than it was made for");
}
