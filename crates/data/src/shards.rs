//! Tokens on disk: a folder with an index, the ids, where documents start, and which tokens are learnt.
//!
//! - `index.json`: what is in it, and a SHA-256 of every file;
//! - `tokens.bin`: ids, little-endian, 16 bits where the vocabulary fits, else 32;
//! - `documents.bin`: for each document the place of its first token, its fingerprint, the bytes of its text, 64 bits each;
//! - `learnt.bin`: a bit for each token, lowest first.
//!
//! A shard is written beside its place and renamed when it is whole. Tests: `cargo test -p kanana-data shards`.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::io;
use crate::{DataError, Result, Tokens};

const INDEX: &str = "index.json";
const TOKENS: &str = "tokens.bin";
const DOCUMENTS: &str = "documents.bin";
const LEARNT: &str = "learnt.bin";
const VERSION: u32 = 1;
/// Bytes of a document in `documents.bin`.
const ENTRY: usize = 24;

/// What a shard holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The form of the files.
    pub version: u32,
    /// SHA-256 of the `tokenizer.json` that made the ids.
    pub tokenizer: String,
    /// Ids there may be.
    pub vocab_size: usize,
    /// Documents.
    pub documents: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that are learnt.
    pub learnt: u64,
    /// Bytes of the text that is learnt, for bits per byte.
    pub text_bytes: u64,
    /// SHA-256 of each file.
    pub files: std::collections::BTreeMap<String, String>,
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(io(path))?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let count = file.read(&mut buffer).map_err(io(path))?;
        if count == 0 {
            return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(&buffer[..count]);
    }
}

/// A file that is hashed while it is written.
struct Hashed {
    path: PathBuf,
    file: BufWriter<File>,
    digest: Sha256,
}

