use request::{Adjustments, InvalidField, Limits, TokenId};
use sampling::{Edit, History};

use crate::Constraint;

/// What steers the draws of one sequence besides its sampling parameters: bias and penalties, the
/// constraint, and the tokens it may not stop with yet. It follows the output, of a target or of a
/// drafter's tail.
#[derive(Debug)]
pub(crate) struct Steering {
    history: Option<History>,
    constraint: Option<Box<dyn Constraint>>,
    limits: Limits,
    output: u32,
    /// The output ends with a token after which the constraint has no word: a stop token of the model that
    /// the request does not stop at.
    ended: bool,
}

impl Steering {
    /// `committed`: output of earlier attempts. The constraint is at its beginning.
    pub(crate) fn new(
        adjust: &Adjustments,
        constraint: Option<Box<dyn Constraint>>,
        limits: Limits,
        prompt: &[TokenId],
        committed: &[TokenId],
    ) -> Result<Self, InvalidField> {
        let history = History::new(adjust, prompt, &[]);
        let mut steering = Self { history, constraint, limits, output: 0, ended: false };
        match steering.push(committed) {
            Ok(()) => Ok(steering),
            Err(last) if steering.ends_with(last, committed) => Ok(Self { ended: true, ..steering }),
            Err(token) => Err(InvalidField::new(
                "committed",
                format!("token {token} is not what the constraint allows there"),
            )),
        }
    }

    /// The output grew. `Err`: the constraint does not go on with this token (it is at its end); what
    /// comes before it is taken.
    pub(crate) fn push(&mut self, ids: &[TokenId]) -> Result<(), TokenId> {
        for id in ids {
            if let Some(history) = &mut self.history {
                history.push(&[*id]);
            }
            self.output += 1;
            if !self.limits.stop_ids.contains(id)
                && let Some(constraint) = &mut self.constraint
            {
                constraint.commit(&[*id])?;
            }
        }
        Ok(())
    }

    /// Whether the replayed output is complete: its last token is what the constraint allows at its end.
    fn ends_with(&mut self, last: TokenId, committed: &[TokenId]) -> bool {
        let allowed = |edits: Vec<Edit>| edits[0].mask.as_ref().is_some_and(|mask| mask.allows(last));
        self.output as usize == committed.len() && self.edits(&[]).is_ok_and(allowed)
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The last tokens of the output are taken back.
    pub(crate) fn pop(&mut self, ids: &[TokenId]) {
        if let Some(history) = &mut self.history {
            history.pop(ids);
        }
        self.output = self.output.saturating_sub(ids.len() as u32);
        if let Some(constraint) = &mut self.constraint {
            constraint.rollback(ids.iter().filter(|id| !self.limits.stop_ids.contains(id)).count());
        }
    }

    /// From here on there is no constraint: a drafter without one still drafts.
    pub(crate) fn unconstrain(&mut self) {
        self.constraint = None;
    }

    /// How many of `drafts` could be drawn at all, from the first on. A stop token under a constraint is
    /// left to a plain step: the constraint has no word after it.
    pub(crate) fn allowed(&mut self, drafts: &[TokenId]) -> usize {
        let Some(constraint) = &mut self.constraint else { return drafts.len() };
        let stop = drafts.iter().position(|id| self.limits.stop_ids.contains(id)).unwrap_or(drafts.len());
        constraint.allowed(&drafts[..stop])
    }

    /// Edits for the draws after `drafts[..i]`, for i = 0 to `drafts.len()`; all drafts are
    /// [`allowed`](Self::allowed). `Err`: the constraint cannot say what comes next.
    pub(crate) fn edits(&mut self, drafts: &[TokenId]) -> Result<Vec<Edit>, String> {
        let mut masks = match &mut self.constraint {
            None => Vec::new(),
            Some(constraint) => constraint.masks(drafts)?,
        }
        .into_iter();
        let mut edits = Vec::with_capacity(drafts.len() + 1);
        for depth in 0..=drafts.len() {
            if let (Some(history), Some(last)) = (&mut self.history, depth.checked_sub(1)) {
                history.push(&[drafts[last]]);
            }
            let mut edit = Edit {
                mask: masks.next(),
                banned: Vec::new(),
                changes: self.history.as_ref().map(History::changes).unwrap_or_default(),
            };
            if self.output + (depth as u32) < self.limits.min_tokens {
                edit.banned = self.banned(&edit);
            }
            edits.push(edit);
        }
        if let Some(history) = &mut self.history {
            history.pop(drafts);
        }
        Ok(edits)
    }

    /// Stop tokens, unless the constraint leaves nothing else: it then goes before `min_tokens`.
    fn banned(&self, edit: &Edit) -> Vec<TokenId> {
        let only_stops = edit.mask.as_ref().is_some_and(|mask| {
            let mut rest = mask.clone();
            self.limits.stop_ids.iter().for_each(|stop| rest.forbid(*stop));
            rest.is_empty()
        });
        if only_stops { Vec::new() } else { self.limits.stop_ids.clone() }
    }
}
