use kvcache::{ClassId, HeadClass, PageId};
use request::TokenId;
use scheduler::TableDelta;

use super::super::attention::{ManyRows, TileRows};
use super::super::batch::Batch;
use super::*;

fn row(slot: u32, token: RowToken, position: u32) -> Row {
    Row {
        slot: Slot(slot),
        token,
        position,
        parent: Parent::Previous,
        layers: Layers::All,
        output: Output::Pick,
        adapter: None,
    }
}

fn step(rows: Vec<Row>) -> Step {
    Step { deltas: Vec::new(), rows }
}

fn spec() -> ModelSpec {
    ModelSpec {
        vocab_size: 100,
        context: 64,
        classes: vec![(HeadClass::Full, 9)],
        slots: 8,
        tree_rows: 0,
        layered: None,
    }
}

/// Picking rows: slot and position.
fn picking(rows: &[(u32, u32)]) -> Vec<CheckedRow> {
    let row = |(row, (slot, position)): (u32, &(u32, u32))| CheckedRow {
        row,
        slot: Slot(*slot),
        token: TokenId(0),
        position: *position,
        pick: true,
        branch: None,
    };
    (0..).zip(rows).map(row).collect()
}

/// Slots 1, 4 and 5 begun, with tokens 7, 8 and 9.
fn begun() -> Begun {
    let next = (0..).zip([(1, 11), (4, 21), (5, 31)]);
    let next = step(next.map(|(i, (slot, position))| row(slot, RowToken::FromStep(i), position)).collect());
    let expected = Expected::new(&next, &picking(&[(1, 10), (4, 20), (5, 30)]), 3, &spec()).unwrap();
    let (tile, many_tile) = (TileRows::Sixteen, ManyRows::SixtyFour);
    let batch = Batch { rows: 4, picks: 3, few: 3, many: 0, tile, clusters: false, many_tile };
    let begun = Begun::new(expected, Plan { batch, graph: true });
    begun.drew(&[7, 8, 9].map(|id| Some(TokenId(id)))).unwrap()
}

fn known(slot: u32, token: u32, position: u32) -> Row {
    row(slot, RowToken::Known(TokenId(token)), position)
}

#[test]
fn the_expected_step_is_found_or_a_part_of_it() {
    let picks = |rows: Vec<Row>| begun().is(&step(rows)).map(|(_, picks)| picks);
    assert_eq!(picks(vec![known(1, 7, 11), known(4, 8, 21), known(5, 9, 31)]), Some(vec![0, 1, 2]));
    assert_eq!(picks(vec![known(1, 7, 11), known(5, 9, 31)]), Some(vec![0, 2]));
    assert_eq!(picks(vec![known(4, 8, 21)]), Some(vec![1]));
    for other in [
        vec![],
        // Another token, another position, one that was not there, drafts, another order.
        vec![known(4, 7, 21)],
        vec![known(4, 8, 22)],
        vec![known(1, 7, 11), known(2, 3, 5)],
        vec![known(1, 7, 11), known(1, 3, 12)],
        vec![known(5, 9, 31), known(4, 8, 21)],
        vec![Row { output: Output::None, ..known(4, 8, 21) }],
        vec![Row { parent: Parent::Row(0), ..known(4, 8, 21) }],
    ] {
        assert_eq!(picks(other.clone()), None, "{other:?}");
    }
}

#[test]
fn tables_that_changed_otherwise_than_by_more_pages_make_another_step() {
    for (slot, change, same) in [
        (4, TableChange::Append(PageId(3)), true),
        (4, TableChange::Drop(0), true),
        (4, TableChange::Truncate(1), false),
        (4, TableChange::Clear, false),
        (4, TableChange::Keep { row: 0, from: 3 }, false),
        // Whoever has no row.
        (5, TableChange::Clear, true),
    ] {
        let deltas = vec![TableDelta { slot: Slot(slot), class: ClassId(0), change }];
        let step = Step { deltas, rows: vec![known(4, 8, 21)] };
        assert_eq!(begun().is(&step).is_some(), same, "{change:?}");
    }
}

#[test]
fn only_rows_that_go_on_where_one_alone_ended_are_expected() {
    let from = |slot, from, position| row(slot, RowToken::FromStep(from), position);
    let expected = |rows: Vec<Row>, before: &[(u32, u32)], all| {
        Expected::new(&step(rows), &picking(before), all, &spec()).is_some()
    };
    assert!(expected(vec![from(1, 0, 11)], &[(1, 10)], 1));
    for (rows, before, all) in [
        (vec![from(1, 0, 10)], &[(1, 10)][..], 1),
        (vec![from(1, 0, 12)], &[(1, 10)], 1),
        (vec![from(2, 0, 11)], &[(1, 10)], 1),
        (vec![from(1, 1, 11)], &[(1, 10)], 1),
        (vec![known(1, 3, 11)], &[(1, 10)], 1),
        (vec![from(1, 0, 64)], &[(1, 63)], 1),
        // Beside rows that do not pick, and behind drafts.
        (vec![from(1, 0, 11)], &[(1, 10)], 2),
        (vec![from(1, 1, 12)], &[(1, 10), (1, 11)], 2),
        (vec![from(1, 0, 11), from(1, 0, 11)], &[(1, 10)], 1),
        (vec![], &[(1, 10)], 1),
    ] {
        assert!(!expected(rows.clone(), before, all), "{rows:?} after {before:?}");
    }
    // What is no token begins nothing.
    let expected = Expected::new(&step(vec![from(1, 0, 11)]), &picking(&[(1, 10)]), 1, &spec()).unwrap();
    let (tile, many_tile) = (TileRows::Sixteen, ManyRows::SixtyFour);
    let batch = Batch { rows: 1, picks: 1, few: 1, many: 0, tile, clusters: false, many_tile };
    assert!(Begun::new(expected, Plan { batch, graph: true }).drew(&[None]).is_none());
}
