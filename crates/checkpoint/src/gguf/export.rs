//! A checkpoint as one GGUF file: which tensor goes where, in which type.

use std::collections::BTreeMap;
use std::path::Path;

use kanana_tensor::Tensor;
use serde_json::Value;

use super::describe::{Description, describe};
use super::error::GgufError;
use super::metadata::MetadataValue;
use super::names::{Naming, file_order, interleaved_row};
use super::rope_factors::ROPE_FACTORS;
use super::tokenizer::{end_metadata, in_file, tokenizer_metadata};
use super::types::GgmlType;
use super::vocabulary::MODEL_KEY;
use super::write::{GgufSpec, Sink, save_gguf};
use crate::{Checkpoint, CheckpointError, Result};

/// Values that are widened at once.
const CHUNK: usize = 1 << 22;

/// What the matrices of a file are stored as; vectors and routers are always F32.
///
/// Where rows are no whole number of blocks, Q4_K becomes Q5_0, Q6_K becomes Q8_0, and these become F16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // The names of the field.
pub enum GgufFormat {
    /// 32 bits.
    F32,
    /// 16 bits with 11 of precision.
    F16,
    /// 16 bits with 8 of precision and the range of f32.
    BF16,
    /// 8.5 bits.
    Q8_0,
    /// 6.6 bits.
    Q6_K,
    /// 4.5 bits, in a mixture: Q6_K for the output (or the embedding that is one), and for the values and the second
    /// feed-forward matrix in the first and last eighth of the layers and every third between; Q8_0 for keys and values
    /// in mixtures of experts.
    Q4_K_M,
    /// 4.5 bits, all but the output, which is Q6_K.
    Q4_K_S,
    /// 4.5 bits in the older format, all but the output, which is Q6_K.
    Q4_0,
}

impl GgufFormat {
    /// All of them, the largest first.
    pub const ALL: [GgufFormat; 8] = [
        GgufFormat::F32,
        GgufFormat::F16,
        GgufFormat::BF16,
        GgufFormat::Q8_0,
        GgufFormat::Q6_K,
        GgufFormat::Q4_K_M,
        GgufFormat::Q4_K_S,
        GgufFormat::Q4_0,
    ];

    /// As on the command line and in the names of files.
    pub const fn name(self) -> &'static str {
        match self {
            GgufFormat::F32 => "F32",
            GgufFormat::F16 => "F16",
            GgufFormat::BF16 => "BF16",
            GgufFormat::Q8_0 => "Q8_0",
            GgufFormat::Q6_K => "Q6_K",
            GgufFormat::Q4_K_M => "Q4_K_M",
            GgufFormat::Q4_K_S => "Q4_K_S",
            GgufFormat::Q4_0 => "Q4_0",
        }
    }

    /// `general.file_type`. Source: `enum llama_ftype` in `llama.h`.
    const fn file_type(self) -> u32 {
        match self {
            GgufFormat::F32 => 0,
            GgufFormat::F16 => 1,
            GgufFormat::Q4_0 => 2,
            GgufFormat::Q8_0 => 7,
            GgufFormat::Q4_K_S => 14,
            GgufFormat::Q4_K_M => 15,
            GgufFormat::Q6_K => 18,
            GgufFormat::BF16 => 32,
        }
    }

    const fn base(self) -> GgmlType {
        match self {
            GgufFormat::F32 => GgmlType::F32,
            GgufFormat::F16 => GgmlType::F16,
            GgufFormat::BF16 => GgmlType::BF16,
            GgufFormat::Q8_0 => GgmlType::Q8_0,
            GgufFormat::Q6_K => GgmlType::Q6_K,
            GgufFormat::Q4_K_M | GgufFormat::Q4_K_S => GgmlType::Q4_K,
            GgufFormat::Q4_0 => GgmlType::Q4_0,
        }
    }

    /// The type of one tensor.
    fn ggml_type(self, name: &str, shape: &[usize], model: &Description) -> GgmlType {
        let [.., _, row_len] = *shape else { return GgmlType::F32 };
        if name.contains("ffn_gate_inp") {
            return GgmlType::F32;
        }
        let is_output = name == "output.weight" || (model.is_tied && name == "token_embd.weight");
        let inner = name.split('.').nth(2).unwrap_or_default();
        let layer = name.split('.').nth(1).and_then(|layer| layer.parse().ok()).unwrap_or(0);
        let is_mixed = self == GgufFormat::Q4_K_M;
        let wanted = match self.base() {
            GgmlType::Q4_K | GgmlType::Q4_0 if is_output => GgmlType::Q6_K,
            _ if is_mixed && model.experts > 0 && matches!(inner, "attn_k" | "attn_v") => GgmlType::Q8_0,
            _ if is_mixed
                && matches!(inner, "attn_v" | "ffn_down" | "ffn_down_exps")
                && deserves_more(layer, model.layers) =>
            {
                GgmlType::Q6_K
            }
            base => base,
        };
        let smaller = |t: GgmlType| match t {
            GgmlType::Q4_K => GgmlType::Q5_0,
            GgmlType::Q6_K => GgmlType::Q8_0,
            _ => GgmlType::F16,
        };
        let mut fits = wanted;
        while row_len % fits.block_len() != 0 {
            fits = smaller(fits);
        }
        fits
    }
}

