//! The normaliser of a distribution over tokens. Contract: [`crate::Kernels::log_sum_exp`].

pub(crate) mod cpu;
pub(crate) mod reference;
