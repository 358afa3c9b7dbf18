//! The transformer, top to bottom.

use kanana_checkpoint::Checkpoint;
use kanana_kernels::{Kernels, KvFormat, RopeTable, Weight};
use kanana_tensor::Tensor;

use crate::attention::Attention;
use crate::batch::Step;
use crate::feed_forward::FeedForward;
use crate::kv_cache::LayerCache;
use crate::load::{Loader, Source};
use crate::random::Random;
use crate::{Batch, Config, KvCache, LoadOptions, Result, rope_table};

/// A decoder: embedding, layers, norm, output projection.
pub struct Transformer {
    /// What the model is.
    pub config: Config,
    embed_tokens: Weight, // [V, D]
    layers: Vec<Layer>,
    norm: Tensor,            // [D]
    lm_head: Option<Weight>, // [V, D]; none when tied to the embedding
    rope: RopeTable,         // [P, H/2]
    kv_format: KvFormat,     // what keys and values are rounded to where no cache does it
}

/// One block: attention and feed-forward, each behind a norm and beside a residual stream.
struct Layer {
    input_layernorm: Tensor, // [D]
    self_attn: Attention,
    post_attention_layernorm: Tensor, // [D]
    mlp: FeedForward,
}

impl Transformer {
    /// Loads a checkpoint. `progress` is called with the parameters loaded so far.
    ///
    /// Errors: a tensor that is missing, misshapen, not of a floating dtype, or quantised in another format.
    pub fn load_with_progress(
        checkpoint: &Checkpoint,
        config: &Config,
        kernels: &dyn Kernels,
        options: &LoadOptions,
        progress: &dyn Fn(u64),
    ) -> Result<Self> {
        Self::build(&Loader::new(kernels, checkpoint, options.format, progress), config, options)
    }

