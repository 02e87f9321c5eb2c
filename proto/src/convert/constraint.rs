//! The same oneof stands in the public and in the worker's request; the draft stream spells it as fields.

use request::Constraint;

use crate::error::WireError;
use crate::v1::generate_request::Constraint as Public;
use crate::worker::generate_request::Constraint as Placed;
use crate::{draft, v1};

pub(super) fn from_public(from: Option<Public>) -> Result<Option<Constraint>, WireError> {
    checked(from.map(|from| match from {
        Public::JsonObject(v1::JsonObject {}) => Constraint::JsonObject,
        Public::JsonSchema(schema) => Constraint::JsonSchema(schema),
        Public::Regex(regex) => Constraint::Regex(regex),
        Public::Grammar(grammar) => Constraint::Grammar(grammar),
    }))
}

pub(super) fn from_placed(from: Option<Placed>) -> Result<Option<Constraint>, WireError> {
    checked(from.map(|from| match from {
        Placed::JsonObject(v1::JsonObject {}) => Constraint::JsonObject,
        Placed::JsonSchema(schema) => Constraint::JsonSchema(schema),
        Placed::Regex(regex) => Constraint::Regex(regex),
        Placed::Grammar(grammar) => Constraint::Grammar(grammar),
    }))
}

pub(super) fn to_placed(constraint: Constraint) -> Placed {
    match constraint {
        Constraint::JsonObject => Placed::JsonObject(v1::JsonObject {}),
        Constraint::JsonSchema(schema) => Placed::JsonSchema(schema),
        Constraint::Regex(regex) => Placed::Regex(regex),
        Constraint::Grammar(grammar) => Placed::Grammar(grammar),
    }
}

/// Drafts without a constraint are still drafts: what would fill the frame is left out.
pub(crate) const MOST_IN_OPEN: usize = 64 << 10;

pub(crate) fn write_open(constraint: Option<Constraint>, open: &mut draft::Open) {
    match constraint {
        None => {}
        Some(Constraint::JsonObject) => open.json_object = true,
        Some(Constraint::JsonSchema(source) | Constraint::Regex(source) | Constraint::Grammar(source))
            if source.len() > MOST_IN_OPEN => {}
        Some(Constraint::JsonSchema(schema)) => open.json_schema = schema,
        Some(Constraint::Regex(regex)) => open.regex = regex,
        Some(Constraint::Grammar(grammar)) => open.grammar = grammar,
    }
}

pub(crate) fn read_open(open: &mut draft::Open) -> Result<Option<Constraint>, WireError> {
    let take = |source: &mut String| Some(std::mem::take(source)).filter(|s| !s.is_empty());
    let mut set = [
        open.json_object.then_some(Constraint::JsonObject),
        take(&mut open.json_schema).map(Constraint::JsonSchema),
        take(&mut open.regex).map(Constraint::Regex),
        take(&mut open.grammar).map(Constraint::Grammar),
    ]
    .into_iter()
    .flatten();
    let constraint = set.next();
    if set.next().is_some() {
        return Err(WireError::invalid("open.grammar", "more than one constraint is set"));
    }
    checked(constraint)
}

fn checked(constraint: Option<Constraint>) -> Result<Option<Constraint>, WireError> {
    if let Some(constraint) = &constraint {
        constraint.validate()?;
    }
    Ok(constraint)
}
