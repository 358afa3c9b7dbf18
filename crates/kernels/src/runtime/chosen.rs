//! The instruction set that is used where the program does not name one.

use std::sync::OnceLock;

use super::Isa;
use crate::{KernelError, Result};

/// The environment variable that lowers the instruction set, to measure and to find faults.
const VARIABLE: &str = "KANANA_ISA";

impl Isa {
    /// The set that `KANANA_ISA` names (`portable`, `avx2`, `avx512`, `avx512bf16`, `amx`), else the fastest this
    /// processor can run. The variable is read once.
    ///
    /// Errors: [`KernelError::InstructionSet`] where this processor has no set of that name.
    pub fn chosen() -> Result<Isa> {
        static ASKED: OnceLock<Option<String>> = OnceLock::new();
        let asked = ASKED.get_or_init(|| {
            let value = std::env::var_os(VARIABLE)?;
            Some(value.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
        });
        asked.as_deref().map_or_else(|| Ok(Isa::best()), named)
    }
}

fn named(name: &str) -> Result<Isa> {
    let available = Isa::available();
    available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| KernelError::InstructionSet {
        variable: VARIABLE,
        got: name.to_owned(),
        available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_names_and_others_are_refused() {
        for isa in Isa::available() {
            assert_eq!(named(isa.name()).unwrap(), isa);
        }
        let error = named("avx1024").unwrap_err().to_string();
        assert!(error.starts_with("KANANA_ISA is \"avx1024\", but this processor has portable"), "{error}");
    }
}
