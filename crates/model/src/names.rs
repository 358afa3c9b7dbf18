//! The tensors a checkpoint of a configuration must hold: their Hugging Face names and shapes.
//!
//! Matrices are `[out, in]`. It opens no file: the caller brings the names it found.
//! Tests: `cargo test -p kanana-model names`.
//!
//! Shapes: D hidden, N query heads, K kv heads, H head_dim, F ffn, V vocabulary, X experts.

use kanana_kernels::Format;

use crate::{Config, Family, Mixture};

/// How a checkpoint differs from what its configuration calls for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorReport {
    /// Names that are not there.
    pub missing: Vec<String>,
    /// Names that nothing reads.
    pub extra: Vec<String>,
    /// Name, expected shape, shape found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl TensorReport {
    /// Whether the weights can be loaded; extra tensors do not hinder.
    pub fn is_loadable(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty()
    }
}

/// Every tensor of the model with its shape, in the order a forward pass meets them.
pub fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (d, v) = (config.hidden_size, config.vocab_size);
    let mut list = List(vec![("model.embed_tokens.weight".to_owned(), vec![v, d])]);
    for layer in 0..config.num_hidden_layers {
        let prefix = format!("model.layers.{layer}");
        list.push(&prefix, "input_layernorm.weight", &[d]);
        attention(&mut list, &format!("{prefix}.self_attn"), config);
        list.push(&prefix, "post_attention_layernorm.weight", &[d]);
        match &config.mixture {
            Some(mixture) if config.is_sparse(layer) => experts(&mut list, &prefix, config, mixture),
            _ => dense(&mut list, &format!("{prefix}.mlp"), config),
        }
    }
    list.0.push(("model.norm.weight".to_owned(), vec![d]));
    if !config.tie_word_embeddings {
        list.0.push(("lm_head.weight".to_owned(), vec![v, d]));
    }
    list.0
}

/// Tensors that a model may have or not, with their shapes: biases of routers, which change what experts are chosen.
/// DeepSeek-V3 has them under these names. Source: Wang et al. 2024, arXiv 2408.15664.
pub fn optional_tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let Some(mixture) = &config.mixture else { return Vec::new() };
    let block = mixture_names(config.family).0;
    (0..config.num_hidden_layers)
        .filter(|&layer| config.is_sparse(layer))
        .map(|layer| (router_bias(&format!("model.layers.{layer}.{block}")), vec![mixture.num_experts]))
        .collect()
}

/// Compares what a checkpoint holds with [`expected_tensors`] and [`optional_tensors`].
///
/// Not counted as extra: the tables `rotary_emb.inv_freq` of old files, which are computed here, and an output matrix
/// beside a tied embedding, which transformers does not read either.
pub fn compare_tensors<'a>(
    config: &Config,
    found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> TensorReport {
    let mut found: std::collections::BTreeMap<&str, &[usize]> = found.into_iter().collect();
    let mut report = TensorReport::default();
    for (name, expected) in expected_tensors(config) {
        match found.remove(name.as_str()) {
            None => report.missing.push(name),
            Some(shape) if shape != expected => report.misshapen.push((name, expected, shape.to_vec())),
            Some(_) => {}
        }
    }
    for (name, expected) in optional_tensors(config) {
        if let Some(shape) = found.remove(name.as_str()).filter(|&shape| shape != expected) {
            report.misshapen.push((name, expected, shape.to_vec()));
        }
    }
    let is_spare = |name: &str| {
        name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    report.extra = found.into_keys().filter(|name| !is_spare(name)).map(str::to_owned).collect();
    report
}

/// The format of the matrix of this name in a model of `format`, whether it is quantised before or while it is loaded.
pub fn weight_format(name: &str, format: Format) -> Format {
    match name.rsplit('.').nth(1) {
        Some("embed_tokens" | "lm_head") => format.of_embedding(),
        // A router: a millionth of the weights, and a wrong choice of experts costs more than its bytes.
        Some("gate" | "shared_expert_gate") if format.is_quantised() => Format::BF16,
        _ => format,
    }
}

struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn push(&mut self, prefix: &str, name: &str, shape: &[usize]) {
        self.0.push((format!("{prefix}.{name}"), shape.to_vec()));
    }

    /// A projection `[out, in]` and its bias.
    fn projection(&mut self, prefix: &str, name: &str, shape: [usize; 2], bias: bool) {
        self.push(prefix, &format!("{name}.weight"), &shape);
        if bias {
            self.push(prefix, &format!("{name}.bias"), &shape[..1]);
        }
    }
}

fn attention(list: &mut List, prefix: &str, config: &Config) {
    let (d, h) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * h, config.num_key_value_heads * h);
    for (name, out) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
        list.projection(prefix, name, [out, d], config.attention_bias);
    }
    if config.qk_norm {
        list.push(prefix, "q_norm.weight", &[h]);
        list.push(prefix, "k_norm.weight", &[h]);
    }
    list.projection(prefix, "o_proj", [d, q], config.has_output_bias());
}

