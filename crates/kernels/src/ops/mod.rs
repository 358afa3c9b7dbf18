//! One folder per op: the contract and its checks in `mod.rs`, the oracle in `reference.rs`, the CPU kernel in `cpu.rs`.

pub(crate) mod attention;
pub(crate) mod check;
pub(crate) mod cross_entropy;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod experts;
pub(crate) mod linear;
pub(crate) mod log_sum_exp;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod rows;
