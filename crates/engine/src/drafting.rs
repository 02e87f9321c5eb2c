//! What a rank has learned about drafting, over all its sequences.

use std::collections::BTreeMap;

use speculation::{Beliefs, Exits, Library, StepCost, Wait, Ways, WindowCost};

use crate::Layered;

/// What steps cost, how right each source is, and what was said before.
#[derive(Debug)]
pub(crate) struct Drafting {
    pub(crate) cost: StepCost,
    /// What drafting with the model's own first layers costs; `None`: it does not.
    pub(crate) layered: Option<Layered>,
    /// How right its layers were; `None`: nobody asked yet.
    pub(crate) exits: Option<Exits>,
    /// What a draft over a window takes.
    pub(crate) window: WindowCost,
    pub(crate) beliefs: Beliefs,
    /// For a drafter on the target's own device.
    pub(crate) wait: Wait,
    /// For one on the target's own GPU.
    pub(crate) ways: Ways,
    /// One for each cache salt, with the time of its last use.
    libraries: BTreeMap<String, (u64, Library)>,
    uses: u64,
    vocab_size: u32,
}

/// Tenants whose libraries are kept: about 5 MB each at most. The one that was not used for longest goes.
const MOST_LIBRARIES: usize = 8;

impl Drafting {
    pub(crate) fn new(vocab_size: u32) -> Self {
        let libraries = BTreeMap::new();
        let (cost, beliefs, wait) = (StepCost::default(), Beliefs::default(), Wait::default());
        Self {
            cost,
            layered: None,
            exits: None,
            window: WindowCost::default(),
            beliefs,
            wait,
            ways: Ways::default(),
            libraries,
            uses: 0,
            vocab_size,
        }
    }

    /// What sequences of this salt left, and what the rank believes.
    pub(crate) fn library(&mut self, salt: &str) -> (&mut Library, &Beliefs) {
        self.uses += 1;
        if !self.libraries.contains_key(salt) {
            let oldest =
                self.libraries.iter().min_by_key(|(_, (used, _))| *used).map(|(salt, _)| salt.clone());
            if let Some(oldest) = oldest.filter(|_| self.libraries.len() >= MOST_LIBRARIES) {
                self.libraries.remove(&oldest);
            }
        }
        let vocab_size = self.vocab_size;
        let new = || (0, Library::new(vocab_size));
        let (used, library) = self.libraries.entry(salt.to_owned()).or_insert_with(new);
        *used = self.uses;
        (library, &self.beliefs)
    }
}

#[cfg(test)]
mod tests {
    use request::TokenId;

    use super::*;

    #[test]
    fn libraries_are_a_tenants_own_and_few() {
        let mut drafting = Drafting::new(16);
        let last =
            |drafting: &mut Drafting, salt: &str| drafting.library(salt).0.recycle.propose(TokenId(1), 1);
        drafting.library("a").0.recycle.observe(TokenId(1), TokenId(2));
        assert_eq!(last(&mut drafting, "b"), []);
        for other in 0..MOST_LIBRARIES - 1 {
            drafting.library(&format!("b{other}"));
            assert_eq!(last(&mut drafting, "a"), [TokenId(2)], "used all the time");
        }
        for other in 0..MOST_LIBRARIES {
            drafting.library(&format!("c{other}"));
        }
        assert_eq!(drafting.libraries.len(), MOST_LIBRARIES);
        assert_eq!(last(&mut drafting, "a"), [], "gone");
    }
}
