//! What a model costs: parameters, floating-point operations, bytes. Arithmetic on a [`Config`], no weights needed.
//!
//! Shapes: D hidden, N query heads, K kv heads, H head_dim, F ffn, V vocabulary, X experts, A active experts, L layers.
//! Tests: `cargo test -p kanana-model cost`.

use kanana_kernels::{Format, KvFormat};
use kanana_tensor::DType;

use crate::{Config, Mixture};

/// Numbers of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// All of them; a tied embedding counts once.
    pub total: u64,
    /// Those a token meets: all but the experts it is not sent to. Equal to `total` in a dense model.
    pub active: u64,
    /// The embedding, and the output matrix where it is another one.
    pub embedding: u64,
}

impl Parameters {
    /// All but the embedding and the output matrix.
    pub fn non_embedding(&self) -> u64 {
        self.total - self.embedding
    }
}

/// Bytes a model needs at work. Activations, a few megabytes for every thousand tokens of a step, come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The weights.
    pub weights: u64,
    /// Keys and values of the context.
    pub kv_cache: u64,
    /// Cosines and sines of every position, f32.
    pub rope_table: u64,
}

impl Memory {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.rope_table)
    }
}

/// Counts the parameters exactly: the sum over the shapes of [`crate::expected_tensors`].
pub fn parameters(config: &Config) -> Parameters {
    let d = wide(config.hidden_size);
    let matrix = wide(config.vocab_size) * d;
    let embedding = if config.tie_word_embeddings { matrix } else { 2 * matrix };
    let mut total = embedding + d;
    let mut active = total;
    for layer in 0..config.num_hidden_layers {
        let shared = attention(config) + 2 * d;
        let (all, chosen) = match &config.mixture {
            Some(mixture) if config.is_sparse(layer) => experts(mixture, d),
            _ => {
                let f = wide(config.intermediate_size);
                let biases = if config.mlp_bias { 2 * f + d } else { 0 };
                (3 * d * f + biases, 3 * d * f + biases)
            }
        };
        total += shared + all;
        active += shared + chosen;
    }
    Parameters { total: narrow(total), active: narrow(active), embedding: narrow(embedding) }
}

/// Floating-point operations for one more token behind `context` tokens.
///
/// Two for every active parameter but the embedding, which is looked up (the output matrix, tied or not, counts),
/// and 4·N·H for every layer and visible token: scores and weighted sum. Norms, rotations and softmax are left out,
/// under 1 % together. Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1.
pub fn flops_per_token(config: &Config, context: usize) -> u64 {
    let active = u128::from(parameters(config).active);
    let looked_up =
        if config.tie_word_embeddings { 0 } else { wide(config.vocab_size) * wide(config.hidden_size) };
    let heads = wide(config.num_attention_heads) * wide(config.head_dim);
    let attention = 4 * heads * wide(context) * wide(config.num_hidden_layers);
    narrow(2 * (active - looked_up) + attention)
}

/// Bytes read to decode one token alone behind `context` tokens: the weights it meets, one row of the embedding, and
/// the keys and values before it. A batch reads the dense weights once for all.
pub fn decode_bytes_per_token(config: &Config, format: Format, context: usize) -> u64 {
    let d = config.hidden_size as u64;
    let counts = parameters(config);
    let not_read =
        if config.tie_word_embeddings { 0 } else { (config.vocab_size as u64 - 1).saturating_mul(d) };
    let weights = format.bytes(counts.active - counts.embedding);
    let embedding = format.of_embedding().bytes(counts.embedding - not_read);
    let cache = u128::from(kv_bytes_per_token(config, format.kv_format())) * wide(context);
    narrow(u128::from(weights) + u128::from(embedding) + cache)
}

/// Bytes of keys and values for every token of context: 2·L·K rows of H elements, in 8 bits with a scale each.
pub fn kv_bytes_per_token(config: &Config, format: KvFormat) -> u64 {
    let heads = wide(config.num_key_value_heads) * wide(format.row_bytes(config.head_dim));
    narrow(2 * wide(config.num_hidden_layers) * heads)
}

/// Bytes of all weights in a format.
pub fn weight_bytes(config: &Config, format: Format) -> u64 {
    let counts = parameters(config);
    format.bytes(counts.non_embedding()).saturating_add(format.of_embedding().bytes(counts.embedding))
}

/// Bytes needed to serve `context` tokens in all, with weights in `format` and the cache that goes with it.
pub fn memory_needed(config: &Config, format: Format, context: usize) -> Memory {
    Memory {
        weights: weight_bytes(config, format),
        kv_cache: narrow(u128::from(kv_bytes_per_token(config, format.kv_format())) * wide(context)),
        rope_table: narrow(wide(context) * wide(config.head_dim) * wide(DType::F32.size())),
    }
}

fn attention(config: &Config) -> u128 {
    let d = wide(config.hidden_size);
    let q = wide(config.num_attention_heads) * wide(config.head_dim);
    let kv = wide(config.num_key_value_heads) * wide(config.head_dim);
    let biases = if config.attention_bias { q + 2 * kv } else { 0 };
    let output_bias = if config.has_output_bias() { d } else { 0 };
    let norms = if config.qk_norm { 2 * wide(config.head_dim) } else { 0 };
    2 * d * q + 2 * d * kv + biases + output_bias + norms
}

