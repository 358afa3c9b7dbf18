//! The models that the server offers: loaded when first asked for, let go when memory is needed for another.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kanana_engine::{Engine, Pooling, SamplingParams, Vocabulary};
use kanana_tokenizer::tools::ToolFormat;
use kanana_tokenizer::{ChatTemplate, Tokenizer};

use crate::error::{ApiError, ApiResult, ServeError};
use crate::ids::now;
use crate::worker::Handle;

/// What a loader brings beside the engine.
pub struct Loaded {
    /// Of the same model.
    pub tokenizer: Tokenizer,
    /// How conversations become prompts.
    pub template: ChatTemplate,
    /// What requests that say nothing get.
    pub defaults: SamplingParams,
    /// Tokens that end a turn, beside those the engine knows.
    pub ends_of_turn: Vec<u32>,
    /// Tokens of prompt and answer together.
    pub max_context: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// How tool calls are written; None: as the template seems to have it.
    pub tool_format: Option<ToolFormat>,
    /// How texts become vectors.
    pub pooling: Pooling,
}

/// Reads a model, on a thread of its own. The error is for people.
pub type Loader = Box<dyn Fn() -> Result<(Engine, Loaded), String> + Send + Sync>;

/// A model that can be asked for.
pub struct ModelSpec {
    /// Its name in requests.
    pub id: String,
    /// What it takes in memory, KV cache included. Units: bytes.
    pub bytes: u64,
    /// Reads it.
    pub load: Loader,
}

/// A loaded model.
pub struct Model {
    pub id: String,
    pub handle: Handle,
    loaded: Loaded,
    vocabulary: OnceLock<Arc<Vocabulary>>,
}

/// A model is what its loader brought.
impl Deref for Model {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.loaded
    }
}

impl Model {
    /// The vocabulary as constrained decoding reads it, made when first needed.
    ///
    /// Errors: a vocabulary that llguidance does not take.
    pub fn vocabulary(&self) -> ApiResult<Arc<Vocabulary>> {
        if let Some(vocabulary) = self.vocabulary.get() {
            return Ok(Arc::clone(vocabulary));
        }
        let specials = self.tokenizer.special_ids();
        let bytes = |id: u32| self.tokenizer.token_bytes(id).filter(|_| !specials.contains_key(&id));
        let ordinary: Vec<Option<Vec<u8>>> = (0..self.vocab_size as u32).map(bytes).collect();
        let specials: Vec<(u32, String)> = specials.iter().map(|(&id, token)| (id, token.clone())).collect();
        let made = Vocabulary::new(&ordinary, &specials, &self.ends_of_turn).map_err(ApiError::internal)?;
        Ok(Arc::clone(self.vocabulary.get_or_init(|| Arc::new(made))))
    }
}

/// How much of everything there is for requests.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Requests of one model, those that wait included.
    pub requests: usize,
    /// Units: bytes.
    pub memory: Option<u64>,
    /// How long an answer that runs may wait for a step that also reads new prompts.
    pub pause: Duration,
}

/// All models of a server, by name.
pub struct Models {
    specs: Vec<Arc<ModelSpec>>,
    capacity: Capacity,
    loaded: Mutex<HashMap<String, Entry>>,
    /// Held while one is being loaded.
    loading: tokio::sync::Mutex<()>,
    created: u64,
}

struct Entry {
    model: Arc<Model>,
    bytes: u64,
    last_used: Instant,
}

impl Models {
    /// None is loaded yet.
    ///
    /// Errors: no model, two of one name.
    pub fn new(specs: Vec<ModelSpec>, capacity: Capacity) -> Result<Self, ServeError> {
        let mut names: Vec<&str> = specs.iter().map(|spec| spec.id.as_str()).collect();
        names.sort_unstable();
        if names.is_empty() || names.windows(2).any(|pair| pair[0] == pair[1]) {
            let got = format!("{names:?}");
            return Err(ServeError::Setting {
                field: "models",
                got,
                expected: "at least one, each of its own name",
            });
        }
        let specs = specs.into_iter().map(Arc::new).collect();
        let loaded = Mutex::new(HashMap::new());
        Ok(Models { specs, capacity, loaded, loading: tokio::sync::Mutex::new(()), created: now() })
    }

