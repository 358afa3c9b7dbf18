//! Ctrl-C stops the answer, not the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// The exit code of a program that ended because of Ctrl-C: 128 + SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Turns Ctrl-C into a flag while an answer is being made; at any other time it ends the program as usual.
pub struct Interrupt {
    requested: Arc<AtomicBool>,
    fatal: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over Ctrl-C; until [`Interrupt::guard`] is called it still ends the program.
    pub fn install() -> io::Result<Self> {
        let requested = Arc::new(AtomicBool::new(false));
        let fatal = Arc::new(AtomicBool::new(true));
        flag::register_conditional_default(SIGINT, Arc::clone(&fatal))?;
        flag::register(SIGINT, Arc::clone(&requested))?;
        Ok(Interrupt { requested, fatal })
    }

    /// From here on until the guard is dropped Ctrl-C only sets the flag, which starts unset.
    pub fn guard(&self) -> Guard<'_> {
        self.requested.store(false, Ordering::SeqCst);
        self.fatal.store(false, Ordering::SeqCst);
        Guard(self)
    }
}

/// While it lives, Ctrl-C sets a flag.
pub struct Guard<'a>(&'a Interrupt);

impl Guard<'_> {
    /// Whether Ctrl-C was pressed since the guard was made.
    pub fn requested(&self) -> bool {
        self.0.requested.load(Ordering::SeqCst)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fatal.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_sets_the_flag_and_a_new_guard_clears_it() {
        let interrupt = Interrupt::install().unwrap();
        let guard = interrupt.guard();
        assert!(!guard.requested());
        signal_hook::low_level::raise(SIGINT).unwrap();
        assert!(guard.requested());
        drop(guard);
        assert!(!interrupt.guard().requested());
    }
}
