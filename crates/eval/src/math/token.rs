//! Tokens of an answer, in LaTeX or plain text. What only sets type (`\left`, `\,`, `\displaystyle`) is left out.

use std::sync::LazyLock;

use fancy_regex::Regex;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Digits, with a point or without.
    Number(String),
    /// A letter of the alphabet, Latin or Greek (by its name: `alpha`).
    Name(String),
    /// A command, or a plain word that is one: `frac`, `sin`, `cup`.
    Command(String),
    /// Words.
    Text(String),
    /// An operator or a bracket; `≤`, `≥`, `≠`, `≈`, `∈`, `±`, `∓`, `∪` and `∞` stand for all their spellings, `,` also for `;`,
    /// "and" and "or", `*` for `\cdot` and `\times`.
    Sign(char),
    /// `\{`.
    SetOpen,
    /// `\}`.
    SetClose,
    /// `\\`.
    Row,
    /// `\begin{…}`.
    Begin(String),
    /// `\end{…}`.
    End,
}

/// Functions of one argument, by the name of LaTeX and of plain text.
pub(super) const FUNCTIONS: [&str; 24] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "ln", "log", "lg", "exp", "sqrt", "abs", "floor", "ceil", "deg",
];

const GREEK: [&str; 26] = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Omega",
    "Delta",
];

/// Short words behind a number that are no product of letters.
const UNITS: [&str; 26] = [
    "cm", "mm", "km", "kg", "mg", "ml", "mL", "ft", "in", "yd", "mi", "lb", "lbs", "oz", "hr", "hrs", "min",
    "sec", "mph", "kmh", "pts", "cc", "am", "pm", "th", "USD",
];

const NOISE: [&str; 27] = [
    "left",
    "right",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "displaystyle",
    "textstyle",
    "limits",
    "quad",
    "qquad",
    "thinspace",
    "space",
    "hline",
    "rm",
    "bf",
    "it",
    "middle",
    "hspace",
    "ldotp",
    "nolimits",
    "boldsymbol",
    "phantom",
];

/// Commands whose argument is words or upright letters.
const TEXT: [&str; 15] = [
    "text",
    "textbf",
    "textit",
    "textrm",
    "textnormal",
    "textsf",
    "texttt",
    "mbox",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "operatorname",
    "mathbb",
    "mathcal",
];

/// An explicit separator of thousands: `1{,}000`, `1,\!000`, `1\,000`.
static SEPARATOR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?<=\d)\s*(?:\{\s*,\s*\}|,\s*\\!|\\,|\\!,?)\s*(?=\d{3}(?!\d))")
        .expect("a pattern of the program compiles: this is a bug")
});

/// `\text{…}` and the like, without braces inside.
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(r"\\(?:{})\s*\{{([^{{}}]*)\}}", TEXT.join("|")))
        .expect("a pattern of the program compiles: this is a bug")
});

/// The text without what never matters: spaces, dollar signs, sizes of brackets, markup of words, a full stop at the end.
pub(super) fn compact(text: &str) -> String {
    let words = WORDS.replace_all(text, "$1");
    let mut out = String::with_capacity(words.len());
    let mut rest: &str = &words;
    const LEFT_OUT: [&str; 12] =
        ["\\left", "\\right", "\\!", "\\,", "\\;", "\\:", "\\ ", "\\$", "$", "\\(", "\\)", "**"];
    while let Some(character) = rest.chars().next() {
        // `\leftarrow` is another command.
        let word_goes_on = |part: &str| {
            part.ends_with(|c: char| c.is_ascii_alphabetic())
                && rest[part.len()..].starts_with(|c: char| c.is_ascii_alphabetic())
        };
        match LEFT_OUT.iter().find(|part| rest.starts_with(**part) && !word_goes_on(part)) {
            Some(part) => rest = &rest[part.len()..],
            None => {
                if !character.is_whitespace() {
                    out.push(character);
                }
                rest = &rest[character.len_utf8()..];
            }
        }
    }
    let out = out.replace("dfrac", "frac").replace("tfrac", "frac");
    let out = out.trim_end_matches(['.', ',']);
    let letter = out.strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
    let out =
        letter.filter(|inner| inner.len() == 1 && inner.as_bytes()[0].is_ascii_uppercase()).unwrap_or(out);
    let is_word = out.chars().count() > 1 && out.chars().all(char::is_alphabetic);
    if is_word { out.to_lowercase() } else { out.to_owned() }
}

/// The tokens; None where something is not closed, or is no part of an answer.
pub(super) fn tokens(text: &str) -> Option<Vec<Token>> {
    // Escaped twice, as in a JSON string that was never read.
    let text = if text.contains("\\\\") && !text.contains("\\begin") {
        text.replace("\\\\", "\\")
    } else {
        text.to_owned()
    };
    let text = SEPARATOR.replace_all(&text, "");
    let mut lexer =
        Lexer { rest: text.trim().trim_end_matches(['.', ',']), out: Vec::new(), single_digits: 0 };
    lexer.run(0)?;
    Some(lexer.out)
}