impl Hashed {
    fn create(path: PathBuf) -> Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io(&path))?);
        Ok(Hashed { path, file, digest: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.file.write_all(bytes).map_err(io(&self.path))
    }

    /// On the disk; its hash.
    fn finish(self) -> Result<String> {
        let file = self.file.into_inner().map_err(|error| io(&self.path)(error.into_error()))?;
        file.sync_all().map_err(io(&self.path))?;
        Ok(self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Writes a shard.
pub struct ShardWriter {
    dir: PathBuf,
    partial: PathBuf,
    info: ShardInfo,
    tokens: Hashed,
    documents: Hashed,
    learnt: Hashed,
    bits: u8,
}

impl ShardWriter {
    /// Starts one that will be `dir`. `tokenizer`: the folder of the tokenizer that makes the ids.
    ///
    /// Errors: there is something at `dir`; no tokenizer.json; the file system refuses.
    pub fn create(dir: &Path, tokenizer: &Path, vocab_size: usize) -> Result<Self> {
        if dir.exists() {
            let problem = "it is there already: name another folder, or remove it".to_owned();
            return Err(DataError::Shards { path: dir.to_owned(), problem });
        }
        let tokenizer = sha256(&tokenizer.join("tokenizer.json"))?;
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = dir.with_file_name(name);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io(&partial))?;
        }
        fs::create_dir_all(&partial).map_err(io(&partial))?;
        let info = ShardInfo {
            version: VERSION,
            tokenizer,
            vocab_size,
            documents: 0,
            tokens: 0,
            learnt: 0,
            text_bytes: 0,
            files: Default::default(),
        };
        Ok(ShardWriter {
            dir: dir.to_owned(),
            tokens: Hashed::create(partial.join(TOKENS))?,
            documents: Hashed::create(partial.join(DOCUMENTS))?,
            learnt: Hashed::create(partial.join(LEARNT))?,
            partial,
            info,
            bits: 0,
        })
    }

    /// Adds a document, its fingerprint and the bytes of its text.
    ///
    /// Errors: no token, an id outside of the vocabulary, not a mark for each id; the file system refuses.
    pub fn push(&mut self, tokens: &Tokens, fingerprint: u64, text_bytes: usize) -> Result<()> {
        let number = self.info.documents + 1;
        let failed = |problem| Err(DataError::Shards { path: self.dir.clone(), problem });
        let (ids, marks) = (tokens.ids.len(), tokens.learnt.len());
        if ids == 0 || ids != marks {
            return failed(format!("document {number}: {ids} ids with {marks} marks, expected one for each"));
        }
        if let Some(id) = tokens.ids.iter().find(|&&id| id as usize >= self.info.vocab_size) {
            let vocab_size = self.info.vocab_size;
            return failed(format!("document {number}: id {id} of a vocabulary of {vocab_size}"));
        }
        let start = self.info.tokens.to_le_bytes();
        self.documents
            .write(&[start, fingerprint.to_le_bytes(), (text_bytes as u64).to_le_bytes()].concat())?;
        for (id, &learnt) in tokens.ids.iter().zip(&tokens.learnt) {
            match width(self.info.vocab_size) {
                2 => self.tokens.write(&(*id as u16).to_le_bytes())?,
                _ => self.tokens.write(&id.to_le_bytes())?,
            }
            self.bits |= u8::from(learnt) << (self.info.tokens % 8);
            self.info.tokens += 1;
            self.info.learnt += u64::from(learnt);
            if self.info.tokens.is_multiple_of(8) {
                self.learnt.write(&[self.bits])?;
                self.bits = 0;
            }
        }
        self.info.documents += 1;
        self.info.text_bytes += text_bytes as u64;
        Ok(())
    }

    /// What was written so far.
    pub fn info(&self) -> &ShardInfo {
        &self.info
    }

    /// Puts the shard in its place.
    pub fn finish(mut self) -> Result<ShardInfo> {
        if !self.info.tokens.is_multiple_of(8) {
            self.learnt.write(&[self.bits])?;
        }
        for (name, file) in [(TOKENS, self.tokens), (DOCUMENTS, self.documents), (LEARNT, self.learnt)] {
            self.info.files.insert(name.to_owned(), file.finish()?);
        }
        let index = self.partial.join(INDEX);
        let json = serde_json::to_string_pretty(&self.info).expect("an index is JSON: this is a bug");
        let mut file = File::create(&index).map_err(io(&index))?;
        file.write_all(json.as_bytes()).and_then(|()| file.sync_all()).map_err(io(&index))?;
        fs::rename(&self.partial, &self.dir).map_err(io(&self.dir))?;
        Ok(self.info)
    }
}

/// Bytes of an id.
fn width(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// A shard, read a document at a time.
pub struct Shards {
    dir: PathBuf,
    info: ShardInfo,
    tokens: File,
    learnt: File,
    starts: Vec<u64>, // [documents + 1]
    fingerprints: Vec<u64>,
    text_bytes: Vec<u64>,
}

impl Shards {
    /// Opens a shard and checks its sizes; [`Shards::verify`] reads all of it.
    ///
    /// Errors: a file that is missing, of another version or size.
    pub fn open(dir: &Path) -> Result<Self> {
        let failed = |name: &str, problem: String| DataError::Shards { path: dir.join(name), problem };
        let path = dir.join(INDEX);
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let info: ShardInfo =
            serde_json::from_str(&text).map_err(|error| failed(INDEX, format!("not an index: {error}")))?;
        if info.version != VERSION {
            return Err(failed(
                INDEX,
                format!("version {}, expected {VERSION}: make it again", info.version),
            ));
        }
        let size = |name: &str| -> Result<u64> {
            let path = dir.join(name);
            Ok(fs::metadata(&path).map_err(io(&path))?.len())
        };
        for (name, expected) in [
            (TOKENS, info.tokens.saturating_mul(width(info.vocab_size) as u64)),
            (DOCUMENTS, info.documents.saturating_mul(ENTRY as u64)),
            (LEARNT, info.tokens.div_ceil(8)),
        ] {
            let got = size(name)?;
            if got != expected {
                return Err(failed(name, format!("{got} bytes, expected {expected}: make it again")));
            }
        }
        let open = |name: &str| {
            let path = dir.join(name);
            File::open(&path).map_err(io(&path))
        };
        let path = dir.join(DOCUMENTS);
        let documents = fs::read(&path).map_err(io(&path))?;
        let number = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        let entries = || documents.chunks_exact(ENTRY);
        let mut starts: Vec<u64> = entries().map(number).collect();
        starts.push(info.tokens);
        if starts[0] != 0 || starts.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(failed(DOCUMENTS, "documents are not in order: make it again".to_owned()));
        }
        Ok(Shards {
            tokens: open(TOKENS)?,
            learnt: open(LEARNT)?,
            dir: dir.to_owned(),
            info,
            fingerprints: entries().map(|bytes| number(&bytes[8..])).collect(),
            text_bytes: entries().map(|bytes| number(&bytes[16..])).collect(),
            starts,
        })
    }

    /// Reads every file and compares its checksum.
    pub fn verify(&self) -> Result<()> {
        for name in [TOKENS, DOCUMENTS, LEARNT] {
            let path = self.dir.join(name);
            if self.info.files.get(name) != Some(&sha256(&path)?) {
                let problem = "its checksum is not that of the index: make it again".to_owned();
                return Err(DataError::Shards { path, problem });
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it holds.
    pub fn info(&self) -> &ShardInfo {
        &self.info
    }

    /// Fails unless a tokenizer's folder is that of the shard.
    pub fn check_tokenizer(&self, tokenizer: &Path) -> Result<()> {
        if sha256(&tokenizer.join("tokenizer.json"))? == self.info.tokenizer {
            return Ok(());
        }
        let problem =
            format!("made with another tokenizer than {}: shard the texts again", tokenizer.display());
        Err(DataError::Shards { path: self.dir.clone(), problem })
    }

    /// A fingerprint for each document.
    pub fn fingerprints(&self) -> &[u64] {
        &self.fingerprints
    }

    /// The bytes of a document's text: of a conversation, of the assistant's turns.
    pub fn text_bytes(&self, document: usize) -> u64 {
        self.text_bytes[document]
    }

    /// How many tokens a document has.
    pub fn document_len(&self, document: usize) -> usize {
        (self.starts[document + 1] - self.starts[document]) as usize
    }

    /// Some tokens of a document, from `skip` on.
    pub fn read(&self, document: usize, skip: usize, count: usize) -> Result<Tokens> {
        let count = count.min(self.document_len(document) - skip);
        let first = self.starts[document] + skip as u64;
        let width = width(self.info.vocab_size);
        let mut bytes = vec![0; count * width];
        let path = self.dir.join(TOKENS);
        self.tokens.read_exact_at(&mut bytes, first * width as u64).map_err(io(&path))?;
        let ids: Vec<u32> = match width {
            2 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
            _ => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.info.vocab_size) {
            let problem = format!("id {id} of a vocabulary of {}: make it again", self.info.vocab_size);
            return Err(DataError::Shards { path, problem });
        }
        let mut bits = vec![0; (first as usize % 8 + count).div_ceil(8)];
        let path = self.dir.join(LEARNT);
        self.learnt.read_exact_at(&mut bits, first / 8).map_err(io(&path))?;
        let bit = |i: usize| bits[(first as usize % 8 + i) / 8] >> ((first as usize + i) % 8) & 1 == 1;
        Ok(Tokens { ids, learnt: (0..count).map(bit).collect() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn documents() -> Vec<Tokens> {
        [5usize, 1, 13, 8]
            .iter()
            .map(|&n| Tokens {
                ids: (0..n as u32).map(|i| i * 7 % 50).collect(),
                learnt: (0..n).map(|i| i % 3 == 1).collect(),
            })
            .collect()
    }

    fn written(vocab_size: usize) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("tokenizer.json"), "{}").unwrap();
        let dir = root.path().join("shard");
        let mut writer = ShardWriter::create(&dir, root.path(), vocab_size).unwrap();
        for (i, tokens) in documents().iter().enumerate() {
            writer.push(tokens, i as u64 * 1000, 3).unwrap();
            assert!(!dir.exists(), "nothing is there before it is whole");
        }
        writer.finish().unwrap();
        (root, dir)
    }

    #[test]
    fn documents_come_back_from_any_place() {
        for vocab_size in [50, 128_256] {
            let (root, dir) = written(vocab_size);
            let shards = Shards::open(&dir).unwrap();
            shards.verify().unwrap();
            shards.check_tokenizer(root.path()).unwrap();
            assert_eq!((shards.info().documents, shards.info().tokens), (4, 27));
            assert_eq!(shards.fingerprints(), [0, 1000, 2000, 3000]);
            for (i, tokens) in documents().iter().enumerate() {
                for skip in 0..tokens.ids.len() {
                    let got = shards.read(i, skip, 6).unwrap();
                    let end = tokens.ids.len().min(skip + 6);
                    assert_eq!(
                        (&got.ids[..], &got.learnt[..]),
                        (&tokens.ids[skip..end], &tokens.learnt[skip..end])
                    );
                }
            }
        }
    }

    fn check_broken(file: &str, change: impl Fn(&mut Vec<u8>), expected: &str) {
        let (_root, dir) = written(50);
        let mut bytes = fs::read(dir.join(file)).unwrap();
        change(&mut bytes);
        fs::write(dir.join(file), bytes).unwrap();
        let result = Shards::open(&dir).and_then(|shards| {
            shards.read(3, 0, 8)?;
            shards.verify()
        });
        let error = result.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(expected), "{error}");
    }

    #[test]
    fn broken_shards_are_found() {
        check_broken(TOKENS, |bytes| bytes.truncate(20), "expected 54");
        check_broken(TOKENS, |bytes| bytes[0] ^= 1, "checksum");
        check_broken(TOKENS, |bytes| bytes[53] = 0xff, "of a vocabulary of 50");
        check_broken(DOCUMENTS, |bytes| bytes[0] = 9, "not in order");
        check_broken(LEARNT, |bytes| bytes.push(0), "expected 4");
        check_broken(INDEX, |bytes| bytes.truncate(9), "not an index");
    }

    fn check_index(from: &str, to: &str, expected: &str) {
        let (_root, dir) = written(50);
        let text = fs::read_to_string(dir.join(INDEX)).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(dir.join(INDEX), text.replace(from, to)).unwrap();
        let error = Shards::open(&dir).and_then(|shards| shards.verify()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn lying_indexes_are_found() {
        let huge = u64::MAX.to_string();
        check_index("\"version\": 1", "\"version\": 2", "version 2, expected 1");
        check_index("\"tokens\": 27", "\"tokens\": 26", "expected 52");
        check_index("\"tokens\": 27", &format!("\"tokens\": {huge}"), "tokens.bin: 54 bytes");
        check_index("\"documents\": 4", "\"documents\": 3", "expected 72");
        check_index("\"documents\": 4", &format!("\"documents\": {huge}"), "documents.bin: 96 bytes");
        check_index("\"documents\": 4", "\"documents\": -4", "not an index");
        // A file that the index does not name is not taken for whole.
        check_index("\"learnt.bin\":", "\"learned.bin\":", "learnt.bin: its checksum");
    }

    #[test]
    fn a_missing_file_is_named() {
        for name in [INDEX, TOKENS, DOCUMENTS, LEARNT] {
            let (_root, dir) = written(50);
            fs::remove_file(dir.join(name)).unwrap();
            let error = Shards::open(&dir).err().expect("an error").to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_a_shard_cannot_hold_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("tokenizer.json"), "{}").unwrap();
        let mut writer = ShardWriter::create(&root.path().join("shard"), root.path(), 50).unwrap();
        let mut error = |ids: &[u32], marks: usize| {
            let tokens = Tokens { ids: ids.to_vec(), learnt: vec![true; marks] };
            writer.push(&tokens, 0, 0).unwrap_err().to_string()
        };
        assert!(error(&[1, 50], 2).contains("document 1: id 50 of a vocabulary of 50"));
        assert!(error(&[], 0).contains("document 1: 0 ids"));
        assert!(error(&[1, 2], 1).contains("document 1: 2 ids with 1 marks"));
        assert_eq!(writer.info().tokens, 0, "nothing of them was written");
    }

    #[test]
    fn what_was_left_half_written_is_written_anew_and_neighbours_stay() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("tokenizer.json"), "{}").unwrap();
        let write = |name: &str| ShardWriter::create(&root.path().join(name), root.path(), 50).unwrap();
        let (mut killed, mut other) = (write("law.v1"), write("law.v2"));
        killed.push(&documents()[0], 7, 3).unwrap();
        drop(killed);
        assert!(Shards::open(&root.path().join("law.v1.partial")).is_err(), "half a shard is none");
        other.push(&documents()[1], 8, 3).unwrap();
        let mut again = write("law.v1");
        again.push(&documents()[2], 9, 3).unwrap();
        again.finish().unwrap();
        other.finish().unwrap();
        for (name, fingerprint) in [("law.v1", 9), ("law.v2", 8)] {
            let shards = Shards::open(&root.path().join(name)).unwrap();
            shards.verify().unwrap();
            assert_eq!(shards.fingerprints(), [fingerprint]);
        }
    }

    #[test]
    fn another_tokenizer_is_refused() {
        let (root, dir) = written(50);
        std::fs::write(root.path().join("tokenizer.json"), "{ }").unwrap();
        let error = Shards::open(&dir).unwrap().check_tokenizer(root.path()).unwrap_err().to_string();
        assert!(error.contains("another tokenizer"), "{error}");
        assert!(ShardWriter::create(&dir, root.path(), 50).is_err(), "a shard is not overwritten");
    }
}