fn dense(list: &mut List, prefix: &str, config: &Config) {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    for (name, shape) in [("gate_proj", [f, d]), ("up_proj", [f, d]), ("down_proj", [d, f])] {
        list.projection(prefix, name, shape, config.mlp_bias);
    }
}

fn experts(list: &mut List, layer: &str, config: &Config, mixture: &Mixture) {
    let (d, m) = (config.hidden_size, mixture.moe_intermediate_size);
    let (block, [gate, up, down]) = mixture_names(config.family);
    let block = format!("{layer}.{block}");
    list.push(&block, "gate.weight", &[mixture.num_experts, d]);
    for expert in 0..mixture.num_experts {
        let expert = format!("{block}.experts.{expert}");
        for (name, shape) in [(gate, [m, d]), (up, [m, d]), (down, [d, m])] {
            list.projection(&expert, name, shape, false);
        }
    }
    if let Some(s) = mixture.shared_expert_intermediate_size {
        let shared = format!("{block}.shared_expert");
        for (name, shape) in [("gate_proj", [s, d]), ("up_proj", [s, d]), ("down_proj", [d, s])] {
            list.projection(&shared, name, shape, false);
        }
    }
    if mixture.shared_expert_gated {
        list.push(&block, "shared_expert_gate.weight", &[1, d]);
    }
}

/// What a mixture is called inside its layer, and the three matrices of its experts.
pub(crate) fn mixture_names(family: Family) -> (&'static str, [&'static str; 3]) {
    match family {
        Family::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
        _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
    }
}