struct Lexer<'a> {
    rest: &'a str,
    out: Vec<Token>,
    /// So many numbers that come at once have one digit: `\frac12`.
    single_digits: usize,
}

impl<'a> Lexer<'a> {
    fn run(&mut self, nesting: usize) -> Option<()> {
        if nesting > 8 {
            return None;
        }
        while let Some(first) = self.rest.chars().next() {
            match first {
                '\\' => self.command(nesting)?,
                _ if first.is_ascii_digit() && self.single_digits > 0 => {
                    self.single_digits -= 1;
                    self.rest = &self.rest[1..];
                    self.out.push(Token::Number(first.to_string()));
                }
                _ if first.is_ascii_digit() || self.is_decimal() => {
                    let number = self.take(|c| c.is_ascii_digit() || c == '.');
                    // Two points, or one at the end of a sentence.
                    let is_repeating = self.rest.starts_with("\\overline");
                    let number = number.strip_suffix('.').filter(|_| !is_repeating).unwrap_or(number);
                    if number.matches('.').count() > 1 {
                        return None;
                    }
                    self.out.push(Token::Number(number.to_owned()));
                }
                _ if first.is_ascii_alphabetic() => {
                    self.single_digits = 0;
                    let word = self.take(|c| c.is_ascii_alphabetic());
                    self.word(word);
                }
                _ => {
                    self.rest = &self.rest[first.len_utf8()..];
                    self.sign(first)?;
                }
            }
        }
        Some(())
    }

    fn is_decimal(&self) -> bool {
        let mut characters = self.rest.chars();
        characters.next() == Some('.') && characters.next().is_some_and(|c| c.is_ascii_digit())
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// What is between the braces that come next.
    fn braced(&mut self) -> Option<&'a str> {
        let inner = self.rest.trim_start().strip_prefix('{')?;
        let mut open = 1_usize;
        for (at, character) in inner.char_indices() {
            match character {
                '{' => open += 1,
                '}' => open -= 1,
                _ => {}
            }
            if open == 0 {
                self.rest = &inner[at + 1..];
                return Some(&inner[..at]);
            }
        }
        None
    }

    fn word(&mut self, word: &str) {
        let token = match word {
            "and" | "or" => Token::Sign(','),
            "inf" | "infinity" | "infty" | "oo" => Token::Sign('∞'),
            "pi" => Token::Name("pi".into()),
            "percent" | "percentage" | "pct" => Token::Sign('%'),
            "degrees" | "degree" => Token::Sign('°'),
            _ if FUNCTIONS.contains(&word) => Token::Command(word.into()),
            _ if word.len() == 1 => Token::Name(word.into()),
            _ if word.len() > 3 => Token::Text(word.into()),
            _ if UNITS.contains(&word) && matches!(self.out.last(), Some(Token::Number(_))) => {
                Token::Text(word.into())
            }
            _ => {
                self.out.extend(word.chars().map(|letter| Token::Name(letter.to_string())));
                return;
            }
        };
        self.out.push(token);
    }

    fn sign(&mut self, first: char) -> Option<()> {
        let equals = |lexer: &mut Self, with: char, without: char| {
            let found = lexer.rest.strip_prefix('=');
            lexer.rest = found.unwrap_or(lexer.rest);
            if found.is_some() { with } else { without }
        };
        if first.is_whitespace() {
            return Some(());
        }
        self.single_digits = 0;
        let sign = match first {
            '$' | '~' | '₩' | '€' | '£' | '\u{200b}' => return Some(()),
            '−' | '–' | '—' | '-' => '-',
            '×' | '·' | '∙' | '⋅' => '*',
            '*' => {
                // Python's power.
                let power = self.rest.strip_prefix('*');
                self.rest = power.unwrap_or(self.rest);
                if power.is_some() { '^' } else { '*' }
            }
            '÷' => '/',
            ',' | ';' | '，' | '、' => ',',
            '：' => ':',
            '（' => '(',
            '）' => ')',
            '<' => equals(self, '≤', '<'),
            '>' => equals(self, '≥', '>'),
            '!' => equals(self, '≠', '!'),
            '=' => equals(self, '=', '='),
            '≡' => '=',
            '⩽' | '≦' => '≤',
            '⩾' | '≧' => '≥',
            '√' => {
                self.out.push(Token::Command("sqrt".into()));
                return Some(());
            }
            'π' => {
                self.out.push(Token::Name("pi".into()));
                return Some(());
            }
            '½' => {
                let half = [Token::Number("1".into()), Token::Sign('/'), Token::Number("2".into())];
                self.out.extend(half);
                return Some(());
            }
            '²' | '³' => {
                let exponent = if first == '²' { "2" } else { "3" };
                self.out.extend([Token::Sign('^'), Token::Number(exponent.into())]);
                return Some(());
            }
            '+' | '/' | '^' | '_' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '%' | '°' | ':' | '&' | '±'
            | '∓' | '≤' | '≥' | '≠' | '∈' | '∪' | '∞' => first,
            _ if first.is_alphabetic() => {
                let others = self.take(|c| c.is_alphabetic() && !c.is_ascii());
                let word = format!("{first}{others}");
                let is_or = ["또는", "그리고", "와", "과"].contains(&word.as_str());
                self.out.push(if is_or { Token::Sign(',') } else { Token::Text(word) });
                return Some(());
            }
            _ => return None,
        };
        self.out.push(Token::Sign(sign));
        Some(())
    }

