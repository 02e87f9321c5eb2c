use std::collections::BTreeSet;

/// Where a node computes, in its own words. Nothing but speed depends on them: a node that errs or lies is used worse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Names the machine while it is up; opaque.
    pub machine: String,
    pub device: SiteDevice,
}

/// What a node computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SiteDevice {
    /// So many threads on these cores, as the machine numbers them.
    Cores { cores: BTreeSet<u32>, threads: u32 },
    /// Names of GPUs, equal on one machine when they mean the same one.
    Gpus(BTreeSet<String>),
    /// Something that this build has no word for.
    Other,
}

/// How near a drafter is to the worker that it drafts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nearness {
    /// On the same device: what one computes slows the other.
    Colocated,
    /// On another device of the same machine.
    SameNode,
    /// On another machine, or nobody said where.
    Remote,
}

impl Nearness {
    pub fn between(one: Option<&Site>, other: Option<&Site>) -> Self {
        match (one, other) {
            (Some(one), Some(other)) if one.machine == other.machine => {
                if one.device.shares(&other.device) {
                    Self::Colocated
                } else {
                    Self::SameNode
                }
            }
            _ => Self::Remote,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Colocated => "colocated",
            Self::SameNode => "same-node",
            Self::Remote => "remote",
        }
    }
}

impl SiteDevice {
    /// Whether two nodes of one machine compute in the same place. Cores: some thread of one must stand where a thread of
    /// the other does, as the cores of both together are fewer than their threads.
    fn shares(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cores { cores, threads }, Self::Cores { cores: others, threads: more }) => {
                let both = cores.union(others).count() as u64;
                !cores.is_disjoint(others) && u64::from(*threads) + u64::from(*more) > both
            }
            (Self::Gpus(gpus), Self::Gpus(others)) => !gpus.is_disjoint(others),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(machine: &str, cores: std::ops::Range<u32>, threads: u32) -> Option<Site> {
        let device = SiteDevice::Cores { cores: cores.collect(), threads };
        Some(Site { machine: machine.into(), device })
    }

    fn gpus(machine: &str, names: &[&str]) -> Option<Site> {
        let device = SiteDevice::Gpus(names.iter().map(|&name| name.to_owned()).collect());
        Some(Site { machine: machine.into(), device })
    }

    #[test]
    fn nearness_is_machine_and_device() {
        use Nearness::{Colocated, Remote, SameNode};
        let other = |machine: &str| Some(Site { machine: machine.into(), device: SiteDevice::Other });
        for (case, one, two, expected) in [
            ("all cores each", cores("a", 0..8, 8), cores("a", 0..8, 8), Colocated),
            ("one thread too many", cores("a", 0..8, 6), cores("a", 0..8, 3), Colocated),
            ("threads that fit beside each other", cores("a", 0..8, 6), cores("a", 0..8, 2), SameNode),
            ("cores of their own", cores("a", 0..4, 4), cores("a", 4..8, 4), SameNode),
            ("more threads than cores, of their own", cores("a", 0..4, 9), cores("a", 4..8, 9), SameNode),
            ("pinned, one core in common", cores("a", 0..4, 4), cores("a", 3..7, 4), Colocated),
            ("pinned inside of all", cores("a", 0..8, 8), cores("a", 0..2, 2), Colocated),
            ("the same cores elsewhere", cores("a", 0..8, 8), cores("b", 0..8, 8), Remote),
            ("one GPU", gpus("a", &["0"]), gpus("a", &["0"]), Colocated),
            ("one of two GPUs", gpus("a", &["0", "1"]), gpus("a", &["1"]), Colocated),
            ("two GPUs", gpus("a", &["0"]), gpus("a", &["1"]), SameNode),
            ("the same GPU elsewhere", gpus("a", &["0"]), gpus("b", &["0"]), Remote),
            ("GPU and cores", gpus("a", &["0"]), cores("a", 0..8, 8), SameNode),
            ("devices unheard of", other("a"), other("a"), SameNode),
            ("an old drafter", cores("a", 0..8, 8), None, Remote),
            ("an old worker", None, cores("a", 0..8, 8), Remote),
            ("neither says", None, None, Remote),
        ] {
            assert_eq!(Nearness::between(one.as_ref(), two.as_ref()), expected, "{case}");
            assert_eq!(Nearness::between(two.as_ref(), one.as_ref()), expected, "{case}, turned round");
        }
    }
}
