//! A draft rank.
