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

/// Bytes of a cache line: every owned tensor starts at a multiple of this.
pub(crate) const LINE: usize = 64;

/// Memory that starts on a cache line.
#[derive(Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Lines {
    /// `count` lines of zeros; the pages of a large buffer are touched only when used.
    pub(crate) fn zeroed(count: usize) -> Self {
        // A vector of aligned lines would be simpler, but only for the alignment that `calloc` promises does the
        // standard library take its zeros from the operating system; for a larger one it writes them, page by page.
        let len = count * LINE;
        let buffer = vec![0; len + LINE - 1];
        let start = buffer.as_ptr().addr().wrapping_neg() % LINE;
        Lines { buffer, start, len }
    }

    /// How many lines there are.
    pub(crate) fn count(&self) -> usize {
        self.len / LINE
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buffer[self.start..][..self.len]
    }

    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..][..self.len]
    }
}

/// Owned memory that goes back to its pool when dropped.
pub(crate) struct Owned {
    pub(crate) lines: Lines,
    pub(crate) home: Weak<Pool>,
}

impl Owned {
    /// Zeroed memory for `bytes` bytes, of no pool.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Owned { lines: Lines::zeroed(bytes.div_ceil(LINE)), home: Weak::new() }
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

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// A cache of keys and values costs what is in it, and weights get huge pages because none was touched before.
    #[test]
    fn zeros_cost_nothing_until_they_are_used() {
        const BYTES: usize = 256 << 20;
        let before = resident_bytes();
        let mut owned = Owned::zeroed(BYTES);
        assert!(resident_bytes() < before + BYTES / 4);
        let bytes = owned.lines.as_bytes_mut();
        assert_eq!((bytes.len(), bytes.as_ptr().addr() % LINE), (BYTES, 0));
        bytes[..BYTES / 2].fill(1);
        assert!(resident_bytes() > before + BYTES / 4);
        assert_eq!((bytes[BYTES / 2 - 1], bytes[BYTES - 1]), (1, 0));
    }
}