/// Whether a layer gets more bits in a mixture. Source: `use_more_bits` in llama.cpp's `src/llama-quant.cpp`.
fn deserves_more(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The files of a tokenizer.
#[derive(Clone, Copy)]
pub struct Tokenizing<'a> {
    /// The contents of tokenizer.json.
    pub tokenizer: &'a Value,
    /// The contents of tokenizer_config.json, with the chat template in it; null when there is none.
    pub config: &'a Value,
}

/// What is written.
pub struct Export<'a> {
    /// The weights, which must not be quantised already.
    pub checkpoint: &'a Checkpoint,
    /// The contents of config.json with every field there (`head_dim`, `rope_scaling.attention_factor`, …), as the model
    /// crate writes it.
    pub config: &'a Value,
    /// None makes a file without a vocabulary, which tools can run on token ids only.
    pub tokenizing: Option<Tokenizing<'a>>,
    /// `general.name`.
    pub name: &'a str,
    /// The types of the tensors.
    pub format: GgufFormat,
}

impl Export<'_> {
    /// Writes the file; `progress` is called with the parameters written so far.
    ///
    /// Errors: those of [`save_gguf`]; a model that GGUF cannot express; a source that is quantised.
    /// Cost: reads and writes every tensor once, some rows at a time; the pages read are given back.
    pub fn write(&self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let wrong = in_file(path);
        let model = describe(self.config).map_err(&wrong)?;
        let metadata = self.metadata(&model).map_err(&wrong)?;
        let plan = self.plan(&model).map_err(&wrong)?;
        let specs: Vec<GgufSpec> = plan.iter().map(|(spec, _)| spec.clone()).collect();
        let sources: BTreeMap<&str, &Source> =
            plan.iter().map(|(spec, source)| (spec.name.as_str(), source)).collect();
        let mut written = 0;
        save_gguf(path, &metadata, &specs, |spec, sink: &mut Sink<'_>| -> Result<()> {
            match sources[spec.name.as_str()] {
                Source::Values(values) => sink(values)?,
                Source::Tensors { parts, heads } => {
                    for part in parts {
                        let tensor = self.checkpoint.tensor(part)?;
                        stream(part, &tensor, *heads, CHUNK, sink)?;
                        self.checkpoint.release(part);
                        written += tensor.len() as u64;
                        progress(written);
                    }
                }
            }
            Ok(())
        })
    }

    fn metadata(&self, model: &Description) -> Result<Vec<(String, MetadataValue)>, GgufError> {
        let text = |key: &str, value: &str| (key.to_owned(), MetadataValue::Text(value.to_owned()));
        let number = |key: &str, value: u32| (key.to_owned(), MetadataValue::U32(value));
        let mut entries = vec![
            text("general.architecture", model.architecture.name()),
            text("general.type", "model"),
            text("general.name", self.name),
            number("general.file_type", self.format.file_type()),
            number("general.quantization_version", 2),
        ];
        entries.extend(model.metadata.iter().cloned());
        match self.tokenizing {
            Some(Tokenizing { tokenizer, config }) => {
                entries.extend(tokenizer_metadata(tokenizer, config, model.vocab_size)?);
            }
            None => entries.push(text(MODEL_KEY, "none")),
        }
        end_metadata(self.config, &mut entries)?;
        Ok(entries)
    }

    /// Every tensor of the file with where its values come from, in the order of the file.
    fn plan(&self, model: &Description) -> Result<Vec<(GgufSpec, Source)>, GgufError> {
        let Description { architecture, heads, experts, .. } = *model;
        let naming = Naming { architecture, heads, experts };
        let mut plan: BTreeMap<String, Planned> = BTreeMap::new();
        for name in self.checkpoint.names() {
            // What transformers does not read either: tables of old files, and an output beside a tied embedding.
            if name.ends_with(".rotary_emb.inv_freq") || (model.is_tied && name == "lm_head.weight") {
                continue;
            }
            let info = self.checkpoint.get(name).expect("a name of the checkpoint: this is a bug");
            if info.is_quantised() {
                return Err(GgufError::AlreadyQuantised {
                    tensor: name.to_owned(),
                    got: info.dtype.to_owned(),
                });
            }
            let place = naming.destination(name).ok_or_else(|| GgufError::NoPlace(name.to_owned()))?;
            let planned = plan.entry(place.name).or_insert_with(|| Planned {
                shape: info.shape.to_vec(),
                parts: Vec::new(),
                heads: place.heads,
                is_stack: place.expert.is_some(),
            });
            planned.parts.push((place.expert.unwrap_or(0), name.to_owned()));
        }
        let mut list = Vec::new();
        for (name, planned) in plan {
            let (shape, source) = planned.finish(experts)?;
            list.push((
                GgufSpec { ggml_type: self.format.ggml_type(&name, &shape, model), name, shape },
                source,
            ));
        }
        list.sort_by_key(|(spec, _)| file_order(&spec.name));
        if let Some(factors) = &model.rope_factors {
            let name = ROPE_FACTORS.to_owned();
            let spec = GgufSpec { name, ggml_type: GgmlType::F32, shape: vec![factors.len()] };
            list.push((spec, Source::Values(factors.clone())));
        }
        Ok(list)
    }
}

