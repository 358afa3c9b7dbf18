//! From named tensors, of a checkpoint or random, to weights laid out for a machine.

use std::cell::Cell;

use kanana_checkpoint::Checkpoint;
use kanana_kernels::{Format, Kernels, Packed, Weight};
use kanana_tensor::{DType, Identity, Tensor};

use crate::linear::{Linear, LowRank};
use crate::{ModelError, Result, stored, weight_format};

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// How weights are stored, each as [`weight_format`] says; that of the checkpoint where it is quantised. Also decides
    /// what keys and values are rounded to, unless [`crate::Transformer::with_kv_format`] does.
    pub format: Format,
    /// Positions the rotary table covers: the longest sequence that will be run, in tokens.
    pub max_positions: usize,
}

/// A parameter as a model holds it.
#[derive(Clone, Debug)]
pub enum Parameter {
    /// A matrix, laid out for the machine.
    Matrix(Weight),
    /// The weight of a norm, or a bias.
    Vector(Tensor),
}

impl Parameter {
    /// What tells it from others.
    pub fn identity(&self) -> Identity {
        match self {
            Parameter::Matrix(weight) => weight.identity(),
            Parameter::Vector(tensor) => tensor.identity(),
        }
    }
}

/// Where parameters come from: a checkpoint, a seed, a trainer.
pub trait Source {
    /// The tensor of that name, which must have that shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// The tensor of that name, which a model may do without; none where it is not there.
    fn optional(&self, _name: &str, _shape: &[usize]) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// The parameter of that name where it is at hand as the machine takes it, in that shape; it is then used as it is.
    fn parameter(&self, _name: &str) -> Option<Parameter> {
        None
    }
    /// The matrix of that name as it was packed; none where it is stored as numbers.
    fn packed(&self, _name: &str) -> Result<Option<Packed>> {
        Ok(None)
    }
    /// What is added to the projection of that name, such as `model.layers.0.self_attn.q_proj`.
    fn low_rank(&self, _projection: &str) -> Option<LowRank> {
        None
    }
    /// Says that the parameter has been laid out, and that the pages of its tensor may go.
    fn loaded(&self, _name: &str, _parameter: &Parameter) {}
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

    fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        self.get(name).map(|_| Source::tensor(self, name, shape)).transpose()
    }

    fn packed(&self, name: &str) -> Result<Option<Packed>> {
        stored::packed(self, name)
    }

    fn loaded(&self, name: &str, _parameter: &Parameter) {
        self.release(name);
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

    /// A matrix in the layout of the machine, as it was packed before or quantised now.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        if let Some(Parameter::Matrix(weight)) = self.source.parameter(name) {
            return Ok(weight);
        }
        let format = weight_format(name, self.format);
        let weight = match self.source.packed(name)? {
            None => self.kernels.pack(&self.source.tensor(name, &shape)?, format)?,
            Some(packed) if packed.format != format => {
                return Err(ModelError::Requantised {
                    tensor: name.to_owned(),
                    from: packed.format,
                    to: format,
                });
            }
            Some(packed) if [packed.out_features, packed.in_features] != shape => {
                let got = vec![packed.out_features, packed.in_features];
                let (tensor, expected) = (name.to_owned(), shape.to_vec());
                return Err(ModelError::ShapeMismatch { tensor, expected, got });
            }
            Some(packed) => self.kernels.adopt(&packed)?,
        };
        self.done(name, &Parameter::Matrix(weight.clone()), shape.iter().product());
        Ok(weight)
    }

    /// A norm's weight or a bias, in f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        if let Some(Parameter::Vector(vector)) = self.source.parameter(name) {
            return Ok(vector);
        }
        self.laid_out(name, &self.source.tensor(name, &[len])?)
    }

    /// [`Loader::vector`] of one that a model may do without.
    pub(crate) fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Tensor>> {
        if let Some(Parameter::Vector(vector)) = self.source.parameter(name) {
            return Ok(Some(vector));
        }
        let tensor = self.source.optional(name, &[len])?;
        tensor.map(|tensor| self.laid_out(name, &tensor)).transpose()
    }

    fn laid_out(&self, name: &str, vector: &Tensor) -> Result<Tensor> {
        let values = vector.to_f32_vec()?;
        let vector = self.kernels.upload(&Tensor::from_slice(vector.shape(), &values)?)?;
        self.done(name, &Parameter::Vector(vector.clone()), values.len());
        Ok(vector)
    }

    /// `{prefix}.weight` and, when asked for, `{prefix}.bias`.
    pub(crate) fn linear(&self, prefix: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        Ok(Linear {
            weight: self.matrix(&format!("{prefix}.weight"), shape)?,
            bias: if bias { Some(self.vector(&format!("{prefix}.bias"), shape[0])?) } else { None },
            low_rank: self.source.low_rank(prefix),
        })
    }

    fn done(&self, name: &str, parameter: &Parameter, count: usize) {
        self.source.loaded(name, parameter);
        self.loaded.set(self.loaded.get() + count as u64);
        (self.progress)(self.loaded.get());
    }
}
