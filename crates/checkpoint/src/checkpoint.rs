use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kanana_tensor::{DType, SharedBytes, Tensor};
use memmap2::Mmap;

use crate::gguf::{Coding, Encoded, GgufFile, Naming, Piece, ROPE_FACTORS, decoded_dtype};
use crate::header::{Entry, parse_header, readable_dtype};
use crate::index::{INDEX_FILE, find_weights};
use crate::packing::Packing;
use crate::{CheckpointError, Result};

/// An open checkpoint: named tensors in memory-mapped files, all checked when it was opened.
///
/// Tensors taken from it keep their file mapped, so they outlive the checkpoint.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Location>,
    metadata: BTreeMap<String, String>,
    gguf: Option<GgufFile>,
}

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorInfo<'a> {
    /// The dtype as the file spells it: `F32`, `BF16`, `F8_E4M3`, `Q4_K`, …; the format of packed bytes: `q4`.
    pub dtype: &'a str,
    /// The extent of every dimension, outermost first; of packed bytes that of the matrix they stand for.
    pub shape: &'a [usize],
    /// The file that holds it.
    pub file: &'a Path,
    /// Size in bytes.
    pub bytes: usize,
    /// What packed bytes stand for; none where the bytes are elements.
    pub packing: Option<&'a Packing>,
}

impl TensorInfo<'_> {
    /// The dtype of the tensor that [`Checkpoint::tensor`] gives; none when it would be refused.
    pub fn tensor_dtype(&self) -> Option<DType> {
        match self.packing {
            Some(_) => None,
            None => readable_dtype(self.dtype).or_else(|| decoded_dtype(self.dtype)),
        }
    }

    /// Whether elements share a scale: the numbers they stand for were rounded to few bits.
    pub fn is_quantised(&self) -> bool {
        self.packing.is_some() || decoded_dtype(self.dtype).is_some()
    }
}

struct MappedFile {
    path: PathBuf,
    map: Arc<Mmap>,
}

