use std::any::Any;
use std::sync::{Arc, Weak};

use crate::pool::Pool;

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory.
    Cpu,
    /// The memory of a CUDA device, by its number.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Read-only bytes that somebody else owns: a memory-mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// One cache line: the unit of owned storage, so that every owned tensor starts on a 64-byte boundary.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Owned lines that go back to their pool when dropped.
pub(crate) struct Owned {
    pub(crate) lines: Vec<Line>,
    pub(crate) home: Weak<Pool>,
}

impl Owned {
    /// Zeroed memory for `bytes` bytes; the pages are touched only when used.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Owned { lines: bytemuck::allocation::zeroed_vec(bytes.div_ceil(64)), home: Weak::new() }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(pool) = self.home.upgrade() {
            pool.give_back(std::mem::take(&mut self.lines));
        }
    }
}

#[derive(Clone)]
pub(crate) enum Storage {
    Owned(Arc<Owned>),
    Shared(SharedBytes),
    /// Opaque to this crate: the implementation of the kernels that made it knows what it is.
    OnDevice(Arc<dyn Any + Send + Sync>),
}
