//! A step on its way to followers: little-endian words. Only what back ends execute; rank 0 has checked it.

use engine::ModelError;
use kvcache::{ClassId, PageId};
use request::TokenId;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

/// A row whose parent is the position before.
const PREVIOUS: u32 = u32::MAX;

pub(super) fn encode(step: &Step) -> Result<Vec<u8>, ModelError> {
    let mut words = vec![step.deltas.len() as u32];
    for delta in &step.deltas {
        let (kind, argument, second) = match delta.change {
            TableChange::Append(page) => (0, page.0, 0),
            TableChange::Share(page) => (1, page.0, 0),
            TableChange::Hole => (2, 0, 0),
            TableChange::Truncate(from) => (3, from, 0),
            TableChange::Drop(index) => (4, index, 0),
            TableChange::Clear => (5, 0, 0),
            TableChange::Keep { row, from } => (6, row, from),
        };
        words.extend([delta.slot.0, u32::from(delta.class.0), kind, argument, second]);
    }
    for row in &step.rows {
        let refuse = |what| Err(ModelError::Unsupported { what });
        let RowToken::Known(token) = row.token else { return refuse("tokens of the step before in a group") };
        let pick = match row.output {
            Output::None => 0,
            Output::Pick => 1,
            Output::Hidden(_) | Output::Pooled => return refuse("hidden states or embeddings in a group"),
        };
        if row.layers != Layers::All || row.adapter.is_some() {
            return refuse("early exit or adapters in a group");
        }
        let parent = match row.parent {
            Parent::Previous => PREVIOUS,
            Parent::Row(row) => row,
        };
        words.extend([row.slot.0, token.0, row.position, parent, pick]);
    }
    Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Step, ModelError> {
    let bad = || ModelError::Lost("rank 0 sent a step that is none".to_owned());
    let (words, rest) = bytes.as_chunks();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let (count, words) = words.split_first().ok_or_else(bad)?;
    let deltas = (*count as usize).checked_mul(5).filter(|words_| *words_ <= words.len()).ok_or_else(bad)?;
    let (deltas, rows) = words.split_at(deltas);
    let (rows, more) = rows.as_chunks();
    if !rest.is_empty() || !more.is_empty() {
        return Err(bad());
    }
    let delta = |&[slot, class, kind, argument, second]: &[u32; 5]| {
        let change = match kind {
            0 => TableChange::Append(PageId(argument)),
            1 => TableChange::Share(PageId(argument)),
            2 => TableChange::Hole,
            3 => TableChange::Truncate(argument),
            4 => TableChange::Drop(argument),
            5 => TableChange::Clear,
            6 => TableChange::Keep { row: argument, from: second },
            _ => return Err(bad()),
        };
        let class = ClassId(u8::try_from(class).map_err(|_| bad())?);
        Ok(TableDelta { slot: Slot(slot), class, change })
    };
    let row = |&[slot, token, position, parent, pick]: &[u32; 5]| Row {
        slot: Slot(slot),
        token: RowToken::Known(TokenId(token)),
        position,
        parent: if parent == PREVIOUS { Parent::Previous } else { Parent::Row(parent) },
        layers: Layers::All,
        output: if pick == 1 { Output::Pick } else { Output::None },
        adapter: None,
    };
    Ok(Step {
        deltas: deltas.as_chunks().0.iter().map(delta).collect::<Result<_, _>>()?,
        rows: rows.iter().map(row).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps() -> impl Strategy<Value = Step> {
        let change = prop_oneof![
            any::<u32>().prop_map(|page| TableChange::Append(PageId(page))),
            any::<u32>().prop_map(|page| TableChange::Share(PageId(page))),
            Just(TableChange::Hole),
            any::<u32>().prop_map(TableChange::Truncate),
            any::<u32>().prop_map(TableChange::Drop),
            Just(TableChange::Clear),
            any::<(u32, u32)>().prop_map(|(row, from)| TableChange::Keep { row, from }),
        ];
        let delta = (any::<u32>(), any::<u8>(), change).prop_map(|(slot, class, change)| TableDelta {
            slot: Slot(slot),
            class: ClassId(class),
            change,
        });
        let parent = prop_oneof![Just(Parent::Previous), (0u32..1000).prop_map(Parent::Row)];
        let row = (any::<u32>(), any::<u32>(), any::<u32>(), parent, any::<bool>());
        let row = row.prop_map(|(slot, token, position, parent, pick)| Row {
            slot: Slot(slot),
            token: RowToken::Known(TokenId(token)),
            position,
            parent,
            layers: Layers::All,
            output: if pick { Output::Pick } else { Output::None },
            adapter: None,
        });
        (prop::collection::vec(delta, 0..9), prop::collection::vec(row, 0..9))
            .prop_map(|(deltas, rows)| Step { deltas, rows })
    }

    proptest! {
        #[test]
        fn a_step_arrives_as_it_was_sent(step in steps()) {
            prop_assert_eq!(decode(&encode(&step).unwrap()).unwrap(), step);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), step in steps(), cut in 1usize..4) {
            let _ = decode(&bytes);
            let mut short = encode(&step).unwrap();
            short.truncate(short.len() - cut);
            prop_assert!(decode(&short).is_err());
        }
    }
}
