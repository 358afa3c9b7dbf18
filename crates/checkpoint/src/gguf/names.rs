//! What llama.cpp calls a tensor and what Hugging Face calls it, both ways, for the architectures that are read.
//!
//! Where one side has several tensors for one of the other (the experts of a layer are one stack in GGUF), or the rows
//! in another order, a [`Piece`] says so.

use std::ops::Range;

use super::error::GgufError;
use super::header::GgufTensor;
use super::metadata::Metadata;
use crate::Result;

/// `general.architecture`: which names, keys and conventions a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    Llama,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
}

impl Architecture {
    pub(crate) const ALL: [Architecture; 4] =
        [Architecture::Llama, Architecture::Qwen2Moe, Architecture::Qwen3, Architecture::Qwen3Moe];

    /// In files, and the prefix of their keys.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2Moe => "qwen2moe",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3moe",
        }
    }

    /// Whether rows of queries and keys are in the order that rotates neighbours: llama.cpp's converter reorders those
    /// of Llama and Mixtral, and of no other architecture here.
    pub(crate) const fn rotates_neighbours(self) -> bool {
        matches!(self, Architecture::Llama)
    }

    pub(crate) fn of(metadata: Metadata<'_>) -> Result<Self> {
        const KEY: &str = "general.architecture";
        let name = metadata.need(KEY, metadata.text(KEY)?)?;
        let known = Self::ALL.map(Architecture::name).join(", ");
        Self::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
            metadata.wrong(GgufError::value(
                KEY,
                format!("{name:?}"),
                format!("one of {known}; no other is implemented"),
            ))
        })
    }
}

/// Names outside of the layers, in the order of files.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Names inside a layer without experts: `blk.N.` and `model.layers.N.` come before, `.weight` or `.bias` after.
const INNER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Names of a mixture's router and shared expert, and the stacks of its experts: in GGUF, in Mixtral, in the Qwen family.
const ROUTER: [(&str, &str, &str); 5] = [
    ("ffn_gate_inp", "block_sparse_moe.gate", "mlp.gate"),
    ("ffn_gate_shexp", "", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "", SHARED_GATE),
];
const STACKS: [(&str, &str, &str); 3] = [
    ("ffn_gate_exps", "w1", "gate_proj"),
    ("ffn_up_exps", "w3", "up_proj"),
    ("ffn_down_exps", "w2", "down_proj"),
];
const MIXTRAL_EXPERTS: &str = "block_sparse_moe.experts.";
const QWEN_EXPERTS: &str = "mlp.experts.";
/// One row: `[1, D]` in Hugging Face, `[D]` in GGUF.
const SHARED_GATE: &str = "mlp.shared_expert_gate";

/// What must be known of a model to translate its names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming {
    pub(crate) architecture: Architecture,
    /// Heads of queries, of keys and values.
    pub(crate) heads: (usize, usize),
    /// Experts of a layer; 0 in dense models.
    pub(crate) experts: usize,
}

/// A Hugging Face tensor inside a GGUF file.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Range<usize>,
    /// Into how many heads the rows fall whose halves were interleaved; none when they are in order.
    pub(crate) heads: Option<usize>,
}

/// Where a Hugging Face tensor goes in a GGUF file.
#[derive(Debug, PartialEq)]
pub(crate) struct Destination {
    pub(crate) name: String,
    /// Its place in the stack of experts.
    pub(crate) expert: Option<usize>,
    /// As in [`Piece`].
    pub(crate) heads: Option<usize>,
}

impl Naming {
    pub(crate) fn of(metadata: Metadata<'_>) -> Result<Self> {
        let architecture = Architecture::of(metadata)?;
        let size = |name: &str| -> Result<Option<usize>> {
            let key = format!("{}.{name}", architecture.name());
            let wrong = |n| metadata.wrong(GgufError::value(&key, n, "a number that memory can address"));
            metadata.integer(&key)?.map(|n| usize::try_from(n).map_err(|_| wrong(n))).transpose()
        };
        let key = "attention.head_count";
        let heads = metadata.need(&format!("{}.{key}", architecture.name()), size(key)?)?;
        let kv_heads = size("attention.head_count_kv")?.unwrap_or(heads);
        Ok(Naming { architecture, heads: (heads, kv_heads), experts: size("expert_count")?.unwrap_or(0) })
    }