    fn command(&mut self, nesting: usize) -> Option<()> {
        self.rest = &self.rest[1..];
        let name = self.take(|c| c.is_ascii_alphabetic());
        self.single_digits = match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" | "binom" | "dbinom" | "tbinom" => 2,
            "sqrt" => 1,
            _ => 0,
        };
        if name.is_empty() {
            let first = self.rest.chars().next()?;
            self.rest = &self.rest[first.len_utf8()..];
            match first {
                '{' => self.out.push(Token::SetOpen),
                '}' => self.out.push(Token::SetClose),
                '\\' => self.out.push(Token::Row),
                '%' => self.out.push(Token::Sign('%')),
                '|' => self.out.push(Token::Sign('|')),
                ',' | ';' | ':' | '!' | ' ' | '$' | '(' | ')' | '[' | ']' | '\n' => {}
                _ => return None,
            }
            return Some(());
        }
        if TEXT.contains(&name) {
            let inner = self.braced()?;
            return self.text(inner, nesting);
        }
        let sign = match name {
            _ if NOISE.contains(&name) => {
                // `\left.` and `\right.` are brackets that are not there.
                if let Some(rest) = self.rest.strip_prefix('.') {
                    self.rest = rest;
                }
                return Some(());
            }
            "begin" => {
                let environment = self.braced()?;
                if environment == "array" {
                    self.braced()?;
                }
                self.out.push(Token::Begin(environment.into()));
                return Some(());
            }
            "end" => {
                self.braced()?;
                self.out.push(Token::End);
                return Some(());
            }
            "cdot" | "times" | "ast" | "cdotp" => '*',
            "div" => '/',
            "le" | "leq" | "leqslant" | "leqq" => '≤',
            "lt" => '<',
            "ge" | "geq" | "geqslant" | "geqq" => '≥',
            "gt" => '>',
            "ne" | "neq" => '≠',
            "approx" => '≈',
            "equiv" => '=',
            "in" => '∈',
            "pm" => '±',
            "mp" => '∓',
            "cup" | "bigcup" | "lor" | "vee" => '∪',
            "infty" => '∞',
            "colon" => ':',
            "circ" | "degree" => '°',
            "lbrack" => '[',
            "rbrack" => ']',
            "vert" | "lvert" | "rvert" | "mid" | "Vert" | "lVert" | "rVert" => '|',
            "lbrace" => {
                self.out.push(Token::SetOpen);
                return Some(());
            }
            "rbrace" => {
                self.out.push(Token::SetClose);
                return Some(());
            }
            "dfrac" | "tfrac" | "cfrac" => {
                self.out.push(Token::Command("frac".into()));
                return Some(());
            }
            "dbinom" | "tbinom" => {
                self.out.push(Token::Command("binom".into()));
                return Some(());
            }
            "pi" | "imath" => {
                self.out.push(Token::Name(if name == "pi" { "pi" } else { "i" }.into()));
                return Some(());
            }
            _ if GREEK.contains(&name) => {
                self.out.push(Token::Name(name.into()));
                return Some(());
            }
            _ => {
                self.out.push(Token::Command(name.into()));
                return Some(());
            }
        };
        self.out.push(Token::Sign(sign));
        Some(())
    }

    /// Words stay words; what has digits, commands or brackets in it is an answer that was only set upright.
    fn text(&mut self, inner: &str, nesting: usize) -> Option<()> {
        let words = inner.trim();
        let is_math = words.contains(|c: char| c.is_ascii_digit() || "\\=^(){}[]".contains(c));
        if is_math || words.chars().count() == 1 || FUNCTIONS.contains(&words) {
            let mut inner = Lexer { rest: words, out: Vec::new(), single_digits: 0 };
            inner.run(nesting + 1)?;
            self.out.append(&mut inner.out);
        } else if ["and", "or", "또는", "그리고", "와", "과"].contains(&words.trim_matches([',', ' ']))
        {
            self.out.push(Token::Sign(','));
        } else if !words.is_empty() {
            self.out.push(Token::Text(words.into()));
        }
        Some(())
    }
}