struct Location {
    file: usize,
    entry: Entry,
    /// How the bytes become the elements, where they are not just them: in GGUF files.
    coding: Option<Coding>,
    /// What the bytes stand for, where a kernel packed them.
    packing: Option<Packing>,
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`; or a `.gguf` file,
    /// whose tensors then have the names and the order of rows that they have in such a folder.
    ///
    /// Errors: every variant of [`CheckpointError`] that speaks of files and headers. Cost: reads the headers only.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut checkpoint = Checkpoint {
            dir: dir.into(),
            files: vec![],
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            gguf: None,
        };
        if dir.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !dir.is_dir() {
            checkpoint.add_gguf(GgufFile::open(dir)?)?;
            return Ok(checkpoint);
        }
        for (path, expected) in find_weights(dir)? {
            let map = map_file(&path).map_err(|error| match (error, expected.first()) {
                (CheckpointError::Read { source, .. }, Some(tensor))
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    let (tensor, others) = (tensor.clone(), expected.len() - 1);
                    CheckpointError::MissingShard { file: path.clone(), index: INDEX_FILE, tensor, others }
                }
                (error, _) => error,
            })?;
            checkpoint.add_file(path, map, &expected)?;
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf, map: Mmap, expected: &[String]) -> Result<()> {
        let header = parse_header(&path, &map, map.len() as u64)?;
        if let Some(absent) = expected.iter().find(|&name| !header.tensors.contains_key(name)) {
            let tensor = absent.clone();
            return Err(CheckpointError::NotInShard { file: path, index: INDEX_FILE, tensor });
        }
        let file = self.files.len();
        for (name, entry) in header.tensors {
            let packing = match header.metadata.get(&name) {
                Some(text) if Packing::is_meant(text) => Some(packing(&path, &name, &entry, text)?),
                _ => None,
            };
            match self.tensors.entry(name) {
                Slot::Vacant(slot) => slot.insert(Location { file, entry, coding: None, packing }),
                Slot::Occupied(slot) => {
                    let first = self.files[slot.get().file].path.clone();
                    return Err(CheckpointError::Duplicate {
                        tensor: slot.key().clone(),
                        first,
                        second: path,
                    });
                }
            };
        }
        self.metadata.extend(header.metadata);
        self.files.push(MappedFile { path, map: Arc::new(map) });
        Ok(())
    }

    fn add_gguf(&mut self, gguf: GgufFile) -> Result<()> {
        let naming = Naming::of(gguf.metadata())?;
        // The divisors of the rotary frequencies are part of the configuration elsewhere, and become it again.
        let tensors = gguf.header().tensors.iter().filter(|(name, _)| *name != ROPE_FACTORS);
        for (name, tensor) in tensors {
            let pieces = naming.pieces(name, tensor);
            let wrong = |problem| CheckpointError::Gguf { file: self.dir.clone(), problem };
            for Piece { name, shape, bytes, heads } in pieces.map_err(wrong)? {
                let coding = Some(Coding { ggml_type: tensor.ggml_type, heads });
                let entry = Entry { dtype: tensor.ggml_type.name().to_owned(), shape, bytes };
                // A file that has a tensor under both of its names is not what a converter writes.
                if let Some(tensor) = self
                    .tensors
                    .insert(name.clone(), Location { file: 0, entry, coding, packing: None })
                    .map(|_| name)
                {
                    let (first, second) = (self.dir.clone(), self.dir.clone());
                    return Err(CheckpointError::Duplicate { tensor, first, second });
                }
            }
        }
        self.files.push(MappedFile { path: self.dir.clone(), map: gguf.map().clone() });
        self.gguf = Some(gguf);
        Ok(())
    }

    /// The GGUF file, with its metadata, when this is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        self.gguf.as_ref()
    }

    /// The folder, or the GGUF file.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The text that the writer left in the files; where shards disagree, the last one's.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|location| location.entry.bytes.len() as u64).sum()
    }

    /// What is known of a tensor without reading it.
    pub fn get(&self, name: &str) -> Option<TensorInfo<'_>> {
        let Location { file, entry, packing, .. } = self.tensors.get(name)?;
        let (dtype, shape) = match packing {
            Some(packing) => (&packing.format, &packing.shape[..]),
            None => (&entry.dtype, &entry.shape[..]),
        };
        let (file, bytes) = (self.files[*file].path.as_path(), entry.bytes.len());
        Some(TensorInfo { dtype, shape, file, bytes, packing: packing.as_ref() })
    }

    /// A tensor, as a view of the mapped file; as a copy when its data do not start at a multiple of the element size, or
    /// when it is quantised (then f32) or has its rows in another order, as GGUF has some.
    ///
    /// Errors: [`CheckpointError::NoTensor`], [`CheckpointError::UnsupportedDType`], [`CheckpointError::Packed`], for GGUF
    /// [`GgufError::UnsupportedType`](crate::gguf::GgufError::UnsupportedType).
    /// Cost: none until the pages are read; where it is decoded, that, on all cores.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let Location { file, packing, .. } = self.location(name)?;
        match packing {
            None => self.stored(name),
            Some(Packing { format, .. }) => Err(CheckpointError::Packed {
                file: self.files[*file].path.clone(),
                tensor: name.to_owned(),
                got: format.clone(),
            }),
        }
    }

    /// The bytes of a tensor that has a [`TensorInfo::packing`], u8 in the shape that the file has them in, as a view of
    /// the mapped file.
    ///
    /// Errors: [`CheckpointError::NoTensor`], and those of [`Checkpoint::tensor`] where it is not packed.
    pub fn packed(&self, name: &str) -> Result<Tensor> {
        self.stored(name)
    }

    fn location(&self, name: &str) -> Result<&Location> {
        let absent = || CheckpointError::NoTensor { dir: self.dir.clone(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(absent)
    }

    fn stored(&self, name: &str) -> Result<Tensor> {
        let Location { file, entry, coding, .. } = self.location(name)?;
        let MappedFile { path, map } = &self.files[*file];
        if let Some(coding) = coding.filter(|coding| !coding.is_plain()) {
            let data = &map[entry.bytes.clone()];
            return coding.decode(&Encoded { file: path, tensor: name, shape: &entry.shape, data });
        }
        let dtype = readable_dtype(&entry.dtype).ok_or_else(|| CheckpointError::UnsupportedDType {
            file: path.clone(),
            tensor: name.to_owned(),
            got: entry.dtype.clone(),
        })?;
        let data = &map[entry.bytes.clone()];
        let (bytes, offset): (SharedBytes, usize) = match data.as_ptr().align_offset(dtype.size()) {
            0 => (map.clone(), entry.bytes.start),
            _ => aligned_copy(data, dtype),
        };
        Tensor::from_shared(&entry.shape, dtype, bytes, offset)
            .map_err(|source| CheckpointError::Tensor { tensor: name.to_owned(), source })
    }

    /// Tells the kernel that the pages of a tensor will not be read soon, so that they leave the resident memory.
    ///
    /// Only whole pages are given back. A tensor taken earlier stays valid: reading it faults the pages in again.
    /// Does nothing where the system has no such call, and for names that are not there.
    pub fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some(Location { file, entry, .. }) = self.tensors.get(name) {
            release_pages(&self.files[*file].map, entry.bytes.clone());
        }
        #[cfg(not(unix))]
        let _ = name;
    }
}

/// What the line under the name of a tensor says.
fn packing(file: &Path, tensor: &str, entry: &Entry, text: &str) -> Result<Packing> {
    let (file, tensor) = (file.to_owned(), tensor.to_owned());
    if readable_dtype(&entry.dtype) != Some(DType::U8) {
        return Err(CheckpointError::PackedDType { file, tensor, got: entry.dtype.clone() });
    }
    let got = text.to_owned();
    Packing::parse(text).ok_or(CheckpointError::Packing { file, tensor, got })
}

pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let unreadable = |source| CheckpointError::Read { file: path.into(), source };
    // Before opening: opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(CheckpointError::NotAFile(path.into()));
    }
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: the map is read-only, and every access goes through slices within the length it had at this moment. That
    // nobody changes the file in place meanwhile cannot be checked; the crate's documentation says so.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}

/// The same bytes where elements of `dtype` are aligned, with the offset at which they start.
fn aligned_copy(data: &[u8], dtype: DType) -> (SharedBytes, usize) {
    let mut copy = vec![0; data.len() + dtype.size()];
    let offset = copy.as_ptr().align_offset(dtype.size());
    copy[offset..offset + data.len()].copy_from_slice(data);
    (Arc::new(copy), offset)
}

#[cfg(unix)]
fn release_pages(map: &Mmap, bytes: std::ops::Range<usize>) {
    // 64 KiB is a multiple of every page size in use, and maps start on a page.
    const PAGE: usize = 1 << 16;
    let start = bytes.start.next_multiple_of(PAGE);
    let end = bytes.end / PAGE * PAGE;
    if start < end {
        // SAFETY: the range is inside the map. On a shared, read-only file map DONTNEED only drops page table entries:
        // the next read finds the same bytes in the file, so live views see no change.
        let advised =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        // Advice that the system declines costs memory, never correctness.
        drop(advised);
    }
}
