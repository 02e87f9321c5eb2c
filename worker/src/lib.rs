//! A target rank.
