//! The small models that the program carries: `pico`, which answers, and `pico-base`, which goes on with a text.
//!
//! They are written once into the cache folder, under a name made of their contents, and read from there as any other
//! checkpoint. models/README.md says what they are. Tests: `cargo test -p kanana --test embedded`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The model that is used when none is named.
pub const DEFAULT: &str = "pico";

/// A file of an embedded model.
type File = (&'static str, &'static [u8]);

macro_rules! model {
    ($folder:literal) => {
        &[
            ("config.json", include_bytes!(concat!("../../../models/", $folder, "/config.json"))),
            (
                "generation_config.json",
                include_bytes!(concat!("../../../models/", $folder, "/generation_config.json")),
            ),
            ("model.safetensors", include_bytes!(concat!("../../../models/", $folder, "/model.safetensors"))),
            ("tokenizer.json", include_bytes!(concat!("../../../models/", $folder, "/tokenizer.json"))),
            (
                "tokenizer_config.json",
                include_bytes!(concat!("../../../models/", $folder, "/tokenizer_config.json")),
            ),
        ]
    };
}

/// Models by name.
const MODELS: [(&str, &[File]); 2] = [(DEFAULT, model!("pico")), ("pico-base", model!("pico-base"))];

/// The folder of an embedded model, written now if it is not there yet; none for another name.
///
/// Errors: neither the cache folder nor the folder for temporary files can be written to.
pub fn folder(name: &str) -> Result<Option<PathBuf>> {
    let Some((name, files)) = MODELS.iter().find(|(model, _)| *model == name) else { return Ok(None) };
    let mut digest = Sha256::new();
    for (file, bytes) in *files {
        digest.update(file);
        digest.update(bytes);
    }
    let version: String = digest.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut refused = None;
    for cache in caches() {
        let place = cache.join("kanana").join(format!("{name}-{version}"));
        match write(&place, files) {
            Ok(()) => return Ok(Some(place)),
            Err(error) => {
                refused =
                    Some(error.context(format!("cannot write the embedded model to {}", place.display())))
            }
        }
    }
    Err(refused.unwrap_or_else(|| anyhow::anyhow!("there is no folder for the embedded model")))
}

/// Where caches go: `XDG_CACHE_HOME`, `~/.cache`, else the folder for temporary files.
fn caches() -> impl Iterator<Item = PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    cache.or(home).into_iter().chain([std::env::temp_dir()])
}

/// Writes the files beside their place, which they take together.
fn write(place: &Path, files: &[File]) -> Result<()> {
    if place.is_dir() {
        return Ok(());
    }
    let partial = place.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    for (file, bytes) in files {
        fs::write(partial.join(file), bytes).with_context(|| partial.join(file).display().to_string())?;
    }
    match fs::rename(&partial, place) {
        Ok(()) => Ok(()),
        Err(error) => {
            let _ = fs::remove_dir_all(&partial);
            // Another program may have been faster.
            if place.is_dir() { Ok(()) } else { Err(error.into()) }
        }
    }
}