    /// [`Transformer::load_with_progress`] without the progress.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        kernels: &dyn Kernels,
        options: &LoadOptions,
    ) -> Result<Self> {
        Self::load_with_progress(checkpoint, config, kernels, options, &|_| ())
    }

    /// A model of this shape with weights drawn from a seed: to measure speed, and to test laws that hold for any weights.
    pub fn random(config: &Config, kernels: &dyn Kernels, options: &LoadOptions, seed: u64) -> Result<Self> {
        let source = Random::new(seed, options.format);
        Self::build(&Loader::new(kernels, &source, options.format, &|_| ()), config, options)
    }

    /// A model whose parameters come from elsewhere.
    ///
    /// Errors: those of the source.
    pub fn from_source(
        source: &dyn Source,
        config: &Config,
        kernels: &dyn Kernels,
        options: &LoadOptions,
    ) -> Result<Self> {
        Self::build(&Loader::new(kernels, source, options.format, &|_| ()), config, options)
    }

    fn build(loader: &Loader<'_>, config: &Config, options: &LoadOptions) -> Result<Self> {
        let d = config.hidden_size;
        let (cos, sin) = rope_table(config, options.max_positions);
        let table = [options.max_positions, config.head_dim / 2];
        let upload = |values: &[f32]| -> Result<Tensor> {
            Ok(loader.kernels().upload(&Tensor::from_slice(&table, values)?)?)
        };
        Ok(Transformer {
            config: config.clone(),
            embed_tokens: loader.matrix("model.embed_tokens.weight", [config.vocab_size, d])?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(loader, config, i))
                .collect::<Result<_>>()?,
            norm: loader.vector("model.norm.weight", d)?,
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(loader.matrix("lm_head.weight", [config.vocab_size, d])?),
            },
            rope: RopeTable { cos: upload(&cos)?, sin: upload(&sin)? },
            kv_format: options.format.kv_format(),
        })
    }

    /// The same model, rounding keys and values to this format where there is no cache: as a cache of it would.
    pub fn with_kv_format(self, kv_format: KvFormat) -> Self {
        Transformer { kv_format, ..self }
    }

    /// Positions that the rotary table covers: the longest sequence, in tokens.
    pub fn max_positions(&self) -> usize {
        self.rope.cos.rows()
    }

    /// Hidden states after the final norm. With a cache, new keys and values are written at the batch's slots and
    /// past ones are read through its block tables; without, every sequence of the batch is whole.
    ///
    /// Shapes: → `[T, D]`. Errors: a token id of V or more, a position beyond the rotary table, a slot or block
    /// outside of the cache.
    pub fn forward(
        &self,
        kernels: &dyn Kernels,
        batch: &Batch,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        self.forward_traced(kernels, batch, cache, &mut |_, _| ())
    }

    /// [`Transformer::forward`], showing named intermediates: `embed_tokens`, and for each layer
    /// `layers.{i}.self_attn`, `layers.{i}.mlp`, `layers.{i}`; then `norm`. Shapes: all `[T, D]`.
    pub fn forward_traced(
        &self,
        kernels: &dyn Kernels,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        trace: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let step = Step::new(kernels, batch, self.kv_format, cache.is_some())?;
        let mut x_td = self.embed(&step)?;
        trace("embed_tokens", &x_td);
        for (i, layer) in self.layers.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| cache.layer(i));
            x_td = layer.forward(&step, &x_td, self, cache, &mut |name, tensor| {
                trace(&format!("layers.{i}{name}"), tensor);
            })?;
        }
        let y_td = self.finish(&step, &x_td)?;
        trace("norm", &y_td);
        Ok(y_td)
    }

    // The parts of the forward pass, for those who keep something between them.

    /// A step over whole sequences, without a cache. Errors: those of the upload.
    pub fn step<'a>(&self, kernels: &'a dyn Kernels, batch: &Batch) -> Result<Step<'a>> {
        Step::new(kernels, batch, self.kv_format, false)
    }

    /// Shapes: → `[T, D]`.
    pub fn embed(&self, step: &Step<'_>) -> Result<Tensor> {
        Ok(step.kernels.embedding(&step.token_ids, &self.embed_tokens)?)
    }

    /// Layer `i` without a cache. Shapes: `x [T, D]` → `[T, D]`.
    pub fn layer(&self, i: usize, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        self.layers[i].forward(step, x, self, None, &mut |_, _| ())
    }

    /// The last norm. Shapes: `x [T, D]` → `[T, D]`.
    pub fn finish(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        Ok(step.kernels.rms_norm(x, &self.norm, self.eps())?)
    }

    /// The matrix that [`Transformer::logits`] multiplies with, `[V, D]`; the embedding where they are tied.
    pub fn output_matrix(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Shapes: `hidden [R, D]`, rows of [`Transformer::forward`] → logits `[R, V]`. Cost: 2·R·V·D FLOPs.
    pub fn logits(&self, kernels: &dyn Kernels, hidden: &Tensor) -> Result<Tensor> {
        Ok(kernels.linear(hidden, self.output_matrix())?)
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, config: &Config, i: usize) -> Result<Self> {
        let prefix = format!("model.layers.{i}");
        let norm = |name: &str| loader.vector(&format!("{prefix}.{name}.weight"), config.hidden_size);
        Ok(Layer {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(loader, &format!("{prefix}.self_attn"), config)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: FeedForward::load(loader, &prefix, config, i)?,
        })
    }

    fn forward(
        &self,
        step: &Step<'_>,
        x_td: &Tensor,
        model: &Transformer,
        cache: Option<&mut LayerCache>,
        trace: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let kernels = step.kernels;
        let normed = kernels.rms_norm(x_td, &self.input_layernorm, model.eps())?;
        let attended = self.self_attn.forward(step, &normed, &model.rope, cache)?;
        trace(".self_attn", &attended);
        let (x_td, normed) =
            kernels.add_rms_norm(x_td, &attended, &self.post_attention_layernorm, model.eps())?;
        let fed = self.mlp.forward(kernels, &normed)?;
        trace(".mlp", &fed);
        let x_td = kernels.add(&x_td, &fed)?;
        trace("", &x_td);
        Ok(x_td)
    }
}
