//! Taking tokens back, and looking ahead along drafts, change nothing.

use proptest::prelude::*;
use request::{Constraint, TokenId};
use serde_json::json;

use crate::toy::{CALL, TOY, allowed, one, schema};

fn constraints() -> Vec<Constraint> {
    vec![
        Constraint::JsonObject,
        schema(
            json!({"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "number"}}, "required": ["name", "n"]}),
        ),
        schema(json!({"type": "array", "items": {"enum": ["red", "green", 12, -1.5]}})),
        Constraint::Regex("(abc|[a-c]é)*(the end)?".to_owned()),
        Constraint::Grammar(
            "start: (WORD \" \" | <tool_call> | list)+\nlist: \"json \" %json {\"type\": \"array\"}\nWORD: /[a-z]+/"
                .to_owned(),
        ),
        Constraint::Grammar(
            "start: (prose <tool_call>)* \"tool\"\nprose[suffix=\"_call>\"]: /(?s:.*)/".to_owned(),
        ),
    ]
}

/// Commits tokens by choice until the grammar ends.
fn walk(matcher: &mut dyn engine::Constraint, choices: &[u32]) -> Vec<TokenId> {
    let mut ids = Vec::new();
    for choice in choices {
        let masks = matcher.masks(&[]);
        let masks =
            masks.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&TOY.text(&ids))));
        let allowed = allowed(&one(masks), TOY.tokens());
        let text: Vec<TokenId> = allowed.into_iter().filter(|id| *id <= CALL || id.0 > CALL.0 + 2).collect();
        let Some(id) = text.get(*choice as usize % text.len().max(1)) else { break };
        matcher.commit(&[*id]).unwrap();
        ids.push(*id);
    }
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn rollback_returns_to_the_same_masks(
        which in 0..constraints().len(),
        first in prop::collection::vec(any::<u32>(), 0..30),
        second in prop::collection::vec(any::<u32>(), 0..30),
        third in prop::collection::vec(any::<u32>(), 0..8),
    ) {
        let constraint = constraints().swap_remove(which);
        let mut matcher = TOY.compile(&constraint).unwrap();
        let before = walk(&mut *matcher, &first);
        let mask = matcher.masks(&[]);
        prop_assert!(mask.is_ok(), "{:?} after {:?}", mask, String::from_utf8_lossy(&TOY.text(&before)));
        let mask = mask.unwrap();
        let taken = walk(&mut *matcher, &second);
        matcher.rollback(taken.len());
        prop_assert_eq!(&matcher.masks(&[]).unwrap(), &mask);
        // The same again from the same place, at once and by halves.
        matcher.commit(&taken).unwrap();
        let end = matcher.masks(&[]).unwrap();
        matcher.rollback(taken.len() / 2);
        matcher.commit(&taken[taken.len() - taken.len() / 2..]).unwrap();
        prop_assert_eq!(&matcher.masks(&[]).unwrap(), &end);
        // And as a matcher that never went back.
        let after = walk(&mut *matcher, &third);
        let mut fresh = TOY.compile(&constraint).unwrap();
        fresh.commit(&[before, taken, after].concat()).unwrap();
        prop_assert_eq!(matcher.masks(&[]).unwrap(), fresh.masks(&[]).unwrap());
    }

    #[test]
    fn masks_along_drafts_are_those_of_steps(
        which in 0..constraints().len(),
        first in prop::collection::vec(any::<u32>(), 0..20),
        drafts in prop::collection::vec(any::<u32>(), 0..12),
        wrong in 0..TOY.tokens(),
    ) {
        let constraint = constraints().swap_remove(which);
        let mut matcher = TOY.compile(&constraint).unwrap();
        let before = walk(&mut *matcher, &first);
        let mut steps = TOY.compile(&constraint).unwrap();
        steps.commit(&before).unwrap();
        let mut drafts_by_step = Vec::new();
        let mut masks = vec![one(steps.masks(&[]).unwrap())];
        for choice in drafts {
            let taken = walk(&mut *steps, &[choice]);
            if taken.is_empty() {
                break;
            }
            drafts_by_step.extend(taken);
            masks.push(one(steps.masks(&[]).unwrap()));
        }
        prop_assert_eq!(matcher.masks(&drafts_by_step).unwrap(), masks.clone());
        prop_assert_eq!(matcher.masks(&drafts_by_step).unwrap(), masks.clone(), "asking changed something");
        // A draft that is not allowed ends what is: by the mask, whatever it is.
        let wrong = TokenId(wrong);
        let last = masks.last().unwrap();
        let stop = [TokenId(257), TokenId(258)].contains(&wrong);
        let chain = [drafts_by_step.as_slice(), &[wrong]].concat();
        let expected = drafts_by_step.len() + usize::from(last.allows(wrong) && !stop);
        prop_assert_eq!(matcher.allowed(&chain), expected);
        prop_assert_eq!(matcher.masks(&drafts_by_step).unwrap(), masks);
        if expected == drafts_by_step.len() {
            prop_assert_eq!(matcher.commit(&chain), Err(wrong));
            prop_assert_eq!(matcher.masks(&drafts_by_step).unwrap().len(), drafts_by_step.len() + 1);
        }
    }
}

#[test]
fn drafts_that_are_not_allowed_have_no_masks_and_cost_nothing() {
    let mut matcher = TOY.compile(&Constraint::Regex("abc".to_owned())).unwrap();
    let error = matcher.masks(&TOY.spell("xyz")).unwrap_err();
    assert!(error.contains("not allowed"), "{error}");
    assert_eq!(
        matcher.allowed(&[TokenId(b'a'.into()), TokenId(u32::MAX)]),
        1,
        "an id outside the vocabulary"
    );
    matcher.commit(&TOY.spell("abc")).unwrap();
}

#[test]
fn taking_back_more_than_was_taken_is_told() {
    let mut matcher = TOY.compile(&Constraint::Regex("[ab]*".to_owned())).unwrap();
    matcher.commit(&TOY.spell("a")).unwrap();
    matcher.rollback(2);
    assert!(matcher.masks(&[]).unwrap_err().contains("rollback"));
    assert_eq!(matcher.allowed(&TOY.spell("a")), 0);
    assert_eq!(matcher.commit(&[TokenId(97)]), Err(TokenId(97)));
}
