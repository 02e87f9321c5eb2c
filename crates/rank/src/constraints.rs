use std::sync::Arc;

use grammar::{CompileError, Grammars};
use request::{Constraint, InvalidField};

/// Compiles what requests are held to, away from the runtime's threads. How many at once, and for how
/// long, is bounded by [`Grammars`].
#[derive(Clone, Debug)]
pub struct Constraints {
    /// `None`: this rank's vocabulary is not known as text (a toy).
    grammars: Option<Arc<Grammars>>,
}

/// Why there is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoConstraint {
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// Others hold the compiler; nothing is known against this one.
    #[error("other constraints hold the compiler; try again shortly")]
    Busy,
}

impl Constraints {
    pub fn new(grammars: Option<Grammars>) -> Self {
        Self { grammars: grammars.map(Arc::new) }
    }

    /// The constraint at its beginning, or why it cannot be.
    pub async fn compile(
        &self,
        constraint: &Constraint,
    ) -> Result<Box<dyn engine::Constraint>, NoConstraint> {
        let field = constraint.field();
        let Some(grammars) = self.grammars.clone() else {
            let why = "this node's vocabulary has no text to constrain";
            return Err(InvalidField::not_built(field, why).into());
        };
        let wanted = constraint.clone();
        match tokio::task::spawn_blocking(move || grammars.compile(&wanted)).await {
            Ok(Ok(compiled)) => Ok(compiled),
            Ok(Err(CompileError::Refused { field, reason })) => Err(InvalidField::new(field, reason).into()),
            Ok(Err(CompileError::Busy { .. })) => Err(NoConstraint::Busy),
            Err(broken) => Err(InvalidField::new(field, format!("it broke its compiler: {broken}")).into()),
        }
    }
}
