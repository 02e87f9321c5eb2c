//! Attention where a sequence is shared out: what each rank's spans give, to rank 0, which merges them in order; the result
//! to all.

use engine::ModelError;
use transport::Head;

use super::{Group, PART, nonsense};
use crate::cpu::attention::Left;

impl Group {
    /// Brings what the spans of all ranks left to rank 0. `owners`: by span.
    pub(in super::super) fn collect(
        &mut self,
        owners: &[usize],
        of: &Left,
        left: &mut [f32],
    ) -> Result<(), ModelError> {
        let (item, within) = (self.next_message(), self.message());
        if self.rank > 0 {
            let mut bytes = std::mem::take(&mut self.payload);
            bytes.clear();
            for place in of.places(owners, self.rank) {
                bytes.extend(left[place].iter().flat_map(|value| value.to_le_bytes()));
            }
            let sent = self.send(0, Head { kind: PART, token: self.token, item }, &bytes);
            self.payload = bytes;
            return sent;
        }
        for rank in 1..self.ranks() {
            self.recv(rank, PART, item, within)?;
            let (values, rest) = self.payload.as_chunks();
            let mut values = values.iter();
            for place in of.places(owners, rank) {
                for to in &mut left[place] {
                    *to = f32::from_le_bytes(*values.next().ok_or_else(|| nonsense(rank))?);
                }
            }
            if values.next().is_some() || !rest.is_empty() {
                return Err(nonsense(rank));
            }
        }
        Ok(())
    }

    /// Rank 0's values to all.
    pub(in super::super) fn tell(&mut self, values: &mut [f32]) -> Result<(), ModelError> {
        let (item, within) = (self.next_message(), self.message());
        if self.rank > 0 {
            self.recv(0, PART, item, within)?;
            let (told, rest) = self.payload.as_chunks();
            if told.len() != values.len() || !rest.is_empty() {
                return Err(nonsense(0));
            }
            values.iter_mut().zip(told).for_each(|(to, told)| *to = f32::from_le_bytes(*told));
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.payload);
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let head = Head { kind: PART, token: self.token, item };
        let sent = (1..self.ranks()).try_for_each(|rank| self.send(rank, head, &bytes));
        self.payload = bytes;
        sent
    }
}
