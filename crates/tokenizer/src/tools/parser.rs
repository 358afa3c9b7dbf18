//! Streaming text in, text and calls out.

use std::collections::VecDeque;
use std::mem::take;

use super::ToolFormat;
use super::json::{CallObject, Nesting, Part, is_space};

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PYTHON: &str = ToolFormat::PYTHON_TAG;
const TOOL_CALL: &str = "<tool_call>";
const TOOL_CALL_END: &str = "</tool_call>";
/// Longest text that is held for the sake of a call that may begin in it, in bytes: more is text.
const MAX_HELD: usize = 16 << 10;
/// Longest name of a function where any name will do, in bytes.
const MAX_NAME: usize = 64;

/// Longest run of tokens that end a turn, in bytes: what stands before is text.
const MAX_ENDING: usize = 64;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text that is not part of a call.
    Text(String),
    /// A call begins.
    Call {
        /// Number of the call in this answer, from 0.
        index: usize,
        /// Name of the function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Number of the call.
        index: usize,
        /// The next part of the JSON text.
        delta: String,
    },
}

/// Finds the function calls in an answer that comes in pieces. What comes out, put together, does not depend on how
/// the text was cut into pieces.
///
/// A call is **announced** as soon as it is certain that one is meant: its frame is right, its function is known (any
/// name will do where no functions are given), and the `{` of its arguments has been read. From then on nothing is
/// retracted: the arguments are passed on as the model writes them, without a check. White space around the arguments,
/// and white space and separators between calls and after the last, belong to no text.
///
/// What is never announced is text, to the last character: `<func`, an unknown function, a frame that is not JSON, a
/// call without arguments, or with arguments that are no object.
///
/// - Kanana: `</function>` ends a call, but not within a JSON string. Behind `<|python_tag|>`, a call of `python` is
///   announced at once, if that function is known; its arguments are the rest as it stands, as functionary has it, be
///   that JSON or code.
/// - The JSON formats: the object of the arguments ends where its brackets do. Arguments whose brackets do not match
///   end at the mistake, and the rest of them is text. Keys of the frame are `name`, `arguments` or `parameters`, `type`
///   and `id`; with any other key the object is text. Arguments may stand before the name, and are then held for it.
///   A missing `</tool_call>` is forgiven.
///
/// Tokens that end a turn, such as `<|eom_id|>`, are dropped from the end of the answer. `<|python_tag|>` is a control
/// token: to see it, stream with [`Specials::Keep`](crate::Specials::Keep).
#[derive(Debug)]
pub struct ToolParser {
    format: ToolFormat,
    tools: Vec<String>,
    ending: Ending,
    state: State,
    list: List,
    /// Characters still to be read.
    input: VecDeque<char>,
    /// What has been read and is not yet known to be text or call.
    held: String,
    /// Bytes at the beginning of `held` that belong to no text if what follows is a call, or the end of one.
    glue: usize,
    calls: usize,
    events: Vec<ToolEvent>,
}

#[derive(Debug)]
enum State {
    /// At the beginning, or after a call.
    Between,
    Text,
    /// In a tag that may open a call.
    Tag,
    /// Behind `<function=`.
    Name,
    /// Before the `{`. Kanana knows the function's name by now.
    Open(Option<String>),
    /// In the arguments of a Kanana call.
    Arguments(Nesting),
    /// Behind Kanana's `<|python_tag|>`.
    Code,
    /// In the object of a call that is not announced; where its arguments lie in `held`.
    Object(CallObject, Option<(usize, usize)>),
    /// In the object of a call that is announced.
    Announced(CallObject),
    /// Before `</tool_call>`.
    Close,
}

/// The JSON array around Llama 3's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    None,
    Open,
    Closed,
}

impl ToolParser {
    /// A parser for one answer; `tools` are the functions there are (none: any name will do).
    pub fn new<S: Into<String>>(format: ToolFormat, tools: impl IntoIterator<Item = S>) -> Self {
        Self {
            format,
            tools: tools.into_iter().map(Into::into).collect(),
            ending: Ending::default(),
            state: State::Between,
            list: List::None,
            input: VecDeque::new(),
            held: String::new(),
            glue: 0,
            calls: 0,
            events: Vec::new(),
        }
    }

    /// Takes more of the answer and gives back what is certain.
    ///
    /// Cost: O(bytes), for any answer a model writes in earnest.
    pub fn push(&mut self, text: &str) -> Vec<ToolEvent> {
        let text = self.ending.push(text);
        self.read(&text)
    }

