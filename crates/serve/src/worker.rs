//! The thread that owns an engine, and the handle by which the rest of the server reaches it.
//!
//! The engine is synchronous: this thread alone steps it, and everything that a step does not need (templates,
//! tokenising, text, JSON) happens elsewhere. Requests come through one channel; each has a channel of its own for what
//! it gets, and a request whose receiver is gone is cancelled before the next step.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use kanana_engine::{
    Constraint, EmbeddingInput, Engine, EngineError, Pooling, Request, SequenceId, Stats, StepOutput,
};
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use crate::error::{ApiError, ApiResult};
use crate::models::Capacity;
use crate::pace::Pace;

/// What a request hears from the engine.
#[derive(Debug)]
pub enum Event {
    /// A token, or the end.
    Output(StepOutput),
    /// The engine refused the request, or failed.
    Failed(ApiError),
}

enum Command {
    Submit { ticket: u64, request: Box<(Request, Option<Constraint>)>, place: Place, events: Events },
    Cancel { ticket: u64 },
    Embed(Embed),
}

/// Texts to embed in one forward pass.
struct Embed {
    inputs: Vec<EmbeddingInput>,
    pooling: Pooling,
    reply: oneshot::Sender<Embedded>,
}

type Events = tokio_mpsc::UnboundedSender<Event>;
type Embedded = Result<Vec<Vec<f32>>, EngineError>;

/// Reaches one engine from any thread. The engine's thread ends when the last handle is gone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Requests that hold a [`Place`].
    in_flight: AtomicUsize,
    /// How many of those there may be.
    limit: usize,
    next_ticket: AtomicUsize,
    board: Mutex<Board>,
}

/// What the engine's thread tells of itself.
#[derive(Clone, Debug, Default)]
struct Board {
    stats: Stats,
    /// From the end of one request to the end of the next, on average. Units: seconds.
    interval: f64,
}

/// A place in the queue, given back when it is dropped. The engine's thread holds it as long as the request runs: a
/// client that does not read its answer, which has ended, keeps nobody out.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request on its way; dropping it cancels it.
pub struct Ticket {
    id: u64,
    handle: Handle,
    events: tokio_mpsc::UnboundedReceiver<Event>,
}

impl Ticket {
    /// The next thing that happens; None after the end.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The engine's thread is gone only when the server ends.
        self.handle.commands.send(Command::Cancel { ticket: self.id }).ok();
    }
}

impl Handle {
    /// Starts the thread of an engine.
    ///
    /// Errors: the machine refuses a thread.
    pub fn start(name: &str, engine: Engine, capacity: &Capacity) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            in_flight: AtomicUsize::new(0),
            limit: capacity.requests,
            next_ticket: AtomicUsize::new(0),
            board: Mutex::new(Board { stats: engine.stats(), interval: 0.0 }),
        });
        let worker = Worker {
            engine,
            inbox,
            shared: Arc::clone(&shared),
            running: HashMap::new(),
            turnover: Turnover::new(),
            pace: Pace::new(capacity.pause),
            embeddings: VecDeque::new(),
        };
        std::thread::Builder::new().name(format!("engine {name}")).spawn(move || {
            let _guard = EndsTogether;
            worker.run();
        })?;
        Ok(Handle { commands, shared })
    }

    /// Whether so many requests would be taken now: asked before work is spent on them.
    ///
    /// Errors: as [`Handle::admit`].
    pub fn check_room(&self, count: usize) -> ApiResult<()> {
        self.admit(count).map(drop)
    }

    /// Queues `count` requests that belong together, or none of them.
    ///
    /// Errors: 429 when the queue is full, 503 when the server is going down.
    pub fn admit(&self, count: usize) -> ApiResult<Admission> {
        let shared = &self.shared;
        let room = |now: usize| (now + count <= shared.limit).then_some(now + count);
        match shared.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room) {
            Ok(_) => {
                let places = std::iter::repeat_with(|| Place(Arc::clone(shared))).take(count).collect();
                Ok(Admission { handle: self.clone(), places })
            }
            Err(_) if count > shared.limit => Err(ApiError::invalid(
                "n",
                format!("{count} sequences were asked for, but the server runs {} at most", shared.limit),
            )),
            Err(_) => Err(ApiError::busy(self.retry_after())),
        }
    }

    /// The mean-pooled (or otherwise pooled) hidden states of some prompts.
    ///
    /// Errors: those of [`Engine::embed`], as a client should see them.
    pub async fn embed(&self, inputs: Vec<EmbeddingInput>, pooling: Pooling) -> ApiResult<Vec<Vec<f32>>> {
        let _place = self.admit(1)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Embed(Embed { inputs, pooling, reply }))?;
        Ok(answer.await.map_err(|_| ApiError::unavailable("the server is going down"))??)
    }

    /// Where the engine stands, as of its last step.
    pub fn stats(&self) -> Stats {
        self.board().stats.clone()
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.shared.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds until a place may be free.
    fn retry_after(&self) -> u64 {
        let interval = self.board().interval;
        if interval > 0.0 { interval.ceil().clamp(1.0, 60.0) as u64 } else { 5 }
    }

    fn send(&self, command: Command) -> ApiResult<()> {
        self.commands.send(command).map_err(|_| ApiError::unavailable("the server is going down"))
    }
}

