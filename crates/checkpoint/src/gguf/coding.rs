//! From the bytes of a GGUF tensor to a tensor in Hugging Face's order of rows.

use std::path::Path;

use kanana_tensor::{DType, Element, Tensor, bf16, f16};
use rayon::prelude::*;

use super::dequantize::dequantize;
use super::error::GgufError;
use super::names::interleaved_row;
use super::types::GgmlType;
use crate::{CheckpointError, Result};

/// How the bytes of a tensor become its elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Coding {
    pub(crate) ggml_type: GgmlType,
    /// As in [`super::names::Piece`].
    pub(crate) heads: Option<usize>,
}

/// What is decoded: where it is from, for messages, and its bytes.
pub(crate) struct Encoded<'a> {
    pub(crate) file: &'a Path,
    pub(crate) tensor: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) data: &'a [u8],
}

impl Coding {
    /// Whether the bytes are the elements, in order, of a dtype that tensors have.
    pub(crate) fn is_plain(self) -> bool {
        self.heads.is_none() && !self.ggml_type.is_quantised()
    }

    /// The tensor: in f32 where the type is quantised, else in its own type, with its rows in order.
    ///
    /// Errors: [`GgufError::UnsupportedType`]. Cost: reads the bytes once, on all cores.
    pub(crate) fn decode(self, encoded: &Encoded<'_>) -> Result<Tensor> {
        let Encoded { file, tensor, shape, data } = *encoded;
        let ggml_type = self.ggml_type;
        let problem = |problem| CheckpointError::Gguf { file: file.into(), problem };
        if !ggml_type.is_readable() {
            return Err(problem(GgufError::UnsupportedType {
                tensor: tensor.to_owned(),
                got: ggml_type.name(),
            }));
        }
        let decoded = match ggml_type {
            GgmlType::F16 => self.rows(shape, data, |row, out: &mut [f16]| {
                let elements = row.as_chunks().0.iter().zip(out);
                elements.for_each(|(bytes, x)| *x = f16::from_le_bytes(*bytes));
            }),
            GgmlType::BF16 => self.rows(shape, data, |row, out: &mut [bf16]| {
                let elements = row.as_chunks().0.iter().zip(out);
                elements.for_each(|(bytes, x)| *x = bf16::from_le_bytes(*bytes));
            }),
            _ => self.rows(shape, data, |row, out: &mut [f32]| {
                let known = dequantize(ggml_type, row, out);
                debug_assert!(known, "checked above");
            }),
        };
        decoded.map_err(|source| problem(GgufError::Tensor { tensor: tensor.to_owned(), source }))
    }

    /// Decodes row by row, each to its place.
    fn rows<E: Element>(
        self,
        shape: &[usize],
        data: &[u8],
        decode: impl Fn(&[u8], &mut [E]) + Sync,
    ) -> kanana_tensor::Result<Tensor> {
        let mut tensor = Tensor::zeros(shape, E::DTYPE);
        // A vector of a bias has rows of one element, which are put in order like the rows of its matrix.
        let (rows, row_len) = match (shape, self.heads) {
            ([n], Some(_)) => (*n, 1),
            _ => {
                (tensor.len() / shape.last().copied().unwrap_or(1).max(1), shape.last().copied().unwrap_or(1))
            }
        };
        if tensor.is_empty() {
            return Ok(tensor);
        }
        let row_bytes = self.ggml_type.bytes_of(row_len);
        let source = |row| match self.heads {
            Some(heads) => interleaved_row(row, rows / heads),
            None => row,
        };
        let out = tensor.as_mut_slice::<E>()?;
        // Some thousand elements at a time, so that handing out work costs nothing beside it.
        let rows_at_once = (1usize << 14).div_ceil(row_len);
        out.par_chunks_mut(row_len * rows_at_once).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_exact_mut(row_len).enumerate() {
                let start = source(chunk * rows_at_once + i) * row_bytes;
                decode(&data[start..start + row_bytes], out);
            }
        });
        Ok(tensor)
    }
}

/// The dtype of what [`Coding::decode`] gives for the type of that name.
pub(crate) fn decoded_dtype(name: &str) -> Option<DType> {
    let ggml_type = GgmlType::from_name(name)?;
    (ggml_type.is_quantised() && ggml_type.is_readable()).then_some(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_biases_are_put_in_order() {
        // Two heads of four, stored with neighbours side by side.
        let stored: Vec<u8> =
            [0f32, 2., 1., 3., 4., 6., 5., 7.].iter().flat_map(|x| x.to_le_bytes()).collect();
        let coding = Coding { ggml_type: GgmlType::F32, heads: Some(2) };
        for shape in [&[8][..], &[8, 1]] {
            let encoded = Encoded { file: Path::new("a.gguf"), tensor: "q", shape, data: &stored };
            let tensor = coding.decode(&encoded).unwrap();
            assert_eq!(tensor.as_slice::<f32>().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
        }
    }

    #[test]
    fn halves_keep_their_type() {
        let data: Vec<u8> = [1.0, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let coding = Coding { ggml_type: GgmlType::F16, heads: Some(1) };
        let encoded = Encoded { file: Path::new("a.gguf"), tensor: "q", shape: &[2, 1], data: &data };
        assert_eq!(
            coding.decode(&encoded).unwrap().as_slice::<f16>().unwrap(),
            [1.0, -2.0].map(f16::from_f32)
        );
    }

    #[test]
    fn types_without_a_decoder_are_named() {
        let coding = Coding { ggml_type: GgmlType::IQ2_XXS, heads: None };
        let encoded = Encoded { file: Path::new("a.gguf"), tensor: "w", shape: &[1, 256], data: &[0; 66] };
        let message = coding.decode(&encoded).unwrap_err().to_string();
        assert!(message.contains("a.gguf: tensor \"w\" is IQ2_XXS, expected F32"), "{message}");
    }
}
