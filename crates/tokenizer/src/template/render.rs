//! The environment templates run in, and the limits that hold them.
//!
//! Templates come with checkpoints, so they are foreign code. Fuel bounds their work and memory. A render runs on a
//! thread of its own, whose stack is sized so that values nested as deep as the fuel allows can be dropped, and which
//! is abandoned after [`DEADLINE`]: a few operations of minijinja 3.1 cost more than the fuel they burn.
//!
//! Not held: a list that contains itself twice, thirty levels deep, written out as a string. That takes no fuel, so the
//! deadline ends the wait, but the abandoned thread goes on, and takes memory, until the process ends.

use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::python;
use crate::{Result, TokenizerError};

/// Longest template, in bytes; the longest published ones have about 30,000.
const MAX_SOURCE: usize = 256 << 10;
/// Fuel of any render: a unit is an instruction or 64 bytes. Published templates use some hundred per message.
const BASE_FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 1000;
const MAX_FUEL: u64 = 8_000_000;
/// Bytes of stack per unit of fuel.
const STACK_PER_FUEL: u64 = 128;
/// Longest time a render may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest `range`; jinja2's sandbox has the same.
const MAX_RANGE: i128 = 100_000;

/// One render of one template, self-contained so that it can run on its own thread.
pub(super) struct Job {
    pub name: String,
    pub source: String,
    pub variables: serde_json::Map<String, serde_json::Value>,
    pub now: SystemTime,
}

/// Checks that a template parses.
pub(super) fn check_syntax(name: &str, source: &str) -> Result<()> {
    let source = prepare(name, source)?;
    confined(name, BASE_FUEL, move || {
        environment(SystemTime::UNIX_EPOCH).template_from_str(&source).map(drop)
    })
}

impl Job {
    /// Renders.
    pub fn run(self) -> Result<String> {
        let source = prepare(&self.name, &self.source)?;
        let messages = self.variables.get("messages").and_then(|m| m.as_array()).map_or(0, Vec::len);
        let size: usize = self.variables.values().map(python::weight).sum();
        let fuel = BASE_FUEL + FUEL_PER_MESSAGE * messages as u64 + size as u64;
        let fuel = fuel.min(MAX_FUEL);
        confined(&self.name, fuel, move || {
            let mut env = environment(self.now);
            env.set_fuel(Some(fuel));
            let variables = python::to_value(self.variables.into());
            env.template_from_str(&source)?.render(variables)
        })
    }
}

/// Checks the length and turns `{% generation %}` (which marks the assistant's words for training) into `{% with %}`:
/// it renders its body, and what is set inside stays inside.
fn prepare(name: &str, source: &str) -> Result<String> {
    if source.len() > MAX_SOURCE {
        let problem = format!("the template has {} bytes, more than {MAX_SOURCE}", source.len());
        return Err(TokenizerError::TemplateLimit { name: name.into(), problem });
    }
    let mut prepared = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) = next_tag(rest) {
        prepared.push_str(before);
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => prepared.push_str(&tag.replace("generation", "with")),
            "endgeneration" => prepared.push_str(&tag.replace("endgeneration", "endwith")),
            _ => prepared.push_str(tag),
        }
        rest = after;
    }
    Ok(prepared + rest)
}

/// Splits at the inside of the next `{% … %}`.
fn next_tag(source: &str) -> Option<(&str, &str, &str)> {
    let start = source.find("{%")? + 2;
    let end = start + source[start..].find("%}")?;
    Some((&source[..start], &source[start..end], &source[end..]))
}

/// Runs `work` on a thread that can be given up.
fn confined<T: Send + 'static>(
    name: &str,
    fuel: u64,
    work: impl FnOnce() -> std::result::Result<T, Error> + Send + 'static,
) -> Result<T> {
    let limit = |problem: String| TokenizerError::TemplateLimit { name: name.into(), problem };
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("chat template".into());
    let stack = usize::try_from(fuel * STACK_PER_FUEL).unwrap_or(usize::MAX);
    let run = {
        let name = name.to_string();
        move || drop(sender.send(work().map_err(|error| explain(&name, &error))))
    };
    thread.stack_size(stack).spawn(run).map_err(|error| limit(format!("no thread to render on: {error}")))?;
    match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            Err(limit(format!("not done after {} s", DEADLINE.as_secs())))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(TokenizerError::TemplateFailed {
            name: name.into(),
            problem: "the template engine panicked".into(),
        }),
    }
}

/// What `raise_exception` was given, carried through the engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn explain(name: &str, error: &Error) -> TokenizerError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TokenizerError::TemplateRaised { message: message.clone() };
        }
        cause = current.source();
    }
    let (name, problem) = (name.to_string(), error.to_string());
    match error.kind() {
        ErrorKind::SyntaxError => TokenizerError::TemplateSyntax { name, problem },
        ErrorKind::OutOfFuel => TokenizerError::TemplateLimit { name, problem },
        _ => TokenizerError::TemplateFailed { name, problem },
    }
}

/// Source: transformers, `utils/chat_template_utils.py`, `_compile_jinja_template`.
fn environment(now: SystemTime) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("only whitespace settings: this is a bug"));
    env.set_unknown_method_callback(python_method);
    env.add_filter("tojson", python::tojson);
    env.add_function("range", range);
    env.add_function("raise_exception", |message: String| -> std::result::Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: String| {
        let now = jiff::Timestamp::try_from(now).map(|now| Zoned::new(now, jiff::tz::TimeZone::system()));
        let text = now.and_then(|now| jiff::fmt::strtime::format(&format, &now));
        text.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    });
    env
}

/// minijinja's own `range` overflows on extreme bounds.
fn range(first: i64, stop: Option<i64>, step: Option<i64>) -> std::result::Result<Value, Error> {
    let invalid = |problem| Error::new(ErrorKind::InvalidOperation, problem);
    let (start, stop) = stop.map_or((0, first), |stop| (first, stop));
    let (start, stop, step) = (i128::from(start), i128::from(stop), i128::from(step.unwrap_or(1)));
    if step == 0 {
        return Err(invalid("range() with a step of 0"));
    }
    let len = ((stop - start + step - step.signum()) / step).max(0);
    if len > MAX_RANGE {
        return Err(invalid("range() of more than 100000 numbers"));
    }
    let numbers = (0..len).map(|i| i64::try_from(start + i * step).unwrap_or_default());
    Ok(numbers.map(Value::from).collect())
}

/// Python's methods, after the ones whose cost minijinja-contrib does not charge.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, Error> {
    match (value.kind(), method) {
        (ValueKind::String, "join") | (ValueKind::Seq | ValueKind::Iterable, "count") => {
            let (joined, counted);
            let items = if method == "join" {
                (joined,) = from_args::<(&Value,)>(args)?;
                joined
            } else {
                counted = value;
                counted
            };
            for item in items.try_iter()?.checked() {
                item?;
                state.consume_fuel(1)?;
            }
        }
        (ValueKind::String, "format") => {
            let template = value.as_str().unwrap_or_default();
            let longest = template.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
            if longest.unwrap_or(0) > 4 {
                return Err(Error::new(ErrorKind::InvalidOperation, "format() with a width above 9999"));
            }
        }
        _ => {}
    }
    pycompat::unknown_method_callback(state, value, method, args)
}
