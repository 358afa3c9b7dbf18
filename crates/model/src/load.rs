//! From named tensors, of a checkpoint or random, to weights laid out for a machine.

use std::cell::Cell;

use kanana_checkpoint::Checkpoint;
use kanana_kernels::{Format, Kernels, Weight};
use kanana_tensor::{DType, Tensor};

use crate::linear::Linear;
use crate::{ModelError, Result};

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// How weights are stored; the embedding and the output matrix as [`Format::of_embedding`] says. Also decides
    /// what keys and values are rounded to, unless [`crate::Transformer::with_kv_format`] does.
    pub format: Format,
    /// Positions the rotary table covers: the longest sequence that will be run, in tokens.
    pub max_positions: usize,
}

/// Where tensors come from.
pub(crate) trait Source {
    /// The tensor of that name, which must have that shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// Says that the tensor has been copied and its pages may go.
    fn release(&self, name: &str);
}

impl Source for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if self.get(name).is_none() {
            return Err(ModelError::MissingTensor { tensor: name.to_owned() });
        }
        let tensor = Checkpoint::tensor(self, name)?;
        if tensor.shape() != shape {
            let (expected, got) = (shape.to_vec(), tensor.shape().to_vec());
            return Err(ModelError::ShapeMismatch { tensor: name.to_owned(), expected, got });
        }
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => Ok(tensor),
            got => Err(ModelError::WeightDType { tensor: name.to_owned(), got }),
        }
    }

    fn release(&self, name: &str) {
        Checkpoint::release(self, name);
    }
}

/// Reads tensors and lays them out, one at a time, so that a model is never in memory twice.
pub(crate) struct Loader<'a> {
    kernels: &'a dyn Kernels,
    source: &'a dyn Source,
    format: Format,
    /// Called with the parameters loaded so far.
    progress: &'a dyn Fn(u64),
    loaded: Cell<u64>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        kernels: &'a dyn Kernels,
        source: &'a dyn Source,
        format: Format,
        progress: &'a dyn Fn(u64),
    ) -> Self {
        Loader { kernels, source, format, progress, loaded: Cell::new(0) }
    }

    pub(crate) fn kernels(&self) -> &'a dyn Kernels {
        self.kernels
    }

    /// A matrix in the layout of the machine.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        self.matrix_as(name, shape, self.format)
    }

    /// The embedding, or the output matrix.
    pub(crate) fn embedding(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        self.matrix_as(name, shape, self.format.of_embedding())
    }

    /// A router: a millionth of the weights, and a wrong choice of experts costs more than its bytes.
    pub(crate) fn router(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        let format = if self.format.is_quantised() { Format::BF16 } else { self.format };
        self.matrix_as(name, shape, format)
    }

    fn matrix_as(&self, name: &str, shape: [usize; 2], format: Format) -> Result<Weight> {
        let weight = self.kernels.pack(&self.source.tensor(name, &shape)?, format)?;
        self.done(name, shape.iter().product());
        Ok(weight)
    }

    /// A norm's weight or a bias, in f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let values = self.source.tensor(name, &[len])?.to_f32_vec()?;
        self.done(name, len);
        Ok(self.kernels.upload(&Tensor::from_slice(&[len], &values)?)?)
    }

    /// `{prefix}.weight` and, when asked for, `{prefix}.bias`.
    pub(crate) fn linear(&self, prefix: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        Ok(Linear {
            weight: self.matrix(&format!("{prefix}.weight"), shape)?,
            bias: if bias { Some(self.vector(&format!("{prefix}.bias"), shape[0])?) } else { None },
        })
    }

    fn done(&self, name: &str, parameters: usize) {
        self.source.release(name);
        self.loaded.set(self.loaded.get() + parameters as u64);
        (self.progress)(self.loaded.get());
    }
}
