//! A cluster of toy models in this process: real gRPC on loopback, no weights.
//!
//! One sentence is proved here in many ways: a slow, dead, lying or absent drafter makes a slower
//! cluster, never a wrong or a stuck one. The right text is known beforehand, from the toy's law
//! (`question`). Nodes are in `nodes`; who plays false towards them is in `fake_drafter` and
//! `fake_worker`.

mod fake_drafter;
mod fake_worker;
mod nodes;
mod question;

mod faults;
mod hand_over;
mod leaving;
mod lying_drafter;
mod lying_worker;
mod pairing;
mod placement;
mod prefixes;
mod refusals;
mod sharing;
mod slow_client;
mod spill;
mod telemetry;
mod text;
