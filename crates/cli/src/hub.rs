//! Downloads of checkpoints from the Hugging Face Hub or a mirror of it, into the cache that the Python tools share.
//!
//! A file is fetched under a temporary name, continued where it was cut, checked against the digest that the Hub
//! announced, and only then given its place. It refuses to know what the files mean, and to fetch pickles, which run
//! code when they are loaded. The libraries for the Hub either do not check digests or bring an asynchronous runtime.
//! Tests: `cargo test -p kanana hub`.
//!
//! Environment, as in `huggingface_hub`: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`,
//! `HF_HUB_OFFLINE`, and the proxy variables (`HTTPS_PROXY`, `NO_PROXY`, …).

mod cache;
mod client;
mod digest;
mod download;
mod id;
mod progress;
mod select;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::hints::failure;
use cache::{Cache, Repository};
use client::{Client, RemoteFile};
use download::Download;
use id::RepositoryId;
pub use progress::Progress;
pub use select::is_companion;

/// Files in progress at the same time.
const WORKERS: usize = 4;

/// A Hub and the cache of what came from it.
pub struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
}

impl Hub {
    /// The Hub, cache and token that the environment asks for.
    ///
    /// Errors: `HF_ENDPOINT` is no address, or there is no home folder for a cache.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let is_on = |name| {
            variable(name)
                .is_some_and(|value| ["1", "true", "yes", "on"].contains(&&*value.to_ascii_lowercase()))
        };
        let home = cache::home(variable);
        let token = variable("HF_TOKEN").or_else(|| {
            let file = variable("HF_TOKEN_PATH")
                .map(PathBuf::from)
                .or_else(|| Some(home.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok()
        });
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let folder = variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home?.join("hub")));
        let folder = folder.ok_or_else(|| {
            failure("there is no home folder to keep downloads in", "set HF_HOME to a folder for downloads")
        })?;
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(Hub {
            client: Client::new(&endpoint, token)?,
            cache: Cache::new(folder),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        })
    }

    /// The folder of a model that an earlier download left; `id` is OWNER/NAME, with @REVISION if not `main`.
    ///
    /// None when the folder has no weights: the Python tools fetch a tokenizer alone, and so do include patterns.
    pub fn cached(&self, id: &str) -> Option<PathBuf> {
        let id = RepositoryId::parse(id).ok()?;
        self.cache.repository(&id).snapshot_of(&id.revision).filter(|folder| has_model(folder))
    }

    /// Brings the folder of a model up to date with the Hub, and returns it. What is there already is not fetched.
    ///
    /// `include` are patterns with `*` and `?` of the files to fetch; the files that this program reads, when empty.
    ///
    /// Errors, each with what to do: no such model, no access, no connection, connection lost again and again, disk
    /// full, wrong digest. What was fetched stays, and the next call continues there.
    pub fn pull(&self, id: &str, include: &[String], progress: &Progress) -> Result<PathBuf> {
        let id = RepositoryId::parse(id)?;
        let repository = self.cache.repository(&id);
        if self.offline {
            return repository.snapshot_of(&id.revision).ok_or_else(|| {
                failure(
                    format_args!(
                        "{id} is not in {} and HF_HUB_OFFLINE is set",
                        self.cache.folder().display()
                    ),
                    "unset HF_HUB_OFFLINE to download it",
                )
            });
        }
        let listing = self.client.list(&id)?;
        let names = select::select(&id, &listing.files, include)?;
        let files = in_parallel(&names, |name| self.client.describe(&id, &listing.commit, name))?;

        let missing: Vec<&RemoteFile> = files.iter().filter(|file| !repository.has(file)).collect();
        progress.begin(missing.iter().filter_map(|file| file.size).sum());
        let stop = AtomicBool::new(false);
        in_parallel(&missing, |file| {
            let partial = repository.partial(&file.etag);
            let progress = progress.file(file);
            let download =
                Download { client: &self.client, id: &id, file, partial: &partial, progress, stop: &stop };
            let fetched = fetch(&repository, download);
            stop.fetch_or(fetched.is_err(), Ordering::Relaxed);
            fetched
        })?;

        for file in &files {
            repository.link(&listing.commit, file)?;
        }
        // Last, so that a name does not lead to what was cut short.
        repository.write_ref(&id.revision, &listing.commit)?;
        Ok(repository.snapshot(&listing.commit))
    }
}

fn fetch(repository: &Repository, download: Download) -> Result<()> {
    let file = download.file;
    // Held until the blob is in its place; the Python tools take the same lock.
    let _lock = repository.lock(&file.etag)?;
    if repository.has(file) {
        return Ok(());
    }
    download.run()?;
    repository.publish(file)
}

/// Maps `items` on a few threads, in order; the first error ends it.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<R>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(items.len()) {
            scope.spawn(|| {
                while let Some((i, item)) = items.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Errors in the order in which they came: the first is the cause, the others may be its consequences.
    if let Some(first) = results.iter().position(|(_, result)| result.is_err()) {
        return results.swap_remove(first).1.map(|_| Vec::new());
    }
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

fn has_model(folder: &Path) -> bool {
    let mut names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    folder.join("config.json").exists()
        && names.any(|path| path.extension().is_some_and(|e| e == "safetensors"))
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("every path of the cache is below its folder: this is a bug")
}
