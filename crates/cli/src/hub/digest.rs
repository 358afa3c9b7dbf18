//! The digests by which the Hub names blobs: SHA-256 of large files, git's object id of small ones.

use std::fmt::Write;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The running digest of a file.
pub enum Digest {
    /// Of the bytes.
    Sha256(Sha256),
    /// Of `blob LENGTH`, a zero byte and the bytes.
    Git(Sha1),
    /// The name is not a digest that is known; the length alone is checked.
    Unknown,
}

impl Digest {
    /// The digest that `etag` is, of a file of `size` bytes.
    pub fn for_etag(etag: &str, size: Option<u64>) -> Self {
        let is_hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        match (etag.len(), size) {
            (64, _) if is_hex => Digest::Sha256(Sha256::new()),
            (40, Some(size)) if is_hex => Digest::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => Digest::Unknown,
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Digest::Sha256(digest) => digest.update(bytes),
            Digest::Git(digest) => digest.update(bytes),
            Digest::Unknown => {}
        }
    }

    /// The digest in hexadecimal.
    pub fn finish(self) -> Option<String> {
        match self {
            Digest::Sha256(digest) => Some(hex(&digest.finalize())),
            Digest::Git(digest) => Some(hex(&digest.finalize())),
            Digest::Unknown => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail: this is a bug");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(etag: &str, size: Option<u64>, data: &str) {
        let mut digest = Digest::for_etag(etag, size);
        digest.update(data.as_bytes());
        assert_eq!(digest.finish().as_deref(), Some(etag));
    }

    #[test]
    fn published_values() {
        // `printf hello | sha256sum` and `printf hello | git hash-object --stdin`.
        check("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", None, "hello");
        check("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", Some(5), "hello");
        assert!(Digest::for_etag("abc-7", Some(5)).finish().is_none());
    }
}
