//! Clients that ask a server at once, each a thread that sends its next request when the last one is answered.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::client::{Answer, Server};
use super::prompts::Prompts;
use crate::progress::Progress;

/// How a server is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub clients: usize,
    pub requests_per_client: usize,
    pub max_tokens: usize,
    /// Which of the run's loads: the prompts of each are its own.
    pub group: u64,
    /// Where the numbers of its prompts begin.
    pub first_prompt: u64,
}

/// What came of a load.
pub struct Outcome {
    pub clients: usize,
    pub answers: Vec<Answer>,
    /// Of each request that failed, why.
    pub errors: Vec<String>,
    /// From the first request to the end of the last.
    pub seconds: f64,
    /// Time to the first token of the prompt that brought the shared prefix, which was sent alone before the others.
    pub miss_s: Option<f64>,
}

/// A request, answered or not.
struct Done {
    started: Instant,
    ended: Instant,
    answer: Result<Answer>,
}

impl Load {
    /// Requests of all clients.
    pub fn requests(&self) -> usize {
        self.clients * self.requests_per_client
    }

    /// Loads a server until all requests are done.
    ///
    /// Errors: the system gives no thread; what goes wrong with a request is part of the outcome.
    pub fn run(&self, server: &Server, prompts: &Prompts) -> Result<Outcome> {
        let (mut errors, mut miss_s) = (Vec::new(), None);
        if prompts.lengths.shared_prefix > 0 {
            // A number that no client has: the prefix is all that they find.
            let prompt = prompts.prompt(self.group, self.first_prompt + self.requests() as u64);
            match server.connect().complete(&prompt, 1) {
                Ok(answer) => miss_s = Some(answer.ttft_s()),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        let (sender, receiver) = mpsc::channel();
        let done: Vec<Done> = thread::scope(|scope| {
            for client in 0..self.clients {
                let sender = sender.clone();
                let run = move || {
                    let connection = server.connect();
                    for request in 0..self.requests_per_client {
                        let number = (client * self.requests_per_client + request) as u64;
                        let prompt = prompts.prompt(self.group, self.first_prompt + number);
                        let started = Instant::now();
                        let answer = connection.complete(&prompt, self.max_tokens);
                        // Nobody listens when another client could not be started.
                        if sender.send(Done { started, ended: Instant::now(), answer }).is_err() {
                            return;
                        }
                    }
                };
                thread::Builder::new().spawn_scoped(scope, run).context("cannot start one more client")?;
            }
            drop(sender);
            let progress = Progress::of_requests(self.requests() as u64);
            Ok::<_, anyhow::Error>(receiver.into_iter().inspect(|_| progress.inc()).collect())
        })?;
        let first = done.iter().map(|done| done.started).min();
        let last = done.iter().map(|done| done.ended).max();
        let seconds = first.zip(last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let mut answers = Vec::new();
        for done in done {
            match done.answer {
                Ok(answer) => answers.push(answer),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        Ok(Outcome { clients: self.clients, answers, errors, seconds, miss_s })
    }
}
