//! Who is in the map and how old it is, as metrics.

use std::time::Duration;

use cluster::{Member, NodeState, Presence, Role, View};
use telemetry::{Label, Meters};

const ROLES: [(Role, &str); 2] = [(Role::Worker, "worker"), (Role::Drafter, "drafter")];
const STATES: [&str; 4] = ["ready", "draining", "suspect", "disconnected"];

/// Told at every tick: an age grows without events.
pub(super) fn record(meters: &Meters, view: &View, now: Duration) {
    for (role, name) in ROLES {
        for state in STATES {
            let members = view.role(role).filter(|member| self::state(member) == state).count();
            meters.members.record(members as f64, &[Label::role(name), Label::state(state)]);
        }
    }
    let oldest = view.members().iter().map(|member| now.saturating_sub(member.heard)).max();
    meters.snapshot_age.record(oldest.unwrap_or_default().as_secs_f64(), &[]);
}

fn state(member: &Member) -> &'static str {
    match (member.presence, member.record.state) {
        (Presence::Alive, NodeState::Ready) => "ready",
        (Presence::Alive, NodeState::Draining) => "draining",
        (Presence::Suspect { .. }, _) => "suspect",
        (Presence::Disconnected { .. }, _) => "disconnected",
    }
}
