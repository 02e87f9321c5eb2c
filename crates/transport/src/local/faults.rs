/// What may happen to a message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// One bit of the frame changes.
    BitFlip,
    /// An earlier payload of the same size arrives in its place, in a frame that is whole: the sender's
    /// memory was not what it believed.
    Stale,
    /// It arrives after the next one.
    Reordered,
    /// Half of it arrives, and the link ends.
    Truncated,
    /// It never arrives; what follows does.
    Dropped,
    /// It never arrives, nor does anything after it, and the link stays open.
    Hung,
}

impl Fault {
    pub const ALL: [Self; 6] =
        [Self::BitFlip, Self::Stale, Self::Reordered, Self::Truncated, Self::Dropped, Self::Hung];
}

/// Which messages suffer: some of one kind, chosen by a seed, so that a run can be had again.
#[derive(Clone, Debug)]
pub struct Faults {
    fault: Fault,
    kind: u32,
    /// One message in so many, and of these no more than `most`.
    one_in: u64,
    most: u64,
    state: u64,
    injected: u64,
    earlier: Option<Vec<u8>>,
}

impl Faults {
    /// `fault` befalls one message in `one_in` of those with this [`crate::Head::kind`].
    pub fn new(seed: u64, fault: Fault, kind: u32, one_in: u64) -> Self {
        Self { fault, kind, one_in: one_in.max(1), most: u64::MAX, state: seed, injected: 0, earlier: None }
    }

    /// No more than so many messages suffer.
    pub fn at_most(mut self, most: u64) -> Self {
        self.most = most;
        self
    }

    pub(crate) fn injected(&self) -> u64 {
        self.injected
    }

    pub(crate) fn next(&mut self, kind: u32) -> Option<Fault> {
        // Something stale must have been sent before.
        let possible = self.fault != Fault::Stale || self.earlier.is_some();
        let hit = kind == self.kind
            && self.injected < self.most
            && self.draw().is_multiple_of(self.one_in)
            && possible;
        self.injected += u64::from(hit);
        hit.then_some(self.fault)
    }

    /// What the sender's memory holds instead of `message`; remembers it for the next time.
    pub(crate) fn before_framing(&mut self, kind: u32, fault: Option<Fault>, message: &mut [u8]) {
        if self.fault != Fault::Stale || kind != self.kind {
            return;
        }
        let fresh = message.to_vec();
        if let (Some(_), Some(earlier)) = (fault, &self.earlier) {
            // The newest bytes of the old payload under the new one's beginning, as when a page was
            // written again while its description went out.
            let keep = (message.len() / 4).min(crate::UNIT_BYTES);
            let common = message.len().min(earlier.len());
            if keep < common {
                message[keep..common].copy_from_slice(&earlier[keep..common]);
            }
        }
        self.earlier = Some(fresh);
    }

    pub(crate) fn flip(&mut self, frame: &mut [u8]) {
        let bit = self.draw() % (frame.len() as u64 * 8);
        frame[(bit / 8) as usize] ^= 1 << (bit % 8);
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}