    /// The answer is over: gives back what was held. A call that is not closed keeps the arguments it has; see
    /// [`unclosed`](Self::unclosed).
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        let text = self.ending.finish();
        let mut events = self.read(&text);
        while let State::Tag | State::Name | State::Open(_) | State::Object(..) = self.state {
            self.state = self.not_a_call();
            events.append(&mut self.read(""));
        }
        if matches!(self.state, State::Between) && self.calls == 0 {
            self.release();
        }
        self.held.clear();
        events.append(&mut self.events);
        events
    }

    /// Whether a call has begun that has not ended: after [`finish`](Self::finish), that its arguments may be cut, and
    /// `finish_reason` is `length`. Code behind `<|python_tag|>` has no end of its own and is never unclosed.
    pub fn unclosed(&self) -> bool {
        matches!(self.state, State::Arguments(_) | State::Announced(_))
    }

    fn read(&mut self, text: &str) -> Vec<ToolEvent> {
        self.input.extend(text.chars());
        while let Some(c) = self.input.pop_front() {
            self.held.push(c);
            let state = std::mem::replace(&mut self.state, State::Text);
            self.state = self.next(state, c);
        }
        take(&mut self.events)
    }

    /// The state after `c`, which is the last character held.
    fn next(&mut self, state: State, c: char) -> State {
        match state {
            State::Between => self.between(c),
            State::Text if c == '<' && self.format != ToolFormat::Llama3Json => State::Tag,
            State::Text => self.release(),
            State::Tag => self.tag(),
            State::Name => self.name(c),
            State::Open(name) => self.open(name, c),
            State::Arguments(nesting) => self.arguments(nesting, c),
            State::Code => {
                self.argument();
                State::Code
            }
            State::Object(call, range) => self.object(call, range, c),
            State::Announced(call) => self.announced(call, c),
            State::Close => self.close(c),
        }
    }

    fn between(&mut self, c: char) -> State {
        let (llama, first) = (self.format == ToolFormat::Llama3Json, self.calls == 0);
        match (c, self.list) {
            _ if is_space(c) => {}
            ('<', List::None | List::Open) => return State::Tag,
            _ if !llama => return self.release(),
            ('{', List::None | List::Open) => return self.object(CallObject::default(), None, c),
            ('[', List::None) if first => self.list = List::Open,
            (';', List::None) | (',', List::Open) if !first => {}
            (']', List::Open) if !first => {
                self.list = List::Closed;
                self.held.clear();
            }
            _ => return self.release(),
        }
        self.glue = self.held.len();
        State::Between
    }

    fn tag(&mut self) -> State {
        let candidate = &self.held[self.glue..];
        let tags: &[&str] = match self.format {
            ToolFormat::Kanana => &[FUNCTION, PYTHON],
            ToolFormat::Llama3Json => &[PYTHON],
            ToolFormat::Hermes => &[TOOL_CALL],
        };
        match (tags.iter().find(|tag| tag.starts_with(candidate)), self.format) {
            (Some(tag), _) if tag.len() > candidate.len() => State::Tag,
            (Some(&FUNCTION), _) => State::Name,
            (Some(&TOOL_CALL), _) => State::Open(None),
            (Some(_), ToolFormat::Llama3Json) => {
                self.glue = self.held.len();
                State::Between
            }
            (Some(_), _) if self.knows("python") => {
                self.announce("python".into());
                self.held.clear();
                State::Code
            }
            _ => self.not_a_call(),
        }
    }

    fn name(&mut self, c: char) -> State {
        let name = &self.held[self.glue + FUNCTION.len()..];
        match name.strip_suffix('>') {
            Some(name) if self.knows(name) => State::Open(Some(name.into())),
            None if self.may_become_known(name) && c != '<' => State::Name,
            _ => self.not_a_call(),
        }
    }

    fn open(&mut self, name: Option<String>, c: char) -> State {
        match (c, name) {
            (_, name) if is_space(c) => State::Open(name),
            ('{', Some(name)) => {
                self.announce(name);
                self.held = c.into();
                self.arguments(Nesting::default(), c)
            }
            ('{', None) => self.object(CallObject::default(), None, c),
            _ => self.not_a_call(),
        }
    }

    /// `held` is what may stand between the arguments and the next call.
    fn arguments(&mut self, mut nesting: Nesting, c: char) -> State {
        if !nesting.in_string() {
            let end = self.behind_space(c);
            if end == FUNCTION_END {
                return self.ended();
            }
            if FUNCTION_END.starts_with(end) {
                return State::Arguments(nesting);
            }
            if self.held.len() > c.len_utf8() {
                self.held.truncate(self.held.len() - c.len_utf8());
                self.input.push_front(c);
                self.argument();
                return State::Arguments(nesting);
            }
        }
        nesting.read(c);
        self.argument();
        State::Arguments(nesting)
    }

    fn object(&mut self, mut call: CallObject, range: Option<(usize, usize)>, c: char) -> State {
        let (known, end) = (call.name.is_some(), self.held.len());
        let range = match call.read(c) {
            Part::Wrong | Part::End => return self.not_a_call(),
            _ if end - self.glue > MAX_HELD => return self.not_a_call(),
            Part::Argument => Some((range.map_or(end - c.len_utf8(), |(start, _)| start), end)),
            Part::Frame => range,
        };
        match (&call.name, range) {
            (Some(name), _) if !known && !self.knows(name) => self.not_a_call(),
            (Some(name), Some((start, end))) => {
                self.announce(name.clone());
                self.held.truncate(end);
                self.held.drain(..start);
                self.argument();
                State::Announced(call)
            }
            _ => State::Object(call, range),
        }
    }

    fn announced(&mut self, mut call: CallObject, c: char) -> State {
        let hermes = self.format == ToolFormat::Hermes;
        match call.read(c) {
            Part::Argument => {
                self.argument();
                State::Announced(call)
            }
            Part::Frame => {
                self.held.clear();
                State::Announced(call)
            }
            Part::Wrong => {
                self.read_again(0);
                if hermes { State::Close } else { State::Text }
            }
            Part::End if hermes => {
                self.held.clear();
                State::Close
            }
            Part::End => self.ended(),
        }
    }

    fn close(&mut self, c: char) -> State {
        let end = self.behind_space(c);
        if end == TOOL_CALL_END {
            return self.ended();
        }
        if TOOL_CALL_END.starts_with(end) {
            return State::Close;
        }
        self.read_again(0);
        self.ended()
    }

    /// What is held without the white space it begins with, of which `c` may be more.
    fn behind_space(&mut self, c: char) -> &str {
        if is_space(c) && self.glue + 1 == self.held.len() {
            self.glue += 1;
        }
        &self.held[self.glue..]
    }

    fn ended(&mut self) -> State {
        self.held.clear();
        self.glue = 0;
        State::Between
    }

    /// What is held begins with text after all; what follows its first character is read again.
    fn not_a_call(&mut self) -> State {
        let first = self.held[self.glue..].chars().next().map_or(0, char::len_utf8);
        self.read_again(self.glue + first);
        self.release()
    }

    /// Puts what is held from byte `start` on back into the input.
    fn read_again(&mut self, start: usize) {
        let rest = self.held.split_off(start);
        rest.chars().rev().for_each(|c| self.input.push_front(c));
    }

    /// What is held is text.
    fn release(&mut self) -> State {
        self.glue = 0;
        let held = take(&mut self.held);
        match self.events.last_mut() {
            _ if held.is_empty() => {}
            Some(ToolEvent::Text(text)) => *text += &held,
            _ => self.events.push(ToolEvent::Text(held)),
        }
        State::Text
    }

    /// What is held is part of the arguments.
    fn argument(&mut self) {
        self.glue = 0;
        let held = take(&mut self.held);
        match self.events.last_mut() {
            Some(ToolEvent::Arguments { delta, .. }) => *delta += &held,
            _ => self.events.push(ToolEvent::Arguments { index: self.calls - 1, delta: held }),
        }
    }

    fn announce(&mut self, name: String) {
        self.events.push(ToolEvent::Call { index: self.calls, name });
        self.calls += 1;
        self.glue = 0;
    }

    fn knows(&self, name: &str) -> bool {
        match self.tools.is_empty() {
            true => !name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_whitespace),
            false => self.tools.iter().any(|tool| tool == name),
        }
    }

    fn may_become_known(&self, beginning: &str) -> bool {
        match self.tools.is_empty() {
            true => beginning.is_empty() || self.knows(beginning),
            false => self.tools.iter().any(|tool| tool.starts_with(beginning)),
        }
    }
}

/// Keeps from an answer the tokens that end a turn, if they are its last [`MAX_ENDING`] bytes.
#[derive(Debug, Default)]
struct Ending {
    held: String,
}

impl Ending {
    const MARKS: [&str; 5] = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"];

    fn push(&mut self, text: &str) -> String {
        self.held += text;
        let mut starts = self.held.match_indices('<').map(|(start, _)| start);
        let end = starts.find(|&start| {
            let ending = &self.held[start..];
            let rest = || Self::without_marks(ending);
            ending.len() <= MAX_ENDING && Self::MARKS.iter().any(|mark| mark.starts_with(rest()))
        });
        let held = self.held.split_off(end.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, held)
    }

    fn finish(&mut self) -> String {
        let mut held = take(&mut self.held);
        while let Some(rest) = Self::MARKS.iter().find_map(|mark| held.strip_suffix(mark)) {
            held.truncate(rest.len());
        }
        held
    }

    fn without_marks(mut text: &str) -> &str {
        while let Some(rest) = Self::MARKS.iter().find_map(|mark| text.strip_prefix(mark)) {
            text = rest;
        }
        text
    }
}
