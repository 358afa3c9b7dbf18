//! The 25 kinds of verifiable instructions: what a row demands, and whether an answer does it.

use std::sync::LazyLock;

use kanana_data::read::Row;
use serde_json::Value;

use super::json::is_json;
use super::language;
use super::punkt::Punkt;
use super::text::{count_words, is_lower, is_space, is_upper};
use super::words::treebank_words;
use crate::extract::{PythonRegex, strip};

/// An instruction with the values that a row gives for it.
#[derive(Debug)]
pub struct Instruction {
    /// `keywords:existence`, without the `en:` of M-IFEval.
    pub id: String,
    rule: Rule,
}

/// "less than" or "at least" so many.
#[derive(Clone, Copy, Debug)]
enum Bound {
    LessThan(usize),
    AtLeast(usize),
}

impl Bound {
    fn holds(self, count: usize) -> bool {
        match self {
            Bound::LessThan(limit) => count < limit,
            Bound::AtLeast(limit) => count >= limit,
        }
    }
}

#[derive(Debug)]
enum Rule {
    AllFound(Vec<PythonRegex>),
    NoneFound(Vec<PythonRegex>),
    Found(PythonRegex, Bound),
    FoundInLowerCase(PythonRegex),
    Letter(char, Bound),
    Language(String),
    Sentences(Bound),
    Words(Bound),
    CapitalWords(Bound),
    Paragraphs(usize),
    FirstWord { paragraphs: usize, nth: usize, word: String },
    Bullets(usize),
    ConstrainedResponse,
    Highlights(usize),
    Json,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    Ends(String),
    UpperEnglish,
    LowerEnglish,
    NoComma,
    Quotation,
}

struct Patterns {
    star: PythonRegex,
    dash: PythonRegex,
    single: PythonRegex,
    double: PythonRegex,
    title: PythonRegex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    star: PythonRegex::fixed(r"(?m)^\s*\*[^\*].*$"),
    dash: PythonRegex::fixed(r"(?m)^\s*-.*$"),
    single: PythonRegex::fixed(r"\*[^\n\*]*\*"),
    double: PythonRegex::fixed(r"\*\*[^\n\*]*\*\*"),
    title: PythonRegex::fixed(r"<<[^\n]+>>"),
});

impl Instruction {
    /// Reads one. `values` are its `kwargs`; those that Python takes as false (0, "", null) count as absent.
    ///
    /// Errors, in words: no such instruction, a value is missing or not what it should be, a keyword is no regular expression.
    pub(super) fn read(id: &str, values: &Row) -> Result<Self, String> {
        let id = id.strip_prefix("en:").unwrap_or(id);
        let rule = Values { id, values }.rule()?;
        Ok(Instruction { id: id.to_owned(), rule })
    }

    /// The character that the reference would replace by a letter drawn at random.
    pub(super) fn random_in_reference(&self) -> bool {
        matches!(self.rule, Rule::Letter(letter, _) if !letter.is_ascii_lowercase())
    }

    /// The answer, as it is, does what is demanded.
    pub(super) fn is_followed(&self, punkt: &Punkt, text: &str) -> bool {
        match &self.rule {
            Rule::AllFound(patterns) => patterns.iter().all(|pattern| pattern.is_match(text)),
            Rule::NoneFound(patterns) => !patterns.iter().any(|pattern| pattern.is_match(text)),
            Rule::Found(pattern, bound) => bound.holds(found(pattern, text).len()),
            Rule::FoundInLowerCase(pattern) => pattern.is_match(&text.to_lowercase()),
            Rule::Letter(letter, bound) => {
                bound.holds(text.to_lowercase().chars().filter(|c| c == letter).count())
            }
            Rule::Language(wanted) => language::detect(text).is_none_or(|code| code == wanted),
            Rule::Sentences(bound) => bound.holds(punkt.sentences(text).len()),
            Rule::Words(bound) => bound.holds(count_words(text)),
            Rule::CapitalWords(bound) => {
                bound.holds(treebank_words(punkt, text).iter().filter(|word| is_upper(word)).count())
            }
            Rule::Paragraphs(wanted) => paragraphs(text) == Some(*wanted),
            Rule::FirstWord { paragraphs, nth, word } => first_word(text, *paragraphs, *nth, word),
            Rule::Bullets(wanted) => {
                found(&PATTERNS.star, text).len() + found(&PATTERNS.dash, text).len() == *wanted
            }
            Rule::ConstrainedResponse => ["My answer is yes.", "My answer is no.", "My answer is maybe."]
                .iter()
                .any(|&one| text.contains(one)),
            Rule::Highlights(wanted) => {
                // What stands in double asterisks counts twice, in the reference too.
                let (single, double) = (found(&PATTERNS.single, text), found(&PATTERNS.double, text));
                let written = |part: &&String| !strip(part.trim_matches('*')).is_empty();
                single.iter().chain(&double).filter(|part| written(part)).count() >= *wanted
            }
            Rule::Json => is_json(unfenced(text)),
            Rule::Title => found(&PATTERNS.title, text)
                .iter()
                .any(|title| !strip(title.trim_start_matches('<').trim_end_matches('>')).is_empty()),
            Rule::TwoResponses => two_responses(text),
            Rule::RepeatPrompt(prompt) => strip(text).to_lowercase().starts_with(prompt),
            Rule::Ends(phrase) => strip(text).trim_matches('"').to_lowercase().ends_with(phrase),
            Rule::UpperEnglish => is_upper(text) && language::detect(text).is_none_or(|code| code == "en"),
            Rule::LowerEnglish => is_lower(text) && language::detect(text).is_none_or(|code| code == "en"),
            Rule::NoComma => !text.contains(','),
            Rule::Quotation => {
                let text = strip(text);
                text.len() > 1 && text.starts_with('"') && text.ends_with('"')
            }
        }
    }
}

