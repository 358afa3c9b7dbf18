//! One file: continued where it stopped, digested on the way, tried again when the connection is cut.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Error, Result};
use ureq::Body;
use ureq::http::Response;

use super::client::{Client, RemoteFile, Trouble};
use super::digest::Digest;
use super::id::RepositoryId;
use super::progress::FileProgress;
use crate::hints::{failure, failure_of};

const CHUNK: usize = 256 << 10; // bytes

/// A file to fetch, and where to.
pub struct Download<'a> {
    pub client: &'a Client,
    pub id: &'a RepositoryId,
    pub file: &'a RemoteFile,
    /// Where the bytes are gathered; it stays when the download fails, for the next one to continue.
    pub partial: &'a Path,
    pub progress: FileProgress<'a>,
    /// Set when another file has failed, so that this one need not go on.
    pub stop: &'a AtomicBool,
}

impl Download<'_> {
    /// Fetches the rest of the file, and checks the whole.
    pub fn run(self) -> Result<()> {
        let mut gathered = Gathered::open(self.partial, self.file).map_err(|e| self.cannot_write(e))?;
        let mut patience = self.client.patience();
        loop {
            let before = gathered.len;
            match self.attempt(&mut gathered) {
                Ok(()) => return self.check(gathered),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(error)) => {
                    if gathered.len > before {
                        patience.renew();
                    }
                    patience.spend(error)?;
                }
            }
        }
    }

    /// One request for what is missing, read to its end or to where it is cut.
    fn attempt(&self, gathered: &mut Gathered) -> Result<(), Trouble> {
        if self.file.size.is_some_and(|size| gathered.len > size) {
            gathered.restart().map_err(|e| self.cannot_write(e))?;
        }
        self.progress.set(gathered.len);
        if self.file.size == Some(gathered.len) {
            return Ok(());
        }
        let mut response = self.client.get(&self.file.url, gathered.len)?;
        match response.status().as_u16() {
            206 if starts_at(&response, gathered.len) => {}
            // The server does not continue but sends all of it.
            200 => gathered.restart().map_err(|e| self.cannot_write(e))?,
            206 | 416 => {
                gathered.restart().map_err(|e| self.cannot_write(e))?;
                return Err(Trouble::Passing(
                    self.cut(Error::msg("the server sent another part of the file")),
                ));
            }
            _ => return Err(self.client.trouble(&response, &self.file.name, self.id)),
        }
        self.receive(&mut response, gathered)?;
        match self.file.size.is_some_and(|size| gathered.len < size) {
            true => Err(Trouble::Passing(self.cut(Error::msg("the server ended early")))),
            false => Ok(()),
        }
    }

    fn receive(&self, response: &mut Response<Body>, gathered: &mut Gathered) -> Result<(), Trouble> {
        let mut reader = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::msg("stopped because another file failed").into());
            }
            let count = reader.read(&mut chunk).map_err(|e| Trouble::Passing(self.cut(e.into())))?;
            if count == 0 {
                return Ok(());
            }
            gathered.append(&chunk[..count]).map_err(|e| self.cannot_write(e))?;
            self.progress.set(gathered.len);
            if self.file.size.is_some_and(|size| gathered.len > size) {
                return Ok(()); // The check says what is wrong, without filling the disk.
            }
        }
    }

    fn check(&self, gathered: Gathered) -> Result<()> {
        let RemoteFile { name, etag, size, .. } = self.file;
        let (len, digest) = gathered.finish().map_err(|e| self.cannot_write(e))?;
        let wrong = match (size, digest) {
            (Some(size), _) if *size != len => format!("{len} bytes long, expected {size}"),
            (_, Some(digest)) if digest != *etag => format!("of digest {digest}, expected {etag}"),
            _ => return Ok(()),
        };
        fs::remove_file(self.partial).with_context(|| format!("cannot remove {}", self.partial.display()))?;
        Err(failure(
            format_args!("{name} came damaged and was removed: it is {wrong}"),
            "run it again; if it happens again, the proxy or the mirror (HF_ENDPOINT) changes files",
        ))
    }

    fn cut(&self, error: Error) -> Error {
        failure_of(
            error,
            format_args!("the connection was lost again and again while fetching {}", self.file.name),
            "run it again when the connection is better: it continues where it stopped",
        )
    }

    fn cannot_write(&self, error: io::Error) -> Error {
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                "free some space, or set HF_HOME to a folder on another disk; running it again continues"
            }
            _ => "check the permissions of the folder, or set HF_HOME to another one",
        };
        failure_of(error.into(), format_args!("cannot write {}", self.partial.display()), hint)
    }
}

/// Whether a partial response continues at byte `start`.
fn starts_at(response: &Response<Body>, start: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    first == Some(start)
}

/// The bytes so far, with their digest.
struct Gathered<'a> {
    remote: &'a RemoteFile,
    file: File,
    len: u64,
    digest: Digest,
}

impl<'a> Gathered<'a> {
    /// Takes in what an earlier download left.
    fn open(path: &Path, remote: &'a RemoteFile) -> io::Result<Self> {
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        let mut digest = Digest::for_etag(&remote.etag, remote.size);
        let (mut len, mut chunk) = (0, vec![0; CHUNK]);
        // Not to the end of the file but of its length: a device has no end.
        let mut earlier = (&mut file).take(fs::metadata(path)?.len());
        loop {
            let count = earlier.read(&mut chunk)?;
            if count == 0 {
                return Ok(Gathered { remote, file, len, digest });
            }
            digest.update(&chunk[..count]);
            len += count as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        if self.len > 0 {
            self.file.set_len(0)?;
        }
        self.len = 0;
        self.digest = Digest::for_etag(&self.remote.etag, self.remote.size);
        Ok(())
    }

    /// Waits for the disk; length and digest.
    fn finish(self) -> io::Result<(u64, Option<String>)> {
        self.file.sync_all()?;
        Ok((self.len, self.digest.finish()))
    }
}
