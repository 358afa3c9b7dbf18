//! Matrices that a checkpoint stores quantised, as the kernels pack them: `kanana quantize` writes such checkpoints.
//!
//! Every packed tensor is checked against its line in the file and against config.json before its bytes are used.

use kanana_checkpoint::{Checkpoint, TensorInfo};
use kanana_kernels::{Format, Kernels, Packed};
use kanana_tensor::Tensor;

use crate::{Config, ModelError, Result, expected_tensors, weight_format};

/// Fails unless every matrix is stored as `config` says: packed in the format of its `quantization_config`, or not at all.
///
/// Missing and misshapen tensors are left to [`crate::compare_tensors`].
/// Errors: [`ModelError::StoredFormat`], [`ModelError::PackedShape`]. Cost: reads no data.
pub fn check_stored(checkpoint: &Checkpoint, config: &Config) -> Result<()> {
    for (name, shape) in expected_tensors(config) {
        let Some(info) = checkpoint.get(&name) else { continue };
        let format = config.quantization.filter(|_| shape.len() == 2);
        let format = format.map(|format| weight_format(&name, format)).filter(|format| format.is_quantised());
        match (packed(checkpoint, &name)?, format) {
            (None, None) => {}
            (Some(packed), Some(format)) if packed.format == format => {}
            (_, Some(format)) => return Err(stored_otherwise(&name, info, format.name())),
            (_, None) => {
                return Err(stored_otherwise(&name, info, "a dtype of numbers, as config.json says"));
            }
        }
    }
    Ok(())
}

/// The packed bytes of a tensor; none where it is stored as numbers.
///
/// Errors: [`ModelError::StoredFormat`] for a format or version that this program does not have,
/// [`ModelError::PackedShape`] for more or fewer bytes than the matrix takes.
pub(crate) fn packed(checkpoint: &Checkpoint, name: &str) -> Result<Option<Packed>> {
    let Some((info, packing)) = checkpoint.get(name).and_then(|info| Some((info, info.packing?))) else {
        return Ok(None);
    };
    let [out_features, in_features] = packing.shape;
    let format = Format::ALL.into_iter().find(|format| format.name() == packing.format);
    let shape = format.and_then(|format| Some((format, Packed::shape(format, out_features, in_features)?)));
    let Some((format, expected)) = shape.filter(|_| packing.version == Packed::VERSION) else {
        let expected = format!("q8 or q4 in version {}", Packed::VERSION);
        return Err(stored_otherwise(name, info, &expected));
    };
    let panels = checkpoint.packed(name)?;
    if panels.shape() != expected {
        return Err(ModelError::PackedShape {
            tensor: name.to_owned(),
            file: info.file.to_owned(),
            matrix: packing.to_string(),
            expected,
            got: panels.shape().to_vec(),
        });
    }
    Ok(Some(Packed { format, out_features, in_features, panels }))
}

fn stored_otherwise(name: &str, info: TensorInfo<'_>, expected: &str) -> ModelError {
    ModelError::StoredFormat {
        tensor: name.to_owned(),
        file: info.file.to_owned(),
        expected: expected.to_owned(),
        got: match info.packing {
            Some(packing) => format!("{} in version {}", packing.format, packing.version),
            None => info.dtype.to_owned(),
        },
    }
}

/// A tensor as numbers, however it is stored: those that the codes stand for, in f32, where it is packed.
///
/// Errors: those of reading it. Cost: of packed bytes, a copy and four bytes for every element.
pub fn numbers(checkpoint: &Checkpoint, kernels: &dyn Kernels, name: &str) -> Result<Tensor> {
    let Some(packed) = packed(checkpoint, name)? else { return Ok(checkpoint.tensor(name)?) };
    // Every row of the matrix, looked up as an embedding is.
    let rows: Vec<u32> = (0..packed.out_features as u32).collect();
    let rows = kernels.upload(&Tensor::from_slice(&[rows.len()], &rows)?)?;
    Ok(kernels.download(&kernels.embedding(&rows, &kernels.adopt(&packed)?)?)?)
}
