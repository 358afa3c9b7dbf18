//! The folders of `huggingface_hub`: `models--OWNER--NAME/` with `blobs/ETAG`, `refs/REVISION` (which holds a commit),
//! and `snapshots/COMMIT/FILE` (a link to the blob); `.locks/` beside them.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use super::client::RemoteFile;
use super::id::RepositoryId;
use super::parent;

/// The folder of everything that came from the Hub, of this program or the Python tools.
pub struct Cache {
    folder: PathBuf,
}

/// The part of a cache that belongs to one model.
pub struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

/// `HF_HOME`, or where it is when not set.
pub fn home(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let below = |name, rest| variable(name).map(|folder| Path::new(&folder).join(rest));
    below("HF_HOME", "")
        .or_else(|| below("XDG_CACHE_HOME", "huggingface"))
        .or_else(|| below("HOME", ".cache/huggingface"))
        .or_else(|| below("USERPROFILE", ".cache/huggingface"))
}

/// Whether a name that a server gave stays below the folder it is joined to, on every system.
pub fn is_safe_path(name: &str) -> bool {
    let normal = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    normal && !name.is_empty() && !name.ends_with('/') && !name.contains(['\\', ':', '\0'])
}

/// Whether a text is the full name of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Cache {
    pub fn new(folder: PathBuf) -> Self {
        Cache { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn repository(&self, id: &RepositoryId) -> Repository {
        let name = format!("{}--{}", id.kind.plural(), id.repository.replace('/', "--"));
        Repository { folder: self.folder.join(&name), locks: self.folder.join(".locks").join(name) }
    }
}

impl Repository {
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The snapshot that a branch, tag or commit leads to, when it is there.
    pub fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.folder.join("refs").join(revision));
        let commit = commit.as_deref().map_or(revision, str::trim);
        Some(self.snapshot(commit)).filter(|snapshot| is_commit(commit) && snapshot.is_dir())
    }

    pub fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Whether the blob of a file is there, as long as it should be.
    pub fn has(&self, file: &RemoteFile) -> bool {
        fs::metadata(self.blob(&file.etag))
            .is_ok_and(|found| file.size.is_none_or(|size| size == found.len()))
    }

    /// Waits until no other process fetches the blob, and keeps others away until dropped.
    pub fn lock(&self, etag: &str) -> Result<File> {
        fs::create_dir_all(self.folder.join("blobs"))
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let open = || -> io::Result<File> {
            fs::create_dir_all(&self.locks)?;
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match file.lock() {
                // Some network file systems have no locks; two processes then fetch the same bytes twice.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
                other => other.map(|()| file),
            }
        };
        open().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Gives a whole and checked download its place.
    pub fn publish(&self, file: &RemoteFile) -> Result<()> {
        let blob = self.blob(&file.etag);
        fs::rename(self.partial(&file.etag), &blob)
            .with_context(|| format!("cannot create {}", blob.display()))
    }

    /// Makes the file visible in the snapshot of a commit.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let link = self.snapshot(commit).join(&file.name);
        let up = "../".repeat(2 + file.name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", file.etag));
        replace_link(&link, &target, &self.blob(&file.etag))
            .with_context(|| format!("cannot create {}", link.display()))
    }

    /// Notes which commit a branch or tag stands for.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        fs::create_dir_all(parent(&path))
            .and_then(|()| fs::write(&path, commit))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(unix)]
fn replace_link(link: &Path, target: &Path, _blob: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|current| current == target) {
        return Ok(());
    }
    fs::create_dir_all(parent(link))?;
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(target, link),
    }
}

/// Links need a privilege on Windows that few accounts have; the Python tools copy there, too.
#[cfg(not(unix))]
fn replace_link(link: &Path, _target: &Path, blob: &Path) -> io::Result<()> {
    fs::create_dir_all(parent(link))?;
    fs::copy(blob, link).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder() {
        for (name, expected) in [
            ("config.json", true),
            ("1_Pooling/config.json", true),
            ("../config.json", false),
            ("/etc/passwd", false),
            ("a/../../b", false),
            ("a\\..\\b", false),
            ("C:x", false),
            ("", false),
            (".", false),
            ("a/", false),
        ] {
            assert_eq!(is_safe_path(name), expected, "{name}");
        }
    }

    #[test]
    fn home_by_precedence() {
        let all = [("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/u")];
        let expected = ["/h", "/x/huggingface", "/u/.cache/huggingface"];
        for (i, expected) in expected.into_iter().enumerate() {
            let variables = &all[i..];
            let lookup = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
            assert_eq!(home(&lookup), Some(expected.into()));
        }
        assert_eq!(home(&|_| None), None);
    }
}
