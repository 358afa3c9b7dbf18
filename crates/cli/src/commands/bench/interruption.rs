//! Ctrl-C while there are temporary files: the work stops, and they go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::hints::failure;

/// Whether the person, or the system, wants an end.
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// Signals end the program at once, as usual.
    pub fn none() -> Self {
        Interruption(Arc::new(AtomicBool::new(false)))
    }

    /// From here on signals to end are noted; the second one ends the program at once.
    pub fn noted() -> Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Some work cannot stop half-way: whoever asks twice is not kept waiting.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&requested))?;
            flag::register(signal, Arc::clone(&requested))?;
        }
        Ok(Interruption(requested))
    }

    /// Whether one came.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Errors: one came.
    pub fn check(&self) -> Result<()> {
        match self.requested() {
            true => Err(failure("interrupted", "the temporary files are removed; nothing was reported")),
            false => Ok(()),
        }
    }
}