/// Parameters of a mixture layer: all, and those one token meets.
fn experts(mixture: &Mixture, d: u128) -> (u128, u128) {
    let expert = 3 * d * wide(mixture.moe_intermediate_size);
    let router = d * wide(mixture.num_experts);
    let shared = 3 * d * wide(mixture.shared_expert_intermediate_size.unwrap_or(0));
    let gate = if mixture.shared_expert_gated { d } else { 0 };
    let every_token = router + shared + gate;
    (
        every_token + wide(mixture.num_experts) * expert,
        every_token + wide(mixture.num_experts_per_tok) * expert,
    )
}

/// Sums are made in 128 bits, where no configuration that passed its checks overflows.
fn wide(size: usize) -> u128 {
    size as u128
}

/// Back to 64 bits; what does not fit is more than any machine has.
fn narrow(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{expected_tensors, presets, presets::preset};

    #[track_caller]
    fn check(name: &str, total: f64, active: f64) {
        let parameters = parameters(&preset(name).unwrap().config);
        let billions = |count: u64| (count as f64 / 1e6).round() / 1e3;
        assert_eq!((billions(parameters.total), billions(parameters.active)), (total, active), "{name}");
    }

    #[test]
    fn parameters_are_those_published() {
        check("nano-2.1b", 2.087, 2.087);
        check("8b", 8.030, 8.030);
        check("1.5-8b", 8.030, 8.030);
        check("essence-9.8b", 9.775, 9.775);
        check("nano-1.5-3b", 3.008, 3.008);
        check("1.5-15.7b-a3b", 15.696, 3.013);
        let flag = parameters(&preset("flag-32.5b").unwrap().config).total as f64 / 1e9;
        assert!((32.45..32.55).contains(&flag), "{flag}");
        let nano = parameters(&preset("nano-2.1b").unwrap().config);
        assert_eq!((nano.non_embedding() as f64 / 1e7).round(), 186.0, "1.86B without the embedding");
    }

    #[test]
    fn the_mixture_uses_37_percent_of_the_operations_of_the_8b() {
        let flops = |name| flops_per_token(&preset(name).unwrap().config, 0) as f64;
        let share = flops("1.5-15.7b-a3b") / flops("1.5-8b");
        assert_eq!((share * 100.0).round(), 37.0, "{share}");
    }

    #[test]
    fn parameters_are_the_sum_of_the_tensors() {
        let qwen = r#"{"model_type": "qwen2_moe", "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6,
            "num_key_value_heads": 2, "intermediate_size": 100, "vocab_size": 300, "max_position_embeddings": 64,
            "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": [0],
            "shared_expert_intermediate_size": 40}"#;
        let mut configs: Vec<Config> = presets::presets().into_iter().map(|preset| preset.config).collect();
        configs.push(Config::from_json_str(qwen, "qwen").unwrap());
        configs.push(Config { attention_bias: true, mlp_bias: true, qk_norm: true, ..configs[0].clone() });
        for config in configs {
            let sum: usize =
                expected_tensors(&config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(parameters(&config).total, sum as u64);
        }
    }

    #[test]
    fn bytes_and_operations_grow_with_the_context() {
        let config = preset("8b").unwrap().config;
        // 2 · 32 layers · 8 heads · 128 · 2 bytes.
        assert_eq!(kv_bytes_per_token(&config, KvFormat::BF16), 131_072);
        assert_eq!(kv_bytes_per_token(&config, KvFormat::F32), 262_144);
        // 2 · 32 layers · 8 heads · (128 codes and a scale of 4 bytes).
        assert_eq!(kv_bytes_per_token(&config, KvFormat::Q8), 67_584);
        // 4 · 32 heads · 128 · 32 layers for every visible token.
        assert_eq!(flops_per_token(&config, 1000) - flops_per_token(&config, 0), 1000 * 524_288);
        let decode = |context| decode_bytes_per_token(&config, Format::BF16, context);
        assert_eq!(decode(1000) - decode(0), 1000 * 131_072);
        // All weights but the rows of the embedding that are not looked up.
        assert_eq!(weight_bytes(&config, Format::BF16) - decode(0), 2 * 4096 * (128_256 - 1));
    }

    #[test]
    fn a_tied_matrix_is_counted_once_and_read_whole() {
        let tied = preset("nano-2.1b").unwrap().config;
        let untied = Config { tie_word_embeddings: false, ..tied.clone() };
        let matrix = 1792 * 128_256;
        assert_eq!(parameters(&untied).total - parameters(&tied).total, matrix);
        assert_eq!(flops_per_token(&untied, 0), flops_per_token(&tied, 0));
        assert_eq!(decode_bytes_per_token(&tied, Format::BF16, 0), weight_bytes(&tied, Format::BF16));
    }

    #[test]
    fn memory_is_weights_cache_and_table() {
        let memory = memory_needed(&preset("8b").unwrap().config, Format::BF16, 8192);
        assert_eq!(memory.weights, 2 * parameters(&preset("8b").unwrap().config).total);
        assert_eq!((memory.kv_cache, memory.rope_table), (1 << 30, 4 << 20));
        assert_eq!(memory.total(), memory.weights + (1 << 30) + (4 << 20));
    }

    #[test]
    fn scales_and_factors_are_counted() {
        let config = preset("nano-2.1b").unwrap().config;
        let counts = parameters(&config);
        let expected = counts.non_embedding() as f64 * 4.3125 / 8.0 + counts.embedding as f64 * 8.0625 / 8.0;
        assert!((weight_bytes(&config, Format::Q4) as f64 / expected - 1.0).abs() < 1e-6);
        assert_eq!(decode_bytes_per_token(&config, Format::Q4, 0), weight_bytes(&config, Format::Q4));
    }
}