/// Places in the queue that are held; those not used are given back.
pub struct Admission {
    handle: Handle,
    places: Vec<Place>,
}

impl Admission {
    /// Uses a place.
    ///
    /// Errors: 503 when the server is going down.
    pub fn submit(&mut self, request: Request, constraint: Option<Constraint>) -> ApiResult<Ticket> {
        let place = self.places.pop().expect("no more requests than were admitted: this is a bug");
        let id = self.handle.shared.next_ticket.fetch_add(1, Ordering::Relaxed) as u64;
        let (sender, events) = tokio_mpsc::unbounded_channel();
        let request = Box::new((request, constraint));
        self.handle.send(Command::Submit { ticket: id, request, place, events: sender })?;
        Ok(Ticket { id, handle: self.handle.clone(), events })
    }
}

/// A panic of the engine's thread is a bug after which no request could ever be answered: the program ends, and who
/// watches over it starts it again.
struct EndsTogether;

impl Drop for EndsTogether {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the engine's thread panicked: this is a bug");
            std::process::abort();
        }
    }
}

struct Running {
    ticket: u64,
    events: Events,
    _place: Place,
}

struct Worker {
    engine: Engine,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    running: HashMap<SequenceId, Running>,
    turnover: Turnover,
    pace: Pace,
    embeddings: VecDeque<Embed>,
}

impl Worker {
    fn run(mut self) {
        loop {
            if self.engine.is_idle() && self.embeddings.is_empty() {
                self.report();
                match self.inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(mpsc::RecvError) => return,
                }
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command);
            }
            self.embed_once();
            self.step();
        }
    }

    /// Embeds one group of texts, so that answers go on between two of them.
    fn embed_once(&mut self) {
        let Some(Embed { inputs, pooling, reply }) = self.embeddings.pop_front() else { return };
        if !reply.is_closed() {
            drop(reply.send(self.engine.embed(&inputs, pooling)));
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { ticket, request, place, events } => {
                let added = match *request {
                    (request, None) => self.engine.add(request),
                    (request, Some(constraint)) => self.engine.add_constrained(request, constraint),
                };
                match added {
                    Ok(id) => drop(self.running.insert(id, Running { ticket, events, _place: place })),
                    Err(error) => drop(events.send(Event::Failed(error.into()))),
                }
            }
            Command::Cancel { ticket } => {
                let found = self.running.iter().find(|(_, running)| running.ticket == ticket);
                if let Some(id) = found.map(|(&id, _)| id) {
                    self.engine.cancel(id);
                    self.running.remove(&id);
                }
            }
            Command::Embed(embed) => self.embeddings.push_back(embed),
        }
    }

    fn step(&mut self) {
        let (before, started) = (self.engine.stats().computed_tokens, Instant::now());
        self.engine.set_prefill_beside_decode(self.pace.prefill());
        let stepped = self.engine.step();
        self.pace.note(self.engine.stats().computed_tokens - before, started.elapsed());
        match stepped {
            Ok(outputs) => outputs.into_iter().for_each(|output| self.hand_out(output)),
            Err(error) => {
                tracing::error!(%error, "a step of the engine failed");
                let error = ApiError::from(error);
                for (id, running) in self.running.drain() {
                    self.engine.cancel(id);
                    drop(running.events.send(Event::Failed(error.clone())));
                }
            }
        }
        self.report();
    }

    fn hand_out(&mut self, output: StepOutput) {
        let (id, ended) = (output.id, output.finished.is_some());
        let Some(running) = self.running.get(&id) else { return };
        let events = running.events.clone();
        if ended {
            self.running.remove(&id); // its place is free before the client hears of the end and asks again
        }
        let gone = events.send(Event::Output(output)).is_err();
        if gone && !ended {
            self.engine.cancel(id);
            self.running.remove(&id);
        }
        if gone || ended {
            self.turnover.count();
        }
    }

    fn report(&self) {
        let board = Board { stats: self.engine.stats(), interval: self.turnover.interval };
        *self.shared.board.lock().unwrap_or_else(PoisonError::into_inner) = board;
    }
}

/// The time between the ends of two requests, as an average that forgets.
struct Turnover {
    /// Units: seconds; 0 before the second end.
    interval: f64,
    last: Instant,
}

impl Turnover {
    fn new() -> Self {
        Turnover { interval: 0.0, last: Instant::now() }
    }

    fn count(&mut self) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.interval = if self.interval == 0.0 { seconds } else { 0.9 * self.interval + 0.1 * seconds };
    }
}
