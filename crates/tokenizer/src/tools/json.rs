//! JSON read a character at a time, as far as finding the ends of things needs it.

/// White space of JSON.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// Where in a JSON value one is: what follows strings and brackets, and checks nothing else.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    in_string: bool,
    escaped: bool,
    open: Vec<char>,
}

/// What a character does to the value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The value goes on.
    Inside,
    /// The outermost bracket closes: the value is whole.
    Closed,
    /// Brackets do not match, or there is a `<` that no JSON has.
    Broken,
}

impl Nesting {
    pub fn in_string(&self) -> bool {
        self.in_string
    }

    pub fn read(&mut self, c: char) -> Step {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return Step::Inside;
        }
        match c {
            '"' => self.in_string = true,
            '{' => self.open.push('}'),
            '[' => self.open.push(']'),
            '}' | ']' if self.open.pop() != Some(c) => return Step::Broken,
            '}' | ']' if self.open.is_empty() => return Step::Closed,
            '<' => return Step::Broken,
            _ => {}
        }
        Step::Inside
    }
}

/// Reads `{"name": NAME, "arguments": {…}}`, in any order; `parameters` is another name of `arguments`, and strings
/// under `type` and `id` are passed over. Everything else is no call, which is known at the first wrong character.
#[derive(Debug, Default)]
pub(super) struct CallObject {
    at: At,
    /// The string being read, with its quotes.
    token: String,
    key: Option<Key>,
    /// The function's name, once it has been read.
    pub name: Option<String>,
    has_arguments: bool,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Start,
    Key,
    String {
        escaped: bool,
    },
    Colon,
    Value,
    Arguments(Nesting),
    Comma,
}

#[derive(Debug, Clone, Copy)]
enum Key {
    Name,
    Arguments,
    Ignored,
}

/// What a character of a [`CallObject`] is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Neither of the others.
    Frame,
    /// Of the arguments.
    Argument,
    /// The last one.
    End,
    /// Not of a call.
    Wrong,
}

impl CallObject {
    pub fn read(&mut self, c: char) -> Part {
        let frame = |at| (at, Part::Frame);
        let (at, part) = match (std::mem::take(&mut self.at), c) {
            (At::Start, '{') => frame(At::Key),
            (At::String { escaped }, _) => {
                self.token.push(c);
                match c {
                    '"' if !escaped => self.end_string(),
                    _ => frame(At::String { escaped: c == '\\' && !escaped }),
                }
            }
            (At::Arguments(mut nesting), _) => match nesting.read(c) {
                Step::Inside => (At::Arguments(nesting), Part::Argument),
                Step::Closed => (At::Comma, Part::Argument),
                Step::Broken => (At::Comma, Part::Wrong),
            },
            (at, c) if is_space(c) => frame(at),
            (At::Key, '"') => self.begin_string(),
            (At::Colon, ':') => frame(At::Value),
            (At::Value, '"') if !matches!(self.key, Some(Key::Arguments)) => self.begin_string(),
            (At::Value, '{') if matches!(self.key, Some(Key::Arguments)) && !self.has_arguments => {
                (self.key, self.has_arguments) = (None, true);
                let mut nesting = Nesting::default();
                nesting.read(c);
                (At::Arguments(nesting), Part::Argument)
            }
            (At::Comma, ',') => frame(At::Key),
            (At::Comma, '}') if self.name.is_some() && self.has_arguments => (At::Comma, Part::End),
            (at, _) => (at, Part::Wrong),
        };
        self.at = at;
        part
    }

    fn begin_string(&mut self) -> (At, Part) {
        self.token = "\"".into();
        (At::String { escaped: false }, Part::Frame)
    }

    /// The string in `token` is a key if no key waits for its value.
    fn end_string(&mut self) -> (At, Part) {
        let Ok(text) = serde_json::from_str::<String>(&self.token) else {
            return (At::Comma, Part::Wrong);
        };
        match self.key.take() {
            None => {
                self.key = match text.as_str() {
                    "name" => Some(Key::Name),
                    "arguments" | "parameters" => Some(Key::Arguments),
                    "type" | "id" => Some(Key::Ignored),
                    _ => return (At::Comma, Part::Wrong),
                };
                (At::Colon, Part::Frame)
            }
            Some(Key::Name) if self.name.is_some() => (At::Comma, Part::Wrong),
            Some(Key::Name) => {
                self.name = Some(text);
                (At::Comma, Part::Frame)
            }
            Some(_) => (At::Comma, Part::Frame),
        }
    }
}
