use std::io;
use std::path::PathBuf;

use kanana_tensor::TensorError;

use crate::gguf::GgufError;

/// The result of reading or writing a checkpoint.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// A broken invariant of a checkpoint. The message names the file, says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is nothing at the path.
    #[error("{0}: no such folder; check the path")]
    NoFolder(PathBuf),
    /// The path is a file.
    #[error("{0}: is a file; give the folder that holds model.safetensors and config.json, or a .gguf file")]
    NotAFolder(PathBuf),
    /// The folder has no weights.
    #[error(
        "{0}: holds neither model.safetensors nor model.safetensors.index.json; \
         check the path, or download the checkpoint again"
    )]
    NoWeights(PathBuf),
    /// The only weights are pickles.
    #[error(
        "{0}: refused, because reading a pickle executes code that its author chose, and the folder has no safetensors; \
         convert it where you trust its author, with Python: \
         transformers' AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
    )]
    Pickle(PathBuf),
    /// The operating system could not read the file.
    #[error("{file}: cannot be read: {source}; check its permissions and the disk")]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The name of a weights file leads to a folder, a pipe or a device.
    #[error("{0}: is not a regular file; put the safetensors file there")]
    NotAFile(PathBuf),

    /// The index file is not what it should be.
    #[error(
        "{file}: expected JSON with a weight_map from tensor names to file names: {source}; download it again"
    )]
    Index {
        /// The index file.
        file: PathBuf,
        /// Where and why it could not be read.
        source: serde_json::Error,
    },
    /// The index names a file outside of the folder.
    #[error(
        "{index}: tensor {tensor:?} is said to be in {shard:?}, expected a plain file name; do not trust this checkpoint"
    )]
    ShardPath {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The path the index gives.
        shard: String,
    },
    /// The index names a file that is not there.
    #[error(
        "{file}: missing, although {index} places {tensor:?} and {others} more tensors in it; download it again"
    )]
    MissingShard {
        /// The shard.
        file: PathBuf,
        /// The file name of the index.
        index: &'static str,
        /// The first tensor that should be in it.
        tensor: String,
        /// How many others.
        others: usize,
    },
    /// A shard lacks a tensor that the index places there.
    #[error(
        "{file}: has no tensor {tensor:?}, although {index} places it there; the two are from different checkpoints, download both again"
    )]
    NotInShard {
        /// The shard.
        file: PathBuf,
        /// The file name of the index.
        index: &'static str,
        /// The tensor.
        tensor: String,
    },
    /// Two tensors have one name.
    #[error(
        "{second}: tensor {tensor:?} is there twice, first in {first}; which is meant cannot be known, download the checkpoint again"
    )]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// Where it is first.
        first: PathBuf,
        /// Where it is again.
        second: PathBuf,
    },

    /// The file ends inside the eight bytes that hold the header's length.
    #[error(
        "{file}: {got} bytes long, expected 8 bytes of header length first; the download was cut short, fetch it again"
    )]
    TooShort {
        /// The file.
        file: PathBuf,
        /// Its length.
        got: u64,
    },
    /// The header's length is beyond the format's limit.
    #[error(
        "{file}: says that its header has {got} bytes, the limit is {limit}; this is not a safetensors file, or it is damaged: download it again"
    )]
    HeaderTooLarge {
        /// The file.
        file: PathBuf,
        /// The length it claims.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// The header is longer than the file.
    #[error(
        "{file}: the header should have {expected} bytes, but only {got} follow; the download was cut short, fetch it again"
    )]
    HeaderCut {
        /// The file.
        file: PathBuf,
        /// The length it claims.
        expected: u64,
        /// The bytes after the length field.
        got: u64,
    },
    /// The header is not text.
    #[error("{file}: the header is not UTF-8 from byte {at}; the file is damaged, download it again")]
    HeaderText {
        /// The file.
        file: PathBuf,
        /// The first bad byte of the header.
        at: usize,
    },
    /// The header is not the JSON it should be.
    #[error(
        "{file}: expected a JSON header of dtype, shape and data_offsets: {source}; the file is damaged, download it again"
    )]
    HeaderJson {
        /// The file.
        file: PathBuf,
        /// Where and why it could not be read.
        source: serde_json::Error,
    },
    /// The end of a tensor comes before its start.
    #[error(
        "{file}: tensor {tensor:?} ends at byte {end}, before its start {begin}; the file is damaged, download it again"
    )]
    Backwards {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The number of elements, or of bits, does not fit in 64 bits.
    #[error(
        "{file}: tensor {tensor:?} of shape {shape:?} has more {dtype} elements than memory can address; the file is damaged, download it again"
    )]
    ShapeOverflow {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype as written.
        dtype: String,
        /// The shape as written.
        shape: Vec<u64>,
    },
    /// The byte count is not that of the dtype and shape.
    #[error(
        "{file}: tensor {tensor:?} ({dtype} {shape:?}) takes {expected} bytes, its offsets give {got}; the file is damaged, download it again"
    )]
    ByteCount {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype as written.
        dtype: String,
        /// The shape as written.
        shape: Vec<u64>,
        /// Bytes by dtype and shape, to the last started byte.
        expected: u64,
        /// Bytes by offsets.
        got: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "{file}: tensor {tensor:?} starts at byte {begin}, inside {previous:?} that ends at {end}; do not trust this file, download it again"
    )]
    Overlap {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its first byte.
        begin: u64,
        /// The tensor before it.
        previous: String,
        /// One past the last byte of that.
        end: u64,
    },
    /// Bytes belong to no tensor.
    #[error(
        "{file}: bytes {begin}..{end} of the data belong to no tensor; the format forbids it, download the file again"
    )]
    Hole {
        /// The file.
        file: PathBuf,
        /// First such byte.
        begin: u64,
        /// One past the last.
        end: u64,
    },
    /// The file ends before its tensors do.
    #[error(
        "{file}: cut short inside tensor {tensor:?}: the header promises {expected} bytes of data, {got} are there; download it again"
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The first tensor that is not whole.
        tensor: String,
        /// Bytes of data by the header.
        expected: u64,
        /// Bytes of data in the file.
        got: u64,
    },

    /// The line that says what packed bytes stand for is not one.
    #[error(
        "{file}: tensor {tensor:?} is packed, but as {got:?}, expected such as \"kanana q4 v1 8064x1792\"; the file is damaged, make it again"
    )]
    Packing {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The line as written.
        got: String,
    },
    /// A tensor that should be packed bytes is made of something else.
    #[error(
        "{file}: tensor {tensor:?} is said to be packed, but is {got}, expected U8; the file is damaged, make it again"
    )]
    PackedDType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype as written.
        got: String,
    },
    /// Packed bytes were asked for as numbers.
    #[error("{file}: tensor {tensor:?} is packed as {got}; only the kernels know its numbers")]
    Packed {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format.
        got: String,
    },

    /// A GGUF file is not what it should be, or a model cannot become one.
    #[error("{file}: {problem}")]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: GgufError,
    },

    /// Nothing has that name.
    #[error("{dir}: has no tensor {tensor:?}; the checkpoint is incomplete or of another architecture")]
    NoTensor {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The tensor is well formed, but no kernel reads its dtype.
    #[error(
        "{file}: tensor {tensor:?} is {got}, expected F32, F16, BF16, U32 or U8; convert the checkpoint to one of these"
    )]
    UnsupportedDType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype as written.
        got: String,
    },
    /// The storage of a tensor was refused.
    #[error("tensor {tensor:?}: {source}; copy it to host memory before saving")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What was wrong.
        source: TensorError,
    },

    /// Saving would mix two checkpoints.
    #[error("{0}: a checkpoint is already there; save to another folder, or remove it first")]
    AlreadyThere(PathBuf),
    /// The same name was to be written twice, or is reserved.
    #[error("the tensor name {0:?} is given twice or reserved; give every tensor a name of its own")]
    BadName(String),
    /// A tensor is not what was announced.
    #[error(
        "tensor {tensor:?} was announced as {expected} and came as {got}; this is a bug of the program that saves"
    )]
    NotAsAnnounced {
        /// The tensor.
        tensor: String,
        /// dtype and shape of the specification.
        expected: String,
        /// dtype and shape of the tensor.
        got: String,
    },
    /// The disk, the quota or the limit on file sizes is used up.
    #[error(
        "{file}: no room on the disk: the whole checkpoint needs {needed} bytes ({source}); what was written is removed again, free some space or save elsewhere"
    )]
    DiskFull {
        /// The file being written.
        file: PathBuf,
        /// Bytes of the whole checkpoint.
        needed: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The operating system could not write the file.
    #[error("{file}: cannot be written: {source}; check the folder's permissions")]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
