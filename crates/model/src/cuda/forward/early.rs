//! The layers of a step that is begun before it comes (`cuda/early.rs`).

use super::super::CudaError;
use super::super::batch::Batch;
use super::super::kv::Kv;
use super::super::trees::Placed;
use super::{Forward, Key, Plan};

impl Forward {
    /// Whether steps of few rows are graphs: others do not begin early.
    pub(crate) fn captures(&self) -> bool {
        self.use_graphs
    }

    /// Begins the layers of rows behind all queued work, if there is a graph of so many: their tokens, indices of rows of a
    /// draw, become what those gave (`drawn`: see [`Elementwise::take_tokens`](super::Elementwise::take_tokens)).
    pub(crate) fn begin_early(
        &mut self,
        rows: &[Placed],
        drawn: u64,
        kv: &Kv,
    ) -> Result<Option<Plan>, CudaError> {
        let plan = self.plan(rows, kv)?;
        let key = Key::of(plan.batch);
        if !plan.graph || !self.has(key) {
            return Ok(None);
        }
        let (tokens, count) = (self.small.rows(plan.batch.rows).tokens, rows.len() as u32);
        self.elementwise.take_tokens(&self.device, tokens, drawn, count, self.p.vocab as u32)?;
        self.launch(key)?;
        Ok(Some(plan))
    }

    /// Of a step that was begun early, these rows pick.
    pub(crate) fn repick(&mut self, plan: Plan, rows: &[i32]) -> Result<Plan, CudaError> {
        if rows.len() != plan.batch.picks as usize {
            self.small.pick(&self.device, rows)?;
        }
        Ok(Plan { batch: Batch { picks: rows.len() as u32, ..plan.batch }, ..plan })
    }
}
