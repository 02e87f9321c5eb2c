//! Few rows through all layers, with one kernel from each attention to the next (`persistent`).

use super::super::CudaError;
use super::super::kv::Kv;
use super::super::linear::{Dense, Norm};
use super::super::matrix::DeviceMatrix;
use super::super::persistent::{Back, Between, Front, Peers, Persistent};
use super::{Forward, Plan};

impl Forward {
    /// Queues embedding and all layers of a batch that [`Self::persists`]: the kernels between the attentions are one
    /// each.
    pub(crate) fn layers(&self, plan: Plan, kv: &Kv, peers: Peers) -> Result<(), CudaError> {
        let persistent = self.persistent.as_ref().filter(|_| self.persists(plan.batch.rows));
        let persistent =
            persistent.ok_or(CudaError::NotBuilt { what: "persistent kernels for these rows" })?;
        let (p, a, rows) = (&self.p, &self.a, self.arrays(plan).rows(plan.batch.rows));
        let b = Between { peers, rows: rows.count, x: a.x.at(0), normed: a.normed.at(0), epsilon: p.epsilon };
        self.embed(plan)?;
        if let Some(layer) = self.weights.layers.first() {
            let norm = Norm { weight: layer.attention_norm.at(0), epsilon: p.epsilon };
            let (device, hidden) = (&*self.device, p.hidden as u32);
            self.elementwise.rms_norm(device, b.x, None, b.rows, norm, b.normed, hidden)?;
        }
        for index in 0..=self.weights.layers.len() {
            let front = match index.checked_sub(1) {
                None => None,
                Some(before) => {
                    let layer = &self.weights.layers[before];
                    Some(Front {
                        o: dense(&layer.o)?,
                        gate_up: dense(&layer.gate_up)?,
                        down: dense(&layer.down)?,
                        norm: layer.feed_forward_norm.at(0),
                        attended: a.attended.at(0),
                        gated: a.gated.at(0),
                    })
                }
            };
            let back = match self.weights.layers.get(index) {
                None => None,
                Some(layer) => Some(Back {
                    qkv: dense(&layer.qkv)?,
                    norm: layer.attention_norm.at(0),
                    out: a.qkv.at(0),
                    rows,
                    heads: self.heads(index, kv),
                    angles: self.angles(),
                    pools: kv.pools(index),
                }),
            };
            persistent.between(&self.device, index as u32, b, front.as_ref(), back.as_ref())?;
            if back.is_some() {
                self.attend(index, plan, kv)?;
            }
        }
        Ok(())
    }

    /// From here on few rows go through the layers as more rows do.
    pub(crate) fn forget_persistent(&mut self) {
        self.persistent = None;
    }

    /// Whether a batch of so many rows goes through [`Self::layers`].
    pub(crate) fn persists(&self, rows: u32) -> bool {
        self.persistent.is_some() && rows <= Persistent::MOST_ROWS
    }
}

/// Only dense models have kernels that do more than a product.
pub(super) fn dense(matrix: &DeviceMatrix) -> Result<&Dense, CudaError> {
    match matrix {
        DeviceMatrix::Dense(dense) => Ok(dense),
        DeviceMatrix::Quantised(_) => {
            Err(CudaError::NotBuilt { what: "persistent and streaming kernels of a quantised model" })
        }
    }
}
