//! What this machine can do at most.

use kanana_kernels::Format;
use kanana_kernels::runtime::Isa;
use kanana_kernels::runtime::limits::{self, Peak, Unit};

use crate::memory;

/// Read to measure the bandwidth: larger than any cache.
const BANDWIDTH_BYTES: u64 = 1 << 30;

/// The limits of so many threads.
pub struct Machine {
    pub threads: usize,
    pub read_bandwidth: f64, // bytes per second
    pub peak: Peak,          // of what multiplies with weights of the format at hand
}

impl Machine {
    /// The limits of products with weights of a format.
    pub fn measure(threads: usize, isa: Isa, format: Format) -> Self {
        let peak = limits::peak(threads, isa, Unit::of(isa, format));
        Machine { threads, read_bandwidth: bandwidth(threads, isa), peak }
    }

    /// Measures once more, and keeps the best.
    pub fn measure_again(&mut self, isa: Isa) {
        self.read_bandwidth = self.read_bandwidth.max(bandwidth(self.threads, isa));
        self.peak = self.peak.max(limits::peak(self.threads, isa, self.peak.unit));
    }
}

/// Units: bytes per second.
pub fn bandwidth(threads: usize, isa: Isa) -> f64 {
    let bytes = memory::available().map_or(BANDWIDTH_BYTES, |free| BANDWIDTH_BYTES.min(free / 2));
    limits::read_bandwidth(threads, isa, bytes as usize)
}