    /// Their names, the default first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.specs.iter().map(|spec| spec.id.as_str())
    }

    /// Seconds since 1970 at which the server was started.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The loaded ones, in the order of their names' listing.
    pub fn loaded(&self) -> Vec<Arc<Model>> {
        let loaded = self.lock();
        self.names().filter_map(|name| loaded.get(name).map(|entry| Arc::clone(&entry.model))).collect()
    }

    /// The context of a model, where it is loaded.
    pub fn max_context(&self, name: &str) -> Option<usize> {
        self.lock().get(name).map(|entry| entry.model.max_context)
    }

    /// A model by name, the first where none is given; loads it when it is not there.
    ///
    /// Errors: 404 for an unknown name, 503 when there is no room for it or it cannot be read.
    pub async fn get(self: &Arc<Self>, name: Option<&str>) -> ApiResult<Arc<Model>> {
        let spec = match name {
            None | Some("") => &self.specs[0],
            Some(name) => self.specs.iter().find(|spec| spec.id == name).ok_or_else(|| {
                let known: Vec<&str> = self.names().collect();
                let message =
                    format!("the model {name:?} does not exist here; there is {}", known.join(", "));
                let mut error = ApiError::not_found(message, "model_not_found");
                error.body.param = Some("model".into());
                error
            })?,
        };
        if let Some(model) = self.touch(&spec.id) {
            return Ok(model);
        }
        // On a task of its own: a client that goes away must not let the next one start a second load beside it.
        let (models, spec) = (Arc::clone(self), Arc::clone(spec));
        let loaded = tokio::spawn(async move { models.load(&spec).await }).await;
        loaded.map_err(|error| ApiError::internal(format!("a model could not be loaded: {error}")))?
    }

    async fn load(&self, spec: &Arc<ModelSpec>) -> ApiResult<Arc<Model>> {
        let _one_at_a_time = self.loading.lock().await;
        if let Some(model) = self.touch(&spec.id) {
            return Ok(model);
        }
        self.make_room(spec)?;
        let (loader, started) = (Arc::clone(spec), Instant::now());
        let loaded = tokio::task::spawn_blocking(move || (loader.load)()).await;
        let loaded =
            loaded.map_err(|error| error.to_string()).and_then(|loaded| loaded).map_err(|problem| {
                tracing::error!(model = spec.id, problem, "cannot load");
                ApiError::unavailable(format!("{} cannot be loaded: {problem}", spec.id))
            })?;
        tracing::info!(model = spec.id, seconds = started.elapsed().as_secs_f64(), "loaded");
        let model = Arc::new(self.start(spec, loaded)?);
        let entry = Entry { model: Arc::clone(&model), bytes: spec.bytes, last_used: Instant::now() };
        self.lock().insert(spec.id.clone(), entry);
        Ok(model)
    }

    fn start(&self, spec: &ModelSpec, (engine, mut loaded): (Engine, Loaded)) -> ApiResult<Model> {
        let handle = Handle::start(&spec.id, engine, &self.capacity).map_err(ApiError::internal)?;
        loaded.tool_format = loaded.tool_format.or_else(|| ToolFormat::detect(loaded.template.source(true)));
        Ok(Model { id: spec.id.clone(), handle, loaded, vocabulary: OnceLock::new() })
    }

    fn touch(&self, id: &str) -> Option<Arc<Model>> {
        let mut loaded = self.lock();
        let entry = loaded.get_mut(id)?;
        entry.last_used = Instant::now();
        Some(Arc::clone(&entry.model))
    }

    /// Lets go of the models that nobody uses, the longest unused first, until the new one fits.
    fn make_room(&self, spec: &ModelSpec) -> ApiResult<()> {
        let Some(limit) = self.capacity.memory else { return Ok(()) };
        let mut loaded = self.lock();
        loop {
            let used: u64 = loaded.values().map(|entry| entry.bytes).sum();
            if used + spec.bytes <= limit || loaded.is_empty() {
                return Ok(());
            }
            let idle = loaded.iter().filter(|(_, entry)| Arc::strong_count(&entry.model) == 1);
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.last_used).map(|(id, _)| id.clone()) else {
                return Err(ApiError::unavailable(format!(
                    "no memory for {}: it takes {} MiB, and models in use take {} of {} MiB; try again later",
                    spec.id,
                    spec.bytes >> 20,
                    used >> 20,
                    limit >> 20
                )));
            };
            tracing::info!(model = oldest, "let go for another");
            loaded.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
