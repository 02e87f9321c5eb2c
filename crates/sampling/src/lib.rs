//! Logits to a token: warp, noise, pick.