fn found(pattern: &PythonRegex, text: &str) -> Vec<String> {
    pattern.find_all(text).into_iter().map(|groups| groups.concat()).collect()
}

/// Parts between `***`; the first and the last may be empty, None where another is.
fn paragraphs(text: &str) -> Option<usize> {
    let parts: Vec<&str> = text.split("***").collect();
    let mut count = parts.len();
    for (index, part) in parts.iter().enumerate() {
        if strip(part).is_empty() {
            if index > 0 && index + 1 < parts.len() {
                return None;
            }
            count -= 1;
        }
    }
    Some(count)
}

/// So many paragraphs between empty lines, the nth of which begins with a word.
fn first_word(text: &str, wanted: usize, nth: usize, word: &str) -> bool {
    let parts: Vec<&str> = text.split("\n\n").collect();
    let count = parts.iter().filter(|part| !strip(part).is_empty()).count();
    // The reference counts the empty parts in the number of a paragraph, but not in the number of all of them.
    let Some(part) = parts.get(nth - 1).filter(|_| nth <= count) else { return false };
    let Some(first) = part.split(is_space).find(|word| !word.is_empty()) else { return false };
    let first = first.trim_start_matches('\'').trim_start_matches('"');
    let end = first.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(first.len());
    count == wanted && first[..end].to_lowercase() == word
}

/// Without the fence of Markdown around it, as the reference takes it off: prefixes in this order, each once.
fn unfenced(text: &str) -> &str {
    let mut text = strip(text);
    for prefix in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    strip(text.strip_suffix("```").unwrap_or(text))
}

/// Two different texts between `******`.
fn two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").map(strip).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or(&[]);
    let written: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    inner.iter().all(|part| !part.is_empty()) && matches!(*written, [first, second] if first != second)
}

/// The values of an instruction.
struct Values<'r> {
    id: &'r str,
    values: &'r Row,
}

