//! A decode batch through all layers, with products that do what lies between them too (`streamed`): six kernels a layer.

use super::super::CudaError;
use super::super::elementwise::Heads;
use super::super::kv::Kv;
use super::super::linear::Norm;
use super::super::streamed::{Activations, End, Next, Streamed, Unscaled};
use super::few::dense;
use super::{Forward, Persistent, Plan};
use crate::cuda::weights::DeviceLayer;

/// Which products of a layer are streamed; cuBLASLt makes the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) qkv: bool,
    pub(super) o: bool,
    pub(super) gate_up: bool,
    pub(super) down: bool,
}

impl Of {
    /// The faster ones (docs/benchmarks.md).
    fn fastest(rows: u32) -> Self {
        let mask: u32 = std::env::var("SMASK").map_or(15, |v| v.parse().unwrap());
        Self { qkv: mask & 1 != 0, o: mask & 2 != 0, gate_up: mask & 4 != 0, down: mask & 8 != 0 }
    }
}

impl Forward {
    /// Queues embedding and all layers of a batch that [`Self::streams`].
    pub(crate) fn streamed_layers(&self, plan: Plan, kv: &Kv) -> Result<(), CudaError> {
        let streamed = self.streamed.as_ref().ok_or(CudaError::NotBuilt { what: "streamed products" })?;
        let (p, a, device) = (&self.p, &self.a, &*self.device);
        let (rows, hidden) = (self.arrays(plan).rows(plan.batch.rows), p.hidden as u32);
        let (count, streams) = (rows.count, self.streamed_of(rows.count));
        let of = |address, width: usize| Activations { address, room: self.room, width: width as u32 };
        let normed = of(a.normed.at(0), p.hidden);
        let attended = of(a.attended.at(0), p.heads * p.head_dim);
        let gated = of(a.gated.at(0), p.feed_forward);
        let unscaled = Unscaled { squares: streamed.squares(), epsilon: p.epsilon };
        let add = |next: Option<u64>| {
            let (normed, squares) = (a.normed.at(0), streamed.squares());
            End::Add { x: a.x.at(0), next: next.map(|weight| Next { weight, normed, squares }) }
        };
        let norm = |weight: u64| {
            let norm = Norm { weight, epsilon: p.epsilon };
            self.elementwise.rms_norm(device, a.x.at(0), None, count, norm, a.normed.at(0), hidden)
        };
        self.embed(plan)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            // Whether the product before has left rows that are only to be scaled.
            let scaled = !streams.down || index == 0;
            if scaled {
                norm(layer.attention_norm.at(0))?;
            }
            let (qkv, out) = (dense(&layer.qkv)?, a.qkv.at(0));
            let mut heads = self.heads(index, kv);
            if streams.qkv {
                let end = End::Store { out, norm: (!scaled).then_some(unscaled) };
                streamed.product(device, qkv, normed, count, end)?;
            } else {
                self.linear.dense.store(device, qkv, normed.address, out, count)?;
                if !scaled {
                    heads = Heads { squares: unscaled.squares, parts: Streamed::parts(hidden), ..heads };
                }
            }
            self.elementwise.rope_and_keep(device, out, rows, heads, self.angles(), kv.pools(index))?;
            self.attend(index, plan, kv)?;
            let (o, next) = (dense(&layer.o)?, layer.feed_forward_norm.at(0));
            if streams.o {
                streamed.product(device, o, attended, count, add(Some(next)))?;
            } else {
                self.linear.dense.add(device, o, attended.address, a.x.at(0), count)?;
                norm(next)?;
            }
            let gate_up = dense(&layer.gate_up)?;
            if streams.gate_up {
                let end = End::Gate { out: gated.address, norm: streams.o.then_some(unscaled) };
                streamed.product(device, gate_up, normed, count, end)?;
            } else {
                self.linear.dense.store(device, gate_up, normed.address, a.both.at(0), count)?;
                self.elementwise.silu_mul(device, a.both.at(0), gated.address, count, gated.width)?;
            }
            let down = dense(&layer.down)?;
            if streams.down {
                let next = self.weights.layers.get(index + 1).map(|next| next.attention_norm.at(0));
                streamed.product(device, down, gated, count, add(next))?;
            } else {
                self.linear.dense.add(device, down, gated.address, a.x.at(0), count)?;
            }
        }
        Ok(())
    }

    /// Whether a batch of so many rows goes through [`Self::streamed_layers`].
    pub(crate) fn streams(&self, rows: u32) -> bool {
        self.streamed_of(rows) != Of::default()
    }

    pub(super) fn streamed_of(&self, rows: u32) -> Of {
        let suits =
            self.streamed.is_some() && (Persistent::MOST_ROWS + 1..=Streamed::MOST_ROWS).contains(&rows);
        if suits { Of::fastest(rows) } else { Of::default() }
    }

    /// From here on all rows go through the layers with plain products.
    pub(crate) fn forget_streamed(&mut self) {
        self.streamed = None;
    }
}

/// Whether all products of a layer can be streamed.
pub(super) fn suits(layer: &DeviceLayer) -> bool {
    let all = [&layer.qkv, &layer.o, &layer.gate_up, &layer.down];
    all.into_iter().all(|matrix| dense(matrix).is_ok_and(Streamed::suits))
}
