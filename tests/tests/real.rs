//! A cluster on real weights: coordinator, worker and drafter in this process, asked over HTTP.

mod exactness;
mod hand_over;
mod load;
mod matrix;
mod model;