impl Values<'_> {
    fn rule(&self) -> Result<Rule, String> {
        Ok(match self.id {
            "keywords:existence" => Rule::AllFound(self.patterns("keywords", |word| format!("(?i){word}"))?),
            "keywords:forbidden_words" => {
                Rule::NoneFound(self.patterns("forbidden_words", |word| format!(r"(?i)\b{word}\b"))?)
            }
            "keywords:frequency" => {
                let pattern = format!("(?i){}", strip(self.text("keyword")?));
                Rule::Found(self.pattern("keyword", &pattern)?, self.bound("frequency", "relation")?)
            }
            "keywords:letter_frequency" => {
                let letter = self.text("letter")?.to_lowercase();
                let mut letters = letter.chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) => {
                        Rule::Letter(letter, self.bound("let_frequency", "let_relation")?)
                    }
                    _ => return Err(self.wrong("letter", "one character")),
                }
            }
            "language:response_language" => Rule::Language(self.text("language")?.to_owned()),
            "length_constraints:number_sentences" => {
                Rule::Sentences(self.bound("num_sentences", "relation")?)
            }
            "length_constraints:number_words" => Rule::Words(self.bound("num_words", "relation")?),
            "length_constraints:number_paragraphs" => Rule::Paragraphs(self.number("num_paragraphs")?),
            "length_constraints:nth_paragraph_first_word" => {
                let (paragraphs, nth) = (self.number("num_paragraphs")?, self.number("nth_paragraph")?);
                if nth > paragraphs {
                    return Err(self.wrong("nth_paragraph", "no more than num_paragraphs"));
                }
                Rule::FirstWord { paragraphs, nth, word: self.text("first_word")?.to_lowercase() }
            }
            "detectable_content:number_placeholders" => {
                Rule::Found(PythonRegex::fixed(r"\[.*?\]"), Bound::AtLeast(self.number("num_placeholders")?))
            }
            "detectable_content:postscript" => {
                let pattern = match strip(self.text("postscript_marker")?) {
                    "P.P.S" => r"p\.\s?p\.\s?s".to_owned(),
                    "P.S." => r"p\.\s?s\.".to_owned(),
                    marker => marker.to_lowercase(),
                };
                Rule::FoundInLowerCase(self.pattern("postscript_marker", &pattern)?)
            }
            "detectable_format:number_bullet_lists" => Rule::Bullets(self.number("num_bullets")?),
            "detectable_format:constrained_response" => Rule::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => {
                Rule::Highlights(self.number("num_highlights")?)
            }
            "detectable_format:multiple_sections" => {
                let pattern = format!(r"\s?{}\s?\d+\s?", strip(self.text("section_spliter")?));
                let pattern = self.pattern("section_spliter", &pattern)?;
                Rule::Found(pattern, Bound::AtLeast(self.number("num_sections")?))
            }
            "detectable_format:json_format" => Rule::Json,
            "detectable_format:title" => Rule::Title,
            "combination:two_responses" => Rule::TwoResponses,
            "combination:repeat_prompt" => {
                Rule::RepeatPrompt(strip(self.text("prompt_to_repeat")?).to_lowercase())
            }
            "startend:end_checker" => Rule::Ends(strip(self.text("end_phrase")?).to_lowercase()),
            "startend:quotation" => Rule::Quotation,
            "change_case:capital_word_frequency" => {
                Rule::CapitalWords(self.bound("capital_frequency", "capital_relation")?)
            }
            "change_case:english_capital" => Rule::UpperEnglish,
            "change_case:english_lowercase" => Rule::LowerEnglish,
            "punctuation:no_comma" => Rule::NoComma,
            other => return Err(format!("no instruction is called {other:?}")),
        })
    }

    fn wrong(&self, name: &str, expected: &str) -> String {
        format!(
            "{}: expected {expected} in {name:?}, got {}",
            self.id,
            self.values.get(name).unwrap_or(&Value::Null)
        )
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        let text = self.values.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or_else(|| self.wrong(name, "a string"))
    }

    fn number(&self, name: &str) -> Result<usize, String> {
        let value = self.values.get(name);
        // Tables that were made through pandas have 3.0 for 3.
        let number = value.and_then(|value| value.as_u64().or_else(|| Some(value.as_f64()? as u64)));
        let same = |number: &u64| *number > 0 && value.and_then(Value::as_f64) == Some(*number as f64);
        number
            .filter(same)
            .map(|number| number as usize)
            .ok_or_else(|| self.wrong(name, "a number of at least 1"))
    }

    fn bound(&self, number: &str, relation: &str) -> Result<Bound, String> {
        let limit = self.number(number)?;
        match self.text(relation)? {
            "less than" => Ok(Bound::LessThan(limit)),
            "at least" => Ok(Bound::AtLeast(limit)),
            _ => Err(self.wrong(relation, "\"less than\" or \"at least\"")),
        }
    }

    fn pattern(&self, name: &str, pattern: &str) -> Result<PythonRegex, String> {
        PythonRegex::new(pattern)
            .map_err(|error| format!("{} ({error})", self.wrong(name, "regular expressions")))
    }

    fn patterns(&self, name: &str, spell: impl Fn(&str) -> String) -> Result<Vec<PythonRegex>, String> {
        let words = self.values.get(name).and_then(Value::as_array).filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| self.wrong(name, "a list of strings"))?;
        let word = |word: &Value| {
            let word = word.as_str().ok_or_else(|| self.wrong(name, "a list of strings"))?;
            self.pattern(name, &spell(word))
        };
        words.iter().map(word).collect()
    }
}
