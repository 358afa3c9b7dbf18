//! Rows of a table by token id. Contract: [`crate::Kernels::embedding`].

pub(crate) mod cpu;
pub(crate) mod reference;