    fn is_mixtral(&self) -> bool {
        self.architecture == Architecture::Llama && self.experts > 0
    }

    fn pick<'a>(&self, mixtral: &'a str, qwen: &'a str) -> &'a str {
        if self.is_mixtral() { mixtral } else { qwen }
    }

    /// The heads to put in order, of a GGUF tensor `name` inside a layer.
    fn interleaved_heads(&self, inner: &str) -> Option<usize> {
        match inner {
            "attn_q" if self.architecture.rotates_neighbours() => Some(self.heads.0),
            "attn_k" if self.architecture.rotates_neighbours() => Some(self.heads.1),
            _ => None,
        }
    }

    /// The tensors of Hugging Face that a GGUF tensor holds; a name that is not known stays as it is, so that whoever
    /// compares names with a configuration sees it.
    pub(crate) fn pieces(&self, name: &str, tensor: &GgufTensor) -> Result<Vec<Piece>, GgufError> {
        let whole = |name: String, heads| {
            vec![Piece { name, shape: tensor.shape.clone(), bytes: tensor.bytes.clone(), heads }]
        };
        if let Some((_, outer)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
            return Ok(whole((*outer).to_owned(), None));
        }
        let Some((layer, inner, end)) = split_layer(name, "blk.") else {
            return Ok(whole(name.to_owned(), None));
        };
        let prefix = format!("model.layers.{layer}");
        if let Some((gguf, other)) = INNER.iter().find(|(gguf, _)| *gguf == inner) {
            let heads = self.interleaved_heads(gguf);
            self.check_heads(name, tensor, heads)?;
            return Ok(whole(format!("{prefix}.{other}.{end}"), heads));
        }
        if let Some((_, mixtral, qwen)) = ROUTER.iter().find(|(gguf, ..)| *gguf == inner) {
            let other = self.pick(mixtral, qwen);
            let mut pieces = whole(format!("{prefix}.{other}.{end}"), None);
            if *qwen == SHARED_GATE && tensor.shape.len() == 1 {
                pieces[0].shape.insert(0, 1);
            }
            return Ok(pieces);
        }
        match STACKS.iter().find(|(gguf, ..)| *gguf == inner && end == "weight") {
            Some((_, mixtral, qwen)) => {
                let experts = format!("{prefix}.{}", self.pick(MIXTRAL_EXPERTS, QWEN_EXPERTS));
                let matrix = self.pick(mixtral, qwen);
                self.unstack(name, tensor, |expert| format!("{experts}{expert}.{matrix}.weight"))
            }
            None => Ok(whole(name.to_owned(), None)),
        }
    }

