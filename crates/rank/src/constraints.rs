use std::sync::Arc;
use std::time::Duration;

use grammar::Grammars;
use request::{Constraint, InvalidField};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Constraints compiled at once; more wait here. The work cannot be interrupted, so it must not take
/// every core.
const AT_ONCE: usize = 2;

/// To wait for a turn and to compile; what takes longer is refused.
const PATIENCE: Duration = Duration::from_secs(10);

/// Compiles what requests are held to, away from the runtime's threads.
#[derive(Clone, Debug)]
pub struct Constraints {
    /// `None`: this rank's vocabulary is not known as text (a toy).
    grammars: Option<Arc<Grammars>>,
    turns: Arc<Semaphore>,
}

impl Constraints {
    pub fn new(grammars: Option<Grammars>) -> Self {
        Self { grammars: grammars.map(Arc::new), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The constraint at its beginning, or why it cannot be.
    pub async fn compile(
        &self,
        constraint: &Constraint,
    ) -> Result<Box<dyn engine::Constraint>, InvalidField> {
        let field = constraint.field();
        let Some(grammars) = self.grammars.clone() else {
            return Err(InvalidField::not_built(field, "this node's vocabulary has no text to constrain"));
        };
        let wanted = constraint.clone();
        let work = async {
            let turn = Arc::clone(&self.turns).acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                grammars.compile(&wanted).map_err(|e| e.to_string())
            })
            .await
        };
        match timeout(PATIENCE, work).await {
            Ok(Ok(Ok(compiled))) => Ok(compiled),
            Ok(Ok(Err(why))) => Err(InvalidField::new(field, why)),
            Ok(Err(broken)) => Err(InvalidField::new(field, format!("it broke its compiler: {broken}"))),
            Err(_) => Err(InvalidField::new(field, format!("it was not compiled within {PATIENCE:?}"))),
        }
    }
}