/// The bias of the router of a mixture.
pub(crate) fn router_bias(block: &str) -> String {
    format!("{block}.gate.e_score_correction_bias")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;

    fn qwen2_moe() -> Config {
        let text = r#"{"model_type": "qwen2_moe", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
            "num_key_value_heads": 1, "intermediate_size": 10, "vocab_size": 30, "max_position_embeddings": 64,
            "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 5, "mlp_only_layers": [0],
            "shared_expert_intermediate_size": 7}"#;
        Config::from_json_str(text, "config.json").unwrap()
    }

    #[test]
    fn embeddings_and_routers_get_more_bits() {
        let check = |name: &str, expected: [Format; 4]| {
            assert_eq!(Format::ALL.map(|format| weight_format(name, format)), expected, "{name}");
        };
        let [f32, bf16, q8, q4] = Format::ALL;
        check("model.layers.3.self_attn.q_proj.weight", [f32, bf16, q8, q4]);
        check("model.layers.3.mlp.gate_proj.weight", [f32, bf16, q8, q4]);
        check("model.layers.3.block_sparse_moe.experts.2.w1.weight", [f32, bf16, q8, q4]);
        for embedding in ["model.embed_tokens.weight", "lm_head.weight"] {
            check(embedding, [f32, bf16, q8, q8]);
        }
        for router in ["block_sparse_moe.gate", "mlp.gate", "mlp.shared_expert_gate"] {
            check(&format!("model.layers.0.{router}.weight"), [f32, bf16, bf16, bf16]);
        }
    }

    #[track_caller]
    fn check(config: &Config, layer: usize, expected: &[(&str, &[usize])]) {
        let prefix = format!("model.layers.{layer}.");
        let got: Vec<_> = expected_tensors(config)
            .into_iter()
            .filter_map(|(name, shape)| name.strip_prefix(&prefix).map(|name| (name.to_owned(), shape)))
            .collect();
        let expected: Vec<_> =
            expected.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn a_dense_layer_has_the_names_of_llama() {
        let config = preset("tiny").unwrap().config;
        let layer: [(&str, &[usize]); 9] = [
            ("input_layernorm.weight", &[56]),
            ("self_attn.q_proj.weight", &[96, 56]),
            ("self_attn.k_proj.weight", &[32, 56]),
            ("self_attn.v_proj.weight", &[32, 56]),
            ("self_attn.o_proj.weight", &[56, 96]),
            ("post_attention_layernorm.weight", &[56]),
            ("mlp.gate_proj.weight", &[120, 56]),
            ("mlp.up_proj.weight", &[120, 56]),
            ("mlp.down_proj.weight", &[56, 120]),
        ];
        check(&config, 2, &layer);
        let all = expected_tensors(&config);
        assert_eq!(all.len(), 3 * layer.len() + 2, "embedding and final norm; the output matrix is tied");
        assert_eq!(all[0], ("model.embed_tokens.weight".to_owned(), vec![259, 56]));
        let untied = expected_tensors(&Config { tie_word_embeddings: false, ..config });
        assert_eq!(untied.last(), Some(&("lm_head.weight".to_owned(), vec![259, 56])));
    }

    #[test]
    fn biases_and_norms_are_asked_for_where_they_are() {
        let llama = preset("tiny").unwrap().config;
        let names = |config: &Config| -> Vec<String> {
            let all = expected_tensors(config).into_iter();
            all.filter(|(name, _)| {
                name.contains("layers.0") && (name.ends_with("bias") || name.contains("_norm"))
            })
            .map(|(name, _)| name.replace("model.layers.0.", ""))
            .collect()
        };
        assert_eq!(names(&llama), [] as [&str; 0]);
        assert_eq!(
            names(&Config { attention_bias: true, mlp_bias: true, ..llama.clone() }),
            [
                "self_attn.q_proj.bias",
                "self_attn.k_proj.bias",
                "self_attn.v_proj.bias",
                "self_attn.o_proj.bias",
                "mlp.gate_proj.bias",
                "mlp.up_proj.bias",
                "mlp.down_proj.bias"
            ]
        );
        assert_eq!(
            names(&Config { qk_norm: true, ..llama }),
            ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
        );
    }

    #[test]
    fn mixtures_have_the_names_of_their_family() {
        let mixtral = preset("tiny-moe").unwrap().config;
        let names: Vec<_> = expected_tensors(&mixtral)
            .into_iter()
            .filter(|(name, _)| name.contains("layers.0.block"))
            .collect();
        assert_eq!(names.len(), 1 + 8 * 3);
        assert_eq!(names[0], ("model.layers.0.block_sparse_moe.gate.weight".to_owned(), vec![8, 56]));
        assert_eq!(
            names[24],
            ("model.layers.0.block_sparse_moe.experts.7.w2.weight".to_owned(), vec![56, 24])
        );

        let qwen = qwen2_moe();
        check(
            &qwen,
            1,
            &[
                ("input_layernorm.weight", &[12]),
                ("self_attn.q_proj.weight", &[12, 12]),
                ("self_attn.q_proj.bias", &[12]),
                ("self_attn.k_proj.weight", &[4, 12]),
                ("self_attn.k_proj.bias", &[4]),
                ("self_attn.v_proj.weight", &[4, 12]),
                ("self_attn.v_proj.bias", &[4]),
                ("self_attn.o_proj.weight", &[12, 12]),
                ("post_attention_layernorm.weight", &[12]),
                ("mlp.gate.weight", &[2, 12]),
                ("mlp.experts.0.gate_proj.weight", &[5, 12]),
                ("mlp.experts.0.up_proj.weight", &[5, 12]),
                ("mlp.experts.0.down_proj.weight", &[12, 5]),
                ("mlp.experts.1.gate_proj.weight", &[5, 12]),
                ("mlp.experts.1.up_proj.weight", &[5, 12]),
                ("mlp.experts.1.down_proj.weight", &[12, 5]),
                ("mlp.shared_expert.gate_proj.weight", &[7, 12]),
                ("mlp.shared_expert.up_proj.weight", &[7, 12]),
                ("mlp.shared_expert.down_proj.weight", &[12, 7]),
                ("mlp.shared_expert_gate.weight", &[1, 12]),
            ],
        );
        let dense = expected_tensors(&qwen)
            .into_iter()
            .any(|(name, _)| name == "model.layers.0.mlp.gate_proj.weight");
        assert!(dense, "layer 0 is in mlp_only_layers");
    }

    #[test]
    fn a_checkpoint_is_compared_with_its_configuration() {
        let config = preset("tiny").unwrap().config;
        let mut tensors = expected_tensors(&config);
        let compare = |tensors: &[(String, Vec<usize>)]| {
            compare_tensors(&config, tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
        };
        assert_eq!(compare(&tensors), TensorReport::default());

        tensors.push(("lm_head.weight".to_owned(), vec![259, 56]));
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), vec![8]));
        assert_eq!(compare(&tensors), TensorReport::default(), "spare tensors are not extra");

        tensors[0].1 = vec![260, 56];
        tensors[1].0 = "visual.patch_embed.weight".to_owned();
        let report = compare(&tensors);
        assert_eq!(report.missing, ["model.layers.0.input_layernorm.weight"]);
        assert_eq!(report.extra, ["visual.patch_embed.weight"]);
        assert_eq!(
            report.misshapen,
            [("model.embed_tokens.weight".to_owned(), vec![259, 56], vec![260, 56])]
        );
        assert!(!report.is_loadable());
    }

    #[test]
    fn a_router_may_have_a_bias() {
        let config = qwen2_moe();
        let name = "model.layers.1.mlp.gate.e_score_correction_bias";
        assert_eq!(optional_tensors(&config), [(name.to_owned(), vec![2])], "layer 0 is dense");
        assert_eq!(optional_tensors(&preset("tiny").unwrap().config), []);
        let report = |bias: Option<Vec<usize>>| {
            let mut tensors = expected_tensors(&config);
            tensors.extend(bias.map(|shape| (name.to_owned(), shape)));
            compare_tensors(&config, tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
        };
        assert_eq!(report(None), TensorReport::default());
        assert_eq!(report(Some(vec![2])), TensorReport::default());
        assert_eq!(report(Some(vec![3])).misshapen, [(name.to_owned(), vec![2], vec![3])]);
    }
}
