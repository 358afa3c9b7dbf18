//! What the CPU kernels stand on: threads, instruction sets, memory advice, and the measured limits of the machine.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod chosen;
pub mod limits;
pub(crate) mod memory;
pub(crate) mod simd;
pub(crate) mod threads;

use std::sync::Arc;

use kanana_tensor::Pool;
pub use simd::Isa;

/// What a CPU kernel needs of the machine.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) threads: &'a threads::Threads,
    pub(crate) isa: Isa,
    pub(crate) pool: &'a Arc<Pool>,
}
