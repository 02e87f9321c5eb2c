//! A decode batch through all layers, with products that do what lies between them too (`streamed`): six kernels a layer.

use super::super::CudaError;
use super::super::kv::Kv;
use super::super::linear::Norm;
use super::super::streamed::{Activations, End, Next, Streamed, Unscaled};
use super::few::dense;
use super::{Forward, Persistent, Plan};
use crate::cuda::weights::DeviceLayer;

impl Forward {
    /// Queues embedding and all layers of a batch that [`Self::streams`].
    pub(crate) fn streamed_layers(&self, plan: Plan, kv: &Kv) -> Result<(), CudaError> {
        let streamed = self.streamed.as_ref().filter(|_| self.streams(plan.batch.rows));
        let streamed = streamed.ok_or(CudaError::NotBuilt { what: "streamed products of these rows" })?;
        let (p, a, device) = (&self.p, &self.a, &*self.device);
        let rows = self.arrays(plan).rows(plan.batch.rows);
        let of = |address, width: usize| Activations { address, room: self.room, width: width as u32 };
        let normed = of(a.normed.at(0), p.hidden);
        let attended = of(a.attended.at(0), p.heads * p.head_dim);
        let gated = of(a.gated.at(0), p.feed_forward);
        let unscaled = Unscaled { squares: streamed.squares(), epsilon: p.epsilon };
        let add = |next: Option<u64>| {
            let (normed, squares) = (normed.address, streamed.squares());
            End::Add { x: a.x.at(0), next: next.map(|weight| Next { weight, normed, squares }) }
        };
        self.embed(plan)?;
        if let Some(layer) = self.weights.layers.first() {
            let norm = Norm { weight: layer.attention_norm.at(0), epsilon: p.epsilon };
            let (x, to, hidden) = (a.x.at(0), normed.address, p.hidden as u32);
            self.elementwise.rms_norm(device, x, None, rows.count, norm, to, hidden)?;
        }
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let product = |matrix, x, end| streamed.product(device, dense(matrix)?, x, rows.count, end);
            // The first layer's rows are normed above.
            let norm = (index > 0).then_some(unscaled);
            product(&layer.qkv, normed, End::Store { out: a.qkv.at(0), norm })?;
            let (heads, angles, pools) = (self.heads(index, kv), self.angles(), kv.pools(index));
            self.elementwise.rope_and_keep(device, a.qkv.at(0), rows, heads, angles, pools)?;
            self.attend(index, plan, kv)?;
            product(&layer.o, attended, add(Some(layer.feed_forward_norm.at(0))))?;
            product(&layer.gate_up, normed, End::Gate { out: gated.address, norm: Some(unscaled) })?;
            let next = self.weights.layers.get(index + 1);
            product(&layer.down, gated, add(next.map(|next| next.attention_norm.at(0))))?;
        }
        Ok(())
    }

    /// Whether a batch of so many rows goes through [`Self::streamed_layers`].
    pub(crate) fn streams(&self, rows: u32) -> bool {
        self.streamed.is_some() && (Persistent::MOST_ROWS + 1..=Streamed::MOST_ROWS).contains(&rows)
    }

    /// From here on batches go through the layers with plain products: others have been measured on one GPU alone.
    pub(crate) fn forget_streamed(&mut self) {
        self.streamed = None;
        self.wide = None;
    }
}

/// Whether all products of a layer can be streamed.
pub(super) fn suits(layer: &DeviceLayer) -> bool {
    let all = [&layer.qkv, &layer.o, &layer.gate_up, &layer.down];
    all.into_iter().all(|matrix| dense(matrix).is_ok_and(Streamed::suits))
}
