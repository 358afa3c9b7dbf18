//! Where the user's messages come from: a line editor on a terminal, plain lines from a pipe.
//!
//! A message goes on when its line ends in a backslash, or until the closing `"""` of a block.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Context, Editor, Helper};

use super::slash;
use crate::hints::failure;
use crate::output::{self, Style};

const FENCE: &str = "\"\"\"";
const PROMPT: &str = "> ";

/// One thing the user did.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A message or a slash command, continuation marks removed; never blank.
    Message(String),
    /// Ctrl-C while nothing was being answered.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// A source of messages.
pub enum Input {
    Terminal(Box<Terminal>),
    Pipe(Pipe),
}

impl Input {
    /// The line editor when standard input is a terminal, otherwise standard input's lines.
    pub fn open() -> Result<Self> {
        if io::stdin().is_terminal() {
            Ok(Input::Terminal(Box::new(Terminal::open()?)))
        } else {
            Ok(Input::Pipe(Pipe::new(Box::new(io::stdin().lock()))))
        }
    }

    /// Whether somebody sits at the other end.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// Waits for the next event.
    pub fn next(&mut self) -> Result<Event> {
        match self {
            Input::Terminal(terminal) => terminal.next(),
            Input::Pipe(pipe) => pipe.next(),
        }
    }
}

/// A line editor with history.
pub struct Terminal {
    editor: Editor<Assistance, FileHistory>,
    history: Option<PathBuf>,
}

impl Terminal {
    fn open() -> Result<Self> {
        let config = Config::builder()
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .max_history_size(1000)?
            .auto_add_history(true)
            .behavior(Behavior::PreferTerm)
            .build();
        let mut editor = Editor::with_config(config).context("cannot open the terminal for line editing")?;
        editor.set_helper(Some(Assistance { style: Style::stderr() }));
        let history = history_path();
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            output::note(format_args!("history {} not read: {error}", path.display()));
        }
        Ok(Terminal { editor, history })
    }

    fn next(&mut self) -> Result<Event> {
        loop {
            match self.editor.readline(PROMPT) {
                Ok(text) => {
                    self.save_history();
                    let message = unfold(&text);
                    if !message.trim().is_empty() {
                        return Ok(Event::Message(message));
                    }
                }
                Err(ReadlineError::Interrupted) => return Ok(Event::Interrupted),
                Err(ReadlineError::Eof) => return Ok(Event::End),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            }
        }
    }

    /// Saved after every message, so that a crash loses nothing; tells once when it cannot.
    fn save_history(&mut self) {
        let Some(path) = self.history.clone() else { return };
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let saved = made.map_err(ReadlineError::from).and_then(|()| self.editor.append_history(&path));
        if let Err(error) = saved {
            output::note(format_args!("history {} not written: {error}", path.display()));
            self.history = None;
        }
    }
}

/// `$XDG_DATA_HOME/kanana/history`, by default under `~/.local/share`.
fn history_path() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")))?;
    Some(data.join("kanana").join("history"))
}

/// What the editor knows about the input: when it is complete, and the names of the commands.
struct Assistance {
    style: Style,
}

impl Helper for Assistance {}

impl Hinter for Assistance {
    type Hint = String;
}

impl Validator for Assistance {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(match goes_on(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Assistance {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        let fitting = slash::COMMANDS.iter().filter(|help| !typed.is_empty() && help.name.starts_with(typed));
        let space = |help: &slash::Help| if help.argument.is_empty() { "" } else { " " };
        Ok((0, fitting.map(|help| format!("{}{}", help.name, space(help))).collect()))
    }
}

impl Highlighter for Assistance {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        Cow::Owned(format!("{}{prompt}{}", self.style.cyan(), self.style.reset()))
    }
}

/// Lines from a pipe or a file.
pub struct Pipe {
    lines: Box<dyn BufRead>,
    line: usize,
}

impl Pipe {
    fn new(lines: Box<dyn BufRead>) -> Self {
        Pipe { lines, line: 0 }
    }

    fn next(&mut self) -> Result<Event> {
        loop {
            let mut text = String::new();
            while let Some(line) = self.read_line()? {
                text += &line;
                if !goes_on(&text) {
                    break;
                }
                text.push('\n');
            }
            if text.is_empty() && self.at_end()? {
                return Ok(Event::End);
            }
            let message = unfold(&text);
            if !message.trim().is_empty() {
                return Ok(Event::Message(message));
            }
        }
    }

    fn at_end(&mut self) -> Result<bool> {
        Ok(self.lines.fill_buf().context("cannot read standard input")?.is_empty())
    }

    fn read_line(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        self.lines.by_ref().read_until(b'\n', &mut bytes).context("cannot read standard input")?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        let text = String::from_utf8(bytes).map_err(|error| {
            failure(
                format_args!("standard input, line {}: not UTF-8: {}", self.line, error.utf8_error()),
                "convert it first, for example with `iconv -f CP949 -t UTF-8`",
            )
        })?;
        Ok(Some(text.trim_end_matches(['\n', '\r']).to_string()))
    }
}

/// Whether the message is not finished by the line that ends here.
fn goes_on(text: &str) -> bool {
    match text.trim_start().strip_prefix(FENCE) {
        Some(block) => !block.trim_end().ends_with(FENCE),
        None => text.ends_with('\\'),
    }
}

/// The message without its continuation marks.
fn unfold(text: &str) -> String {
    match text.trim().strip_prefix(FENCE) {
        Some(block) => block.strip_suffix(FENCE).unwrap_or(block).trim_matches('\n').to_string(),
        None => text.replace("\\\n", "\n").trim_end_matches('\\').trim_end_matches('\n').to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &'static [u8], expected: &[&str]) {
        let mut pipe = Pipe::new(Box::new(input));
        for message in expected {
            assert_eq!(pipe.next().unwrap(), Event::Message(message.to_string()));
        }
        assert_eq!(pipe.next().unwrap(), Event::End);
    }

    #[test]
    fn every_line_is_a_message_and_marks_join_lines() {
        check(b"", &[]);
        check("안녕\n\n  \r\n뭐해?".as_bytes(), &["안녕", "뭐해?"]);
        check(b"one \\\ntwo\nthree\n", &["one \ntwo", "three"]);
        check(b"\"\"\"\na\n\nb\n\"\"\"\nc\n", &["a\n\nb", "c"]);
        check(b"\"\"\"one line\"\"\"\n", &["one line"]);
        check(b"never closed \\\n", &["never closed "]);
        check(b"\"\"\"open\nend", &["open\nend"]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused_with_their_line() {
        let mut pipe = Pipe::new(Box::new(&b"ok\n\xb0\xa1\n"[..]));
        pipe.next().unwrap();
        assert!(pipe.next().unwrap_err().to_string().contains("line 2"));
    }
}