    fn check_heads(&self, name: &str, tensor: &GgufTensor, heads: Option<usize>) -> Result<(), GgufError> {
        let rows = tensor.shape.first().copied().unwrap_or(0);
        match heads {
            Some(heads) if heads == 0 || rows % heads != 0 || rows / heads % 2 != 0 => {
                Err(GgufError::Shape {
                    tensor: name.to_owned(),
                    expected: format!("rows for {heads} heads of an even width"),
                    got: tensor.shape.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    fn unstack(
        &self,
        name: &str,
        tensor: &GgufTensor,
        expert_name: impl Fn(usize) -> String,
    ) -> Result<Vec<Piece>, GgufError> {
        let [experts, rows, columns] = tensor.shape[..] else {
            return Err(self.not_a_stack(name, tensor));
        };
        if experts == 0 || experts != self.experts {
            return Err(self.not_a_stack(name, tensor));
        }
        let (start, size) = (tensor.bytes.start, tensor.bytes.len() / experts);
        let piece = |x: usize| Piece {
            name: expert_name(x),
            shape: vec![rows, columns],
            bytes: start + x * size..start + (x + 1) * size,
            heads: None,
        };
        Ok((0..experts).map(piece).collect())
    }

    fn not_a_stack(&self, name: &str, tensor: &GgufTensor) -> GgufError {
        GgufError::Shape {
            tensor: name.to_owned(),
            expected: format!("a stack of {} matrices, as expert_count says", self.experts),
            got: tensor.shape.clone(),
        }
    }

    /// Where a Hugging Face tensor goes; none when GGUF has no place for it.
    pub(crate) fn destination(&self, name: &str) -> Option<Destination> {
        let plain = |name: String, heads| Some(Destination { name, expert: None, heads });
        if let Some((gguf, _)) = OUTER.iter().find(|(_, other)| *other == name) {
            return plain((*gguf).to_owned(), None);
        }
        let (layer, inner, end) = split_layer(name, "model.layers.")?;
        if let Some((gguf, _)) = INNER.iter().find(|(_, other)| *other == inner) {
            return plain(format!("blk.{layer}.{gguf}.{end}"), self.interleaved_heads(gguf));
        }
        if let Some((gguf, ..)) = ROUTER.iter().find(|(_, mixtral, qwen)| self.pick(mixtral, qwen) == inner) {
            return plain(format!("blk.{layer}.{gguf}.{end}"), None);
        }
        let path = inner.strip_prefix(self.pick(MIXTRAL_EXPERTS, QWEN_EXPERTS))?;
        let (expert, matrix) = path.split_once('.')?;
        let (gguf, ..) = STACKS.iter().find(|(_, mixtral, qwen)| self.pick(mixtral, qwen) == matrix)?;
        let expert = expert.parse().ok().filter(|&x: &usize| x < self.experts && end == "weight")?;
        Some(Destination { name: format!("blk.{layer}.{gguf}.{end}"), expert: Some(expert), heads: None })
    }
}

/// `blk.12.attn_q.weight` to 12, `attn_q` and `weight`.
fn split_layer<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str, &'a str)> {
    let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let (inner, end) = rest.rsplit_once('.')?;
    matches!(end, "weight" | "bias").then_some(())?;
    // Digits that are written in one way only, so that two names never mean one tensor.
    let number: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
    Some((number, inner, end))
}

/// The place of a GGUF tensor in a file: embedding, layers, the last norm and the output.
pub(crate) fn file_order(name: &str) -> (usize, usize, usize) {
    if let Some((layer, inner, _)) = split_layer(name, "blk.") {
        let names = INNER.iter().map(|(gguf, _)| *gguf);
        let rest = ROUTER.iter().map(|(gguf, ..)| *gguf).chain(STACKS.iter().map(|(gguf, ..)| *gguf));
        return (1, layer, names.chain(rest).position(|known| known == inner).unwrap_or(usize::MAX));
    }
    match OUTER.iter().position(|(gguf, _)| *gguf == name) {
        Some(0) => (0, 0, 0),
        Some(place) => (2, 0, place),
        None => (3, 0, 0),
    }
}

/// Row `row` of the order that rotates halves (Hugging Face), in the order that rotates neighbours (llama).
///
/// Within a head, element i of half j becomes neighbour j of pair i.
pub(crate) fn interleaved_row(row: usize, rows_per_head: usize) -> usize {
    let (head, within) = (row / rows_per_head, row % rows_per_head);
    let half = rows_per_head / 2;
    head * rows_per_head + within % half * 2 + within / half
}

#[cfg(test)]
mod tests {
    use super::super::types::GgmlType;
    use super::*;

    const LLAMA: Naming = Naming { architecture: Architecture::Llama, heads: (4, 2), experts: 0 };

    /// One GGUF tensor of 64 bytes holds tensors of these names, and they lead back to it.
    #[track_caller]
    fn check(naming: Naming, gguf: &str, shape: &[usize], expected: &[(&str, &[usize])]) {
        let tensor = GgufTensor { ggml_type: GgmlType::F32, shape: shape.to_vec(), bytes: 100..164 };
        let pieces = naming.pieces(gguf, &tensor).unwrap();
        let got: Vec<_> = pieces.iter().map(|piece| (piece.name.as_str(), piece.shape.as_slice())).collect();
        assert_eq!(got, expected);
        let mut reached = 100;
        for (x, piece) in pieces.iter().enumerate() {
            let back = naming.destination(&piece.name).unwrap();
            assert_eq!((back.name.as_str(), back.heads), (gguf, piece.heads));
            assert!(back.expert.is_none_or(|expert| expert == x));
            assert_eq!(piece.bytes.start, reached);
            reached = piece.bytes.end;
        }
        assert_eq!(reached, 164);
    }

    #[test]
    fn names_lead_there_and_back() {
        let qwen = Naming { architecture: Architecture::Qwen2Moe, heads: (2, 2), experts: 2 };
        let mixtral = Naming { experts: 2, ..LLAMA };
        check(LLAMA, "token_embd.weight", &[4, 4], &[("model.embed_tokens.weight", &[4, 4])]);
        check(LLAMA, "output.weight", &[4, 4], &[("lm_head.weight", &[4, 4])]);
        check(
            LLAMA,
            "blk.11.attn_q.weight",
            &[8, 2],
            &[("model.layers.11.self_attn.q_proj.weight", &[8, 2])],
        );
        check(LLAMA, "blk.0.attn_k.bias", &[16], &[("model.layers.0.self_attn.k_proj.bias", &[16])]);
        check(
            LLAMA,
            "blk.3.ffn_norm.weight",
            &[16],
            &[("model.layers.3.post_attention_layernorm.weight", &[16])],
        );
        check(
            mixtral,
            "blk.0.ffn_gate_inp.weight",
            &[2, 8],
            &[("model.layers.0.block_sparse_moe.gate.weight", &[2, 8])],
        );
        check(
            mixtral,
            "blk.0.ffn_down_exps.weight",
            &[2, 4, 2],
            &[
                ("model.layers.0.block_sparse_moe.experts.0.w2.weight", &[4, 2]),
                ("model.layers.0.block_sparse_moe.experts.1.w2.weight", &[4, 2]),
            ],
        );
        check(
            qwen,
            "blk.0.ffn_up_exps.weight",
            &[2, 4, 2],
            &[
                ("model.layers.0.mlp.experts.0.up_proj.weight", &[4, 2]),
                ("model.layers.0.mlp.experts.1.up_proj.weight", &[4, 2]),
            ],
        );
        check(
            qwen,
            "blk.5.ffn_gate_inp_shexp.weight",
            &[16],
            &[("model.layers.5.mlp.shared_expert_gate.weight", &[1, 16])],
        );
        check(
            qwen,
            "blk.5.ffn_up_shexp.weight",
            &[4, 4],
            &[("model.layers.5.mlp.shared_expert.up_proj.weight", &[4, 4])],
        );
    }

    #[test]
    fn what_is_not_known_keeps_its_name() {
        let tensor = GgufTensor { ggml_type: GgmlType::F32, shape: vec![4], bytes: 0..16 };
        for name in
            ["rope_freqs.weight", "blk.0.ssm_in.weight", "blk.00.attn_q.weight", "v.blk.0.attn_q.weight"]
        {
            assert_eq!(LLAMA.pieces(name, &tensor).unwrap()[0].name, name);
        }
        for name in
            ["visual.patch_embed.weight", "model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.x.mlp"]
        {
            assert_eq!(LLAMA.destination(name), None);
        }
    }

    #[test]
    fn shapes_that_the_metadata_forbid_are_refused() {
        let refuse = |naming: Naming, name: &str, shape: &[usize]| {
            let tensor = GgufTensor { ggml_type: GgmlType::F32, shape: shape.to_vec(), bytes: 0..16 };
            assert!(matches!(naming.pieces(name, &tensor), Err(GgufError::Shape { .. })), "{name} {shape:?}");
        };
        refuse(LLAMA, "blk.0.attn_q.weight", &[4, 1]);
        refuse(LLAMA, "blk.0.attn_q.weight", &[6, 1]);
        refuse(Naming { heads: (0, 0), ..LLAMA }, "blk.0.attn_q.weight", &[8, 1]);
        refuse(LLAMA, "blk.0.ffn_up_exps.weight", &[2, 2, 1]);
        refuse(Naming { experts: 4, ..LLAMA }, "blk.0.ffn_up_exps.weight", &[2, 2, 1]);
        refuse(Naming { experts: 4, ..LLAMA }, "blk.0.ffn_up_exps.weight", &[4]);
    }

    #[test]
    fn rows_change_places_as_in_the_converter() {
        // Two heads of six: 0 1 2 | 3 4 5 becomes 0 3 1 4 2 5.
        let order: Vec<usize> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn files_are_ordered_as_a_token_meets_them() {
        let mut names = [
            "output.weight",
            "blk.10.attn_norm.weight",
            "blk.2.ffn_down.weight",
            "blk.2.attn_q.weight",
            "token_embd.weight",
        ];
        names.sort_by_key(|name| file_order(name));
        let expected = [
            "token_embd.weight",
            "blk.2.attn_q.weight",
            "blk.2.ffn_down.weight",
            "blk.10.attn_norm.weight",
            "output.weight",
        ];
        assert_eq!(names, expected);
    }
}
