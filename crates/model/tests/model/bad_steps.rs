//! Steps that are refused, by name and without a trace.

use engine::{Model, ModelError};
use gguf::TensorKind;
use kvcache::{ClassId, PageId};
use request::{Sampling, SamplingParams, TokenId};
use sampling::{Draw, How};
use scheduler::{AdapterId, Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

use crate::steps::{Sequences, append, logits, row};
use crate::tiny::{CONTEXT, Shape, Tiny, VOCAB, tokens};

#[test]
fn wrong_steps_are_refused_by_name_and_leave_no_trace() {
    let tiny = Tiny::new(Shape::of("llama", TensorKind::Q8_0));
    let mut model = tiny.load(1).unwrap();
    let expected = logits(&mut tiny.load(1).unwrap(), &tokens(6), 6).unwrap();
    let mut sequences = Sequences::new(1, 64);
    let tokens = tokens(6);
    model.logits(&sequences.step(&[(0, 0, &tokens[..5])])).unwrap();

    let good = row(0, 5, 1);
    let unsupported = |what| ModelError::Unsupported { what };
    let outside = |what, index, bound| ModelError::OutOfRange { what, index, bound };
    let rows = |rows: &[Row]| Step { deltas: vec![], rows: rows.to_vec() };
    let delta = |change| Step { deltas: vec![TableDelta { change, ..append(0, 0) }], rows: vec![good] };
    for (step, error) in [
        (rows(&[Row { token: RowToken::FromStep(0), ..good }]), unsupported("tokens of the step before")),
        (rows(&[Row { parent: Parent::Row(0), ..good }]), unsupported("trees without a row before them")),
        (rows(&[good, Row { parent: Parent::Row(7), ..row(0, 6, 1) }]), outside("parent row", 7, 1)),
        (
            rows(&[good, Row { parent: Parent::Row(0), ..row(0, 7, 1) }]),
            unsupported("tree rows that are not right behind their parents, or too far"),
        ),
        (
            rows(&[good, row(0, 6, 1), Row { parent: Parent::Row(0), ..row(0, 6, 1) }]),
            unsupported("tree rows behind another sequence or an earlier position"),
        ),
        (
            rows(&[good, Row { parent: Parent::Row(0), ..row(0, 6, 1) }, row(0, 7, 1)]),
            unsupported("rows of a slot that are not consecutive positions"),
        ),
        (delta(TableChange::Keep { row: 0, from: 5 }), outside("kept row", 0, 0)),
        (rows(&[Row { layers: Layers::First(1), ..good }]), unsupported("early exit")),
        (rows(&[Row { output: Output::Hidden(1), ..good }]), unsupported("hidden states")),
        (rows(&[Row { output: Output::Pooled, ..good }]), unsupported("pooled embeddings")),
        (rows(&[Row { adapter: Some(AdapterId(0)), ..good }]), unsupported("adapters")),
        (rows(&[good, good]), unsupported("rows of a slot that are not consecutive positions")),
        (rows(&[good, row(0, 7, 1)]), unsupported("rows of a slot that are not consecutive positions")),
        (
            Step { deltas: vec![append(1, 9)], rows: vec![good, row(1, 0, 1), row(0, 6, 1)] },
            unsupported("rows of a slot that are apart in the step"),
        ),
        (rows(&[row(4, 0, 1)]), outside("slot", 4, 4)),
        (rows(&[row(0, CONTEXT, 1)]), outside("position", CONTEXT.into(), CONTEXT.into())),
        (
            rows(&[Row { token: RowToken::Known(TokenId(VOCAB as u32)), ..good }]),
            outside("token", VOCAB as u64, VOCAB as u64),
        ),
        (rows(&[row(1, 0, 1)]), ModelError::NoPage { slot: 1, position: 0 }),
        (rows(&[row(0, 16, 1)]), ModelError::NoPage { slot: 0, position: 16 }),
        (
            Step { deltas: vec![append(1, 9)], rows: vec![row(1, 40, 1)] },
            ModelError::NoPage { slot: 1, position: 16 },
        ),
        (delta(TableChange::Append(PageId(256))), outside("page", 256, 256)),
        (delta(TableChange::Share(PageId(256))), outside("page", 256, 256)),
        (delta(TableChange::Truncate(2)), outside("page index", 2, 2)),
        (delta(TableChange::Drop(1)), outside("page index", 1, 1)),
        (delta(TableChange::Drop(0)), ModelError::NoPage { slot: 0, position: 0 }),
        (delta(TableChange::Clear), ModelError::NoPage { slot: 0, position: 0 }),
        (
            Step { deltas: vec![TableDelta { class: ClassId(1), ..append(0, 0) }], rows: vec![] },
            outside("head class", 1, 1),
        ),
        (
            Step { deltas: vec![TableDelta { slot: Slot(9), ..append(0, 0) }], rows: vec![] },
            outside("slot", 9, 4),
        ),
        (
            Step {
                deltas: vec![TableDelta { change: TableChange::Hole, ..append(1, 0) }],
                rows: vec![row(1, 0, 1)],
            },
            ModelError::NoPage { slot: 1, position: 0 },
        ),
        (
            Step { deltas: (0..129).map(|_| append(2, 0)).collect(), rows: vec![] },
            outside("page index", 128, 128),
        ),
    ] {
        assert_eq!(model.submit(&step).unwrap_err(), error, "{step:?}");
    }
    let last = model.logits(&sequences.step(&[(0, 5, &tokens[5..])])).unwrap();
    assert_eq!(last[0].1, expected[5], "a refused step left something behind");
}

#[test]
fn a_step_is_collected_once_before_the_next() {
    let mut model = Tiny::new(Shape::of("llama", TensorKind::F32)).load(1).unwrap();
    let mut sequences = Sequences::new(1, 64);
    let ticket = model.submit(&sequences.step(&[(0, 0, &[1, 2])])).unwrap();
    let next = sequences.step(&[(0, 2, &[3])]);
    assert!(matches!(model.submit(&next), Err(ModelError::Unsupported { .. })));
    let draws = [greedy(), greedy()];
    let wrong = engine::Ticket(ticket.0 + 1);
    assert!(matches!(model.collect(wrong, &draws), Err(ModelError::Device(_))));
    let few = model.collect(engine::Ticket(ticket.0), &draws[..1]);
    assert_eq!(few, Err(ModelError::Draws { draws: 1, rows: 2 }));
    assert_eq!(model.collect(ticket, &draws).unwrap().0.len(), 2);
    let ticket = model.submit(&next).unwrap();
    assert_eq!(model.collect(ticket, &draws[..1]).unwrap().0.len(), 1);
}

fn greedy() -> Draw {
    Draw::new(Sampling::GREEDY)
}

/// Picks are what `sampling` draws from the logits, for the position after the row's, each row with the
/// draw that was given for it.
#[test]
fn picks_are_drawn_from_the_rows_logits() {
    let tiny = Tiny::new(Shape::of("qwen2", TensorKind::Q5_0));
    let (mut model, mut twin) = (tiny.load(2).unwrap(), tiny.load(1).unwrap());
    let mut step = Sequences::new(1, 64).step(&[(0, 0, &tokens(60))]);
    for row in &mut step.rows {
        row.output = if row.position % 3 == 0 { Output::None } else { Output::Pick };
    }
    let draws: Vec<Draw> = (0..40)
        .map(|i| {
            let mut draw =
                Draw::new(Sampling { params: SamplingParams::at(1.0), seed: i / 7, choice: i as u32 % 3 });
            draw.logprobs = (i % 4 == 0).then_some(i as u8 / 4);
            draw.edit.banned = (0..i as u32).map(TokenId).collect();
            if i % 5 == 0 {
                draw.how = How::Top;
            }
            draw
        })
        .collect();
    let ticket = model.submit(&step).unwrap();
    let picks = model.collect(ticket, &draws).unwrap().0;
    assert_eq!(picks.len(), 40);
    for ((pick, draw), (row, logits)) in picks.into_iter().zip(&draws).zip(twin.logits(&step).unwrap()) {
        assert_eq!(pick.row, row);
        assert_eq!(Some(pick.drawn), sampling::draw(&logits, draw, row + 1));
    }
}
