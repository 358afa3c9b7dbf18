//! What can be wrong with a GGUF file, or with a model that is to become one; the file's name stands in
//! [`crate::CheckpointError::Gguf`].

use kanana_tensor::TensorError;

/// A broken invariant of a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes are others.
    #[error("starts with {0:02x?}, expected the letters GGUF; this is not a GGUF file")]
    Magic(Vec<u8>),
    /// The version, and with it the layout, is another one.
    #[error("is GGUF version {0}, expected 2 or 3; convert the model again with a current llama.cpp")]
    Version(u32),
    /// The version is 2 or 3 with its bytes turned round.
    #[error("is a big-endian GGUF file, expected little-endian; convert the model again without --bigendian")]
    BigEndian,
    /// The file ends inside the header.
    #[error(
        "ends inside {place}: {expected} bytes are needed, {got} are there; the download was cut short, fetch it again"
    )]
    Cut {
        /// What could not be read.
        place: String,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes that are left.
        got: u64,
    },
    /// A count in the header asks for more than the file can hold.
    #[error(
        "says it has {got} {what}, but the rest of the file has room for at most {limit}; the file is damaged, fetch it again"
    )]
    Count {
        /// Tensors, metadata keys, or elements of an array.
        what: String,
        /// The count as written.
        got: u64,
        /// The most that fit.
        limit: u64,
    },
    /// Bytes that should be text are not.
    #[error("{place} is not UTF-8 from byte {at}; the file is damaged, fetch it again")]
    Text {
        /// Which text.
        place: String,
        /// The first bad byte.
        at: usize,
    },
    /// A key or a name is empty.
    #[error("{0} is empty; the file is damaged, fetch it again")]
    Empty(String),
    /// A metadata key is there twice.
    #[error("metadata key {0:?} is there twice; which is meant cannot be known, convert the model again")]
    DuplicateKey(String),
    /// A tensor is there twice.
    #[error("tensor {0:?} is there twice; which is meant cannot be known, convert the model again")]
    DuplicateTensor(String),
    /// The number of a metadata type is not one of the format.
    #[error(
        "metadata key {key:?} has type number {got}, expected 0 to 12; the file is damaged or of a newer format"
    )]
    ValueType {
        /// The key.
        key: String,
        /// The number as written.
        got: u32,
    },
    /// An array of arrays.
    #[error(
        "metadata key {0:?} is an array of arrays, expected plain elements; no model needs it, do not trust this file"
    )]
    NestedArray(String),
    /// A truth value is neither 0 nor 1.
    #[error(
        "metadata key {key:?} is a bool of value {got}, expected 0 or 1; the file is damaged, fetch it again"
    )]
    Bool {
        /// The key.
        key: String,
        /// The byte as written.
        got: u8,
    },
    /// `general.alignment` is no alignment.
    #[error("general.alignment is {0}, expected a power of two; the file is damaged, fetch it again")]
    Alignment(u64),
    /// A tensor of more dimensions than ggml has.
    #[error(
        "tensor {tensor:?} has {got} dimensions, expected at most 4; the file is damaged, fetch it again"
    )]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// As written.
        got: u32,
    },
    /// The number of a tensor type is not known.
    #[error(
        "tensor {tensor:?} has type number {got}, which is not known here; convert the model to another type, such as Q4_K or Q8_0"
    )]
    TensorType {
        /// The tensor.
        tensor: String,
        /// As written.
        got: u32,
    },
    /// The number of elements or bytes does not fit in 64 bits.
    #[error(
        "tensor {tensor:?} of shape {shape:?} has more elements than memory can address; the file is damaged, fetch it again"
    )]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Outermost first.
        shape: Vec<u64>,
    },
    /// A row is not a whole number of blocks.
    #[error(
        "tensor {tensor:?} has rows of {got}, expected a multiple of {expected} as {ggml_type} has; the file is damaged, fetch it again"
    )]
    RowLength {
        /// The tensor.
        tensor: String,
        /// Its type.
        ggml_type: &'static str,
        /// Elements of a block.
        expected: usize,
        /// Elements of a row.
        got: u64,
    },
    /// A tensor does not start on the alignment of the file.
    #[error(
        "tensor {tensor:?} starts at byte {got} of the data, expected a multiple of {expected}; the file is damaged, fetch it again"
    )]
    Offset {
        /// The tensor.
        tensor: String,
        /// The alignment.
        expected: u64,
        /// The offset as written.
        got: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensor {tensor:?} starts at byte {begin} of the data, inside {previous:?} that ends at {end}; do not trust this file, fetch it again"
    )]
    Overlap {
        /// The tensor.
        tensor: String,
        /// Its first byte.
        begin: u64,
        /// The tensor before it.
        previous: String,
        /// One past the last byte of that.
        end: u64,
    },
    /// The file ends before a tensor does.
    #[error(
        "is cut short inside tensor {tensor:?}: it ends at byte {expected} of the data, {got} are there; fetch it again"
    )]
    Truncated {
        /// The tensor.
        tensor: String,
        /// One past its last byte.
        expected: u64,
        /// Bytes of data in the file.
        got: u64,
    },

    /// The tensor is well formed, but of a type that is not decoded here.
    #[error(
        "tensor {tensor:?} is {got}, expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL or IQ4_XS; use another quantisation of this model"
    )]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// Its type.
        got: &'static str,
    },
    /// A metadata key that is needed is not there.
    #[error("has no metadata key {0:?}; the file is incomplete, convert the model again")]
    MissingKey(String),
    /// A metadata value is not what the key calls for.
    #[error("metadata key {key:?} is {got}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What was found.
        got: String,
        /// What can be read.
        expected: String,
    },
    /// A tensor has a shape that its name does not allow.
    #[error(
        "tensor {tensor:?} has shape {got:?}, expected {expected}; the metadata and the tensors belong to different models"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// What the name and the metadata call for.
        expected: String,
        /// Outermost first.
        got: Vec<usize>,
    },
    /// One part of a model split over files.
    #[error("is one of {0} parts; join them first: llama-gguf-split --merge FIRST_PART JOINED.gguf")]
    Split(u64),

    /// The model has something that GGUF cannot say.
    #[error("GGUF cannot express {field} = {got}: {why}; keep this model as safetensors")]
    NotExpressible {
        /// The field of config.json or tokenizer.json.
        field: String,
        /// Its value.
        got: String,
        /// What the readers of GGUF files assume.
        why: &'static str,
    },
    /// A tensor of the model has no name in GGUF.
    #[error(
        "tensor {0:?} has no place in a GGUF file of this architecture; the checkpoint holds something that would be lost"
    )]
    NoPlace(String),
    /// An expert of a mixture is missing.
    #[error(
        "tensor {0:?} is missing, although other experts of that layer are there; the checkpoint is incomplete"
    )]
    MissingExpert(String),
    /// The source is quantised.
    #[error(
        "tensor {tensor:?} is {got} already, and quantising it again would add error to error; start from the unquantised model"
    )]
    AlreadyQuantised {
        /// The tensor.
        tensor: String,
        /// Its type.
        got: String,
    },
    /// The type is one that is only read.
    #[error(
        "tensor {tensor:?} cannot be written as {got}; F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K and Q6_K are written"
    )]
    NotWritable {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        got: &'static str,
    },
    /// A value is no number that the type can hold.
    #[error(
        "tensor {tensor:?} holds {value}, which {ggml_type} cannot store; write BF16 or F32, or mend the weights"
    )]
    Unstorable {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
        /// The type asked for.
        ggml_type: &'static str,
    },
    /// A name is longer than ggml takes.
    #[error("the tensor name {0:?} has more than 63 bytes, which ggml refuses; give it a shorter one")]
    LongName(String),
    /// A tensor is not what was announced.
    #[error(
        "tensor {tensor:?} was announced with {expected} values and came with {got}; this is a bug of the program that saves"
    )]
    NotAsAnnounced {
        /// The tensor.
        tensor: String,
        /// Values by its shape.
        expected: usize,
        /// Values received.
        got: usize,
    },
    /// The storage of a tensor was refused.
    #[error("tensor {tensor:?}: {source}; copy it to host memory first")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What was wrong.
        source: TensorError,
    },
}

impl GgufError {
    pub(crate) fn value(key: &str, got: impl ToString, expected: impl Into<String>) -> Self {
        GgufError::Value { key: key.to_owned(), got: got.to_string(), expected: expected.into() }
    }
}
