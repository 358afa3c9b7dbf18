//! What the CPU kernels stand on: threads, instruction sets, memory advice, and the measured limits of the machine.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub mod limits;
pub(crate) mod memory;
pub(crate) mod simd;
pub(crate) mod threads;

pub use simd::Isa;
