use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use telemetry::{Label, Meters};
use transport::{Damage, FabricError};

/// Why a hand-off ended early. What had arrived is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The other worker, or its link, cannot be reached.
    Unreachable,
    /// It does not take the prompt: draining, full, other numerics.
    Refused,
    /// It went away in the middle.
    Closed,
    /// Nothing came for too long.
    Hung,
    /// Bytes that are not what their checksum names.
    Damaged,
    Truncated,
    /// Another unit than was due.
    Order,
    /// Of another transfer, of another generation of the storage, or not what was described.
    Stale,
    /// Pages of other tokens than ours.
    Prefix,
    /// No page is free here.
    NoRoom,
    /// The engine here, or there, failed; or something was said that makes no sense.
    Failed,
}

impl Fault {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Hung => "hung",
            Self::Damaged => "damaged",
            Self::Truncated => "truncated",
            Self::Order => "order",
            Self::Stale => "stale",
            Self::Prefix => "prefix",
            Self::NoRoom => "no_room",
            Self::Failed => "failed",
        }
    }

    pub(crate) fn of(error: &FabricError) -> Self {
        match error {
            FabricError::Deadline { .. } => Self::Hung,
            FabricError::Closed | FabricError::Broken => Self::Closed,
            FabricError::Damaged(Damage::Truncated) => Self::Truncated,
            FabricError::Damaged(Damage::Magic | Damage::Header | Damage::Payload) => Self::Damaged,
            FabricError::OutOfOrder { .. } => Self::Order,
            FabricError::Unreachable { .. } | FabricError::NotLoopback { .. } => Self::Unreachable,
            FabricError::TooLarge { .. } | FabricError::Io { .. } => Self::Failed,
        }
    }
}

/// What was handed over, told as metrics; the rate also goes out with the heartbeats.
#[derive(Debug)]
pub(crate) struct Figures {
    meters: &'static Meters,
    model: [Label; 1],
    /// Prompt tokens a second of recent hand-offs.
    rate: std::sync::Arc<AtomicU32>,
    transfers: AtomicU64,
}

impl Figures {
    pub(crate) fn new(meters: &'static Meters, model: &str, rate: std::sync::Arc<AtomicU32>) -> Self {
        Self { meters, model: [Label::model(model)], rate, transfers: AtomicU64::new(0) }
    }

    /// Pages came in within `time`, and perhaps the hand-off ended early.
    pub(crate) fn fetched(&self, pages: u32, bytes: u64, time: Duration, fault: Option<Fault>) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.meters.handed_pages.add(pages.into(), &self.model);
        self.meters.handed_bytes.add(bytes, &self.model);
        if let Some(fault) = fault {
            let labels = [self.model[0].clone(), Label::reason(fault.as_str())];
            self.meters.hand_over_faults.add(1, &labels);
        } else if pages > 0 && !time.is_zero() {
            let new = f64::from(pages * kvcache::PAGE_POSITIONS) / time.as_secs_f64();
            let new = new.clamp(1.0, f64::from(u32::MAX)) as u32;
            let old = self.rate.load(Ordering::Relaxed);
            let mean = if old == 0 { new } else { old - old / 4 + new / 4 };
            self.rate.store(mean.max(1), Ordering::Relaxed);
        }
    }
}