/// Where the values of a tensor come from.
enum Source {
    Values(Vec<f32>),
    /// Tensors of the checkpoint, one behind the other; `heads` as in [`super::names::Destination`].
    Tensors {
        parts: Vec<String>,
        heads: Option<usize>,
    },
}

struct Planned {
    shape: Vec<usize>,
    parts: Vec<(usize, String)>,
    heads: Option<usize>,
    is_stack: bool,
}

impl Planned {
    /// The shape in the file, and the parts in their order.
    fn finish(mut self, experts: usize) -> Result<(Vec<usize>, Source), GgufError> {
        self.parts.sort();
        let rows = self.shape.first().copied().unwrap_or(0);
        if let Some(heads) =
            self.heads.filter(|&heads| heads == 0 || rows % heads != 0 || rows / heads % 2 != 0)
        {
            let (_, tensor) = self.parts.swap_remove(0);
            let expected = format!("rows for {heads} heads of an even width");
            return Err(GgufError::Shape { tensor, expected, got: self.shape });
        }
        if self.is_stack {
            if let Some((expert, (_, name))) =
                (0..experts).zip(&self.parts).find(|(i, (expert, _))| i != expert)
            {
                return Err(GgufError::MissingExpert(format!("{name} (expert {expert} of that layer)")));
            }
            if self.parts.len() != experts {
                let (_, last) = self.parts.last().expect("made with one part: this is a bug");
                return Err(GgufError::MissingExpert(format!("the expert after {last}")));
            }
            self.shape.insert(0, experts);
        } else if self.shape.first() == Some(&1) && self.shape.len() == 2 {
            // The gate of a shared expert is a vector in GGUF.
            self.shape.remove(0);
        }
        let parts = self.parts.into_iter().map(|(_, name)| name).collect();
        Ok((self.shape, Source::Tensors { parts, heads: self.heads }))
    }
}

/// Hands over the values of a tensor in the file's order of rows, about `chunk` of them at once.
fn stream(
    name: &str,
    tensor: &Tensor,
    heads: Option<usize>,
    chunk: usize,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let wrong = |source| CheckpointError::Tensor { tensor: name.to_owned(), source };
    let (rows, row_len) = (tensor.rows(), tensor.row_len());
    let at_once = (chunk / row_len.max(1)).max(1);
    // Row `interleaved_row(r)` of the file is row r here. Whole heads at a time keep the order inside a chunk.
    let rows_per_head = heads.map(|heads| rows / heads);
    let at_once = rows_per_head.map_or(at_once, |n| at_once.next_multiple_of(n.max(1)));
    for start in (0..rows).step_by(at_once) {
        let view = tensor.slice_rows(start..rows.min(start + at_once)).map_err(wrong)?;
        let mut values = view.to_f32_vec().map_err(wrong)?;
        if let Some(rows_per_head) = rows_per_head {
            let in_order = values.clone();
            for (row, from) in in_order.chunks_exact(row_len).enumerate() {
                let to = interleaved_row(row, rows_per_head) * row_len;
                values[to..to + row_len].copy_from_slice(from);
            }
        }
        sink(&values)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_streams_in_the_order_of_the_file() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let tensor = Tensor::from_slice(&[12, 2], &values).unwrap();
        for (heads, first_rows) in [(None, [0., 2., 4., 6., 8.]), (Some(2), [0., 6., 2., 8., 4.])] {
            for chunk in [1, 5, 14, 100] {
                let mut streamed = Vec::new();
                let mut sink = |values: &[f32]| {
                    streamed.extend_from_slice(values);
                    Ok(())
                };
                stream("q", &tensor, heads, chunk, &mut sink).unwrap();
                let got: Vec<f32> = streamed.iter().step_by(2).take(5).copied().collect();
                assert_eq!(
                    (got.as_slice(), streamed.len()),
                    (&first_rows[..], 24),
                    "{heads:?}, chunk {chunk}"
                );
            }
        }
    }

    #[test]
    fn layers_at_the_ends_and_every_third_get_more() {
        let layers: Vec<usize> = (0..16).filter(|&layer| deserves_more(layer, 16)).collect();
        assert_eq!(layers, [0, 1, 4, 7, 10, 13, 14, 15]);
    }
}
