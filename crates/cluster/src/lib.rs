//! Who is there and who serves what.
//!
//! Every node tells every coordinator what it is ([`NodeRecord`]) and how busy it is ([`Load`]). A
//! [`Table`] turns those updates, and silence, into an immutable [`View`]; [`place`] picks a worker
//! and ranks drafters from a view. The view is advice: the node that owns the slots admits.
//! [`Nearness`] is how near a drafter is to a worker, by what each says of its [`Site`].
//! A [`PrefixIndex`] knows which worker has which prefix in its cache; `place` weighs that against load.
//!
//! Not here: the Join stream and its task (`daemon::{join, registry}`), the wire (`proto`), clocks
//! (time comes in as a `Duration` since process start), leadership (nothing needs a leader).
//!
//! Start at [`Table::apply`], then [`place`].
#![forbid(unsafe_code)]

mod endpoint;
mod member;
mod placement;
mod prefix;
mod site;
mod split;
mod table;

pub use endpoint::Endpoint;
pub use member::{
    Duty, Incarnation, Load, Member, NodeId, NodeRecord, NodeState, NodeUpdate, Presence, Role, VocabHash,
};
pub use placement::{MAX_DRAFTERS, NoPlace, Placement, Problem, place, turn};
pub use prefix::{PageChange, PrefixCursor, PrefixGap, PrefixIndex, PrefixLog, PrefixName, PrefixUpdate};
pub use site::{Nearness, Site, SiteDevice};
pub use split::Split;
pub use table::{Change, Patience, Refused, StreamId, Table, View};
