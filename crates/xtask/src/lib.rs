//! The chores of the repository: the layout check and the steps of CI.
//!
//! Knows the shape of the tree and nothing of what the crates do. Tests: `cargo test -p xtask`; its
//! `tests/layout.rs` runs the layout check over the real workspace, so that `cargo test` fails when a law is broken.

pub mod ci;
pub mod layout;
