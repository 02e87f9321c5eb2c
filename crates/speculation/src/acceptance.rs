//! How far ahead a drafter should run.

/// How often the drafts of one sequence are accepted: a running estimate of the chance that a draft
/// stands when all before it stood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Acceptance {
    accepted: f64,
    judged: f64,
}

impl Default for Acceptance {
    /// A mild belief in a new drafter: six of eight.
    fn default() -> Self {
        Self { accepted: 6.0, judged: 8.0 }
    }
}

impl Acceptance {
    /// Weight of the past when a draft is judged: about the last fifty count.
    const MEMORY: f64 = 0.98;

    /// One verification step: `drafted` tokens of which the first `accepted` stood.
    pub fn record(&mut self, drafted: usize, accepted: usize) {
        // Drafts behind the first wrong one were not judged.
        for stood in (0..drafted.min(accepted + 1)).map(|i| i < accepted) {
            self.accepted = self.accepted * Self::MEMORY + f64::from(u8::from(stood));
            self.judged = self.judged * Self::MEMORY + 1.0;
        }
    }

    /// What to believe of the next sequence of the same pair: this rate, as firmly as a new drafter's.
    pub fn carried_over(&self) -> Self {
        let Self { judged, .. } = Self::default();
        Self { accepted: self.rate() * judged, judged }
    }

    /// Above 0 and below 1.
    pub fn rate(&self) -> f64 {
        (self.accepted / self.judged).clamp(0.01, 0.99)
    }

    /// The depth beyond which a draft is reached in fewer than one of twenty cases: further ahead a
    /// drafter works for nothing.
    pub fn useful_depth(&self) -> u32 {
        (0.05f64.ln() / self.rate().ln()).ceil().max(1.0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(accepted: usize) -> Acceptance {
        let mut acceptance = Acceptance::default();
        for i in 0..200 {
            acceptance.record(1, usize::from(i % 10 < accepted));
        }
        acceptance
    }

    #[test]
    fn acceptance_is_learned_from_what_was_judged() {
        assert!((accepting(9).rate() - 0.9).abs() < 0.05);
        assert!((accepting(3).rate() - 0.3).abs() < 0.05);
        // Four drafted, one accepted: two were judged.
        let mut a = Acceptance { accepted: 0.0, judged: 0.0 };
        a.record(4, 1);
        assert!((a.judged - 1.98).abs() < 1e-9);
        assert!((1..=3).contains(&accepting(3).useful_depth()), "{}", accepting(3).useful_depth());
        assert!(accepting(9).useful_depth() > 20);
        // A new sequence begins with the pair's rate and changes its mind as quickly as any.
        let mut carried = accepting(9).carried_over();
        assert!((carried.rate() - accepting(9).rate()).abs() < 1e-9);
        for _ in 0..16 {
            carried.record(1, 0);
        }
        assert!(carried.rate() < 0.4, "{}", carried.rate());
    }
}
