//! Where sentences end in English: the classifier of Punkt with trained parameters.
//!
//! Source: Kiss and Strunk (2006), Unsupervised Multilingual Sentence Boundary Detection, sections 4.1 to 4.3; where details
//! matter (which characters stand in words, what is a candidate) as `PunktSentenceTokenizer` of NLTK 3.9.1 takes them. Training
//! is not here. The parameters are files that a user has; without them [`Punkt::without_training`].

use std::collections::{HashMap, HashSet};

use super::text::{is_digit, is_letter, is_space};
use crate::{EvalError, Result, Source};

/// Abbreviations of English that stand before names, numbers and times, for runs without trained parameters. Ours.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "inc", "ltd", "co", "corp", "gen", "col",
    "capt", "lt", "sgt", "gov", "sen", "rep", "rev", "hon", "ave", "dept", "est", "fig", "no", "vol",
    "approx", "e.g", "i.e", "u.s", "u.k", "a.m", "p.m", "ph.d", "jan", "feb", "aug", "sept", "oct", "nov",
    "dec",
];

/// How a word was seen in training: bits of `ortho_context`.
mod seen {
    pub(super) const BEGINNING_LOWER: u8 = 1 << 4;
    pub(super) const MIDDLE_UPPER: u8 = 1 << 2;
    pub(super) const UPPER: u8 = 1 << 1 | 1 << 2 | 1 << 3;
    pub(super) const LOWER: u8 = 1 << 4 | 1 << 5 | 1 << 6;
}

/// A splitter of text into sentences.
#[derive(Debug, Default)]
pub struct Punkt {
    abbreviations: HashSet<String>,
    collocations: HashSet<(String, String)>,
    starters: HashSet<String>,
    contexts: HashMap<String, u8>,
}

/// A token with what is decided about it.
#[derive(Debug)]
struct Token {
    text: Vec<char>,
    /// Lower case; numbers are `##number##`.
    kind: String,
    breaks: bool,
    abbreviation: bool,
    ellipsis: bool,
}

/// A place where a sentence may end.
struct Candidate {
    /// The character after the mark.
    end: usize,
    /// The word before the mark begins here.
    word: usize,
    /// What follows ends here.
    context_end: usize,
    /// The following token, where space lies between.
    next: Option<usize>,
}

impl Punkt {
    /// The parameters that NLTK distributes as `punkt_tab/english`: `abbrev_types.txt`, `collocations.tab`, `sent_starters.txt`,
    /// `ortho_context.tab` in a folder of the data.
    ///
    /// Errors: a file is missing, or a line is not what it should be.
    pub fn load(source: &Source, folder: &str) -> Result<Self> {
        let mut punkt = Punkt::default();
        let text = |name: &str| {
            let path = source.find("ifeval", &[&format!("{folder}/{name}")])?;
            Ok::<_, EvalError>((source.text(&path)?, path))
        };
        let set = |text: String| text.lines().map(str::to_owned).collect();
        punkt.abbreviations = set(text("abbrev_types.txt")?.0);
        punkt.starters = set(text("sent_starters.txt")?.0);
        let (pairs, path) = text("collocations.tab")?;
        let broken = |path, row: usize, line: &str| EvalError::Row {
            path,
            row: row as u64 + 1,
            problem: format!("expected two fields with a tabulator between, got {line:?}"),
        };
        for (row, line) in pairs.lines().enumerate() {
            let (first, second) = line.split_once('\t').ok_or_else(|| broken(path.clone(), row, line))?;
            punkt.collocations.insert((first.to_owned(), second.to_owned()));
        }
        let (contexts, path) = text("ortho_context.tab")?;
        for (row, line) in contexts.lines().enumerate() {
            let parsed = line.split_once('\t').and_then(|(word, bits)| Some((word, bits.parse().ok()?)));
            let (word, bits) = parsed.ok_or_else(|| broken(path.clone(), row, line))?;
            punkt.contexts.insert(word.to_owned(), bits);
        }
        Ok(punkt)
    }

    /// No trained parameters, only a few abbreviations. Of 1,623 answers of three models to
    /// IFEval, 26 have another count of sentences, and no verdict is another.
    pub fn without_training() -> Self {
        let abbreviations = ABBREVIATIONS.iter().map(|&word| word.to_owned()).collect();
        Punkt { abbreviations, ..Punkt::default() }
    }

    /// The sentences of a text, without the space between them.
    pub fn sentences(&self, text: &str) -> Vec<String> {
        let text: Vec<char> = text.chars().collect();
        let mut spans = Vec::new();
        let mut start = 0;
        for candidate in candidates(&text) {
            let context: String = text[candidate.word..candidate.context_end].iter().collect();
            if self.breaks_within(&context) {
                spans.push((start, candidate.end));
                start = candidate.next.unwrap_or(candidate.end);
            }
        }
        let trimmed = text.len() - text.iter().rev().take_while(|&&c| is_space(c)).count();
        spans.push((start, trimmed.max(start)));
        realigned(&text, &spans)
    }

    /// A sentence ends somewhere before the last token.
    fn breaks_within(&self, context: &str) -> bool {
        let mut tokens: Vec<Token> =
            context.split('\n').flat_map(words).map(|word| self.classified(word)).collect();
        for index in 1..tokens.len() {
            let (before, after) = tokens.split_at_mut(index);
            if let (Some(token), Some(next)) = (before.last_mut(), after.first()) {
                self.reclassify(token, next);
            }
        }
        tokens.iter().rev().skip(1).any(|token| token.breaks)
    }

    /// Section 4.1: by the type of the word alone.
    fn classified(&self, text: Vec<char>) -> Token {
        let kind = kind(&text);
        let mut token = Token { text, kind, breaks: false, abbreviation: false, ellipsis: false };
        match token.text.as_slice() {
            ['.' | '?' | '!'] => token.breaks = true,
            all if all.iter().all(|&c| c == '.') => token.ellipsis = true,
            [.., '.', '.'] => (),
            [stem @ .., '.'] => {
                let stem: String = stem.iter().collect::<String>().to_lowercase();
                let last = stem.rsplit('-').next().unwrap_or(&stem);
                token.abbreviation = self.abbreviations.contains(&stem) || self.abbreviations.contains(last);
                token.breaks = !token.abbreviation;
            }
            _ => (),
        }
        token
    }

    /// Sections 4.1.1 to 4.3: by the word and the one after it.
    fn reclassify(&self, token: &mut Token, next: &Token) {
        if token.text.last() != Some(&'.') {
            return;
        }
        let kind = without_period(&token.kind);
        let next_kind = next.kind_within();
        if self.collocations.contains(&(kind.to_owned(), next_kind.to_owned())) {
            (token.breaks, token.abbreviation) = (false, true);
            return;
        }
        let initial = matches!(*token.text, [c, '.'] if is_letter(c));
        let starts = self.starts_sentence(next);
        let next_upper = next.text.first().is_some_and(|c| c.is_uppercase());
        let known_starter = next_upper && self.starters.contains(next_kind);
        if (token.abbreviation || token.ellipsis) && !initial && (starts == Some(true) || known_starter) {
            token.breaks = true;
            return;
        }
        if initial || kind == "##number##" {
            let always_upper =
                starts.is_none() && initial && next_upper && self.context(next_kind) & seen::LOWER == 0;
            if starts == Some(false) || always_upper {
                (token.breaks, token.abbreviation) = (false, true);
            }
        }
    }

    /// Section 4.1.1: what the case of a word says, None where it says nothing.
    fn starts_sentence(&self, token: &Token) -> Option<bool> {
        if matches!(*token.text, [';' | ':' | ',' | '.' | '!' | '?']) {
            return Some(false);
        }
        let context = self.context(token.kind_within());
        let first = token.text.first()?;
        if first.is_uppercase() && context & seen::LOWER != 0 && context & seen::MIDDLE_UPPER == 0 {
            return Some(true);
        }
        let never_begins_lower = context & seen::UPPER != 0 || context & seen::BEGINNING_LOWER == 0;
        (first.is_lowercase() && never_begins_lower).then_some(false)
    }

    fn context(&self, kind: &str) -> u8 {
        self.contexts.get(kind).copied().unwrap_or(0)
    }
}

impl Token {
    /// Its type, without a period that ends a sentence.
    fn kind_within(&self) -> &str {
        if self.breaks { without_period(&self.kind) } else { &self.kind }
    }
}

fn without_period(kind: &str) -> &str {
    kind.strip_suffix('.').filter(|stem| !stem.is_empty()).unwrap_or(kind)
}

/// Numbers, `^-?[.,]?\d[\d,.-]*\.?$`, are one type.
fn kind(text: &[char]) -> String {
    let rest = text.strip_prefix(&['-']).unwrap_or(text);
    let rest = rest.strip_prefix(&['.']).or(rest.strip_prefix(&[','])).unwrap_or(rest);
    match rest {
        [first, more @ ..]
            if is_digit(*first) && more.iter().all(|&c| is_digit(c) || matches!(c, ',' | '.' | '-')) =>
        {
            "##number##".into()
        }
        _ => text.iter().collect::<String>().to_lowercase(),
    }
}

/// What cannot stand within a word.
fn is_outside(c: char) -> bool {
    matches!(c, ')' | '"' | ';' | '}' | ']' | '*' | ':' | '@' | '\'' | '(' | '{' | '[' | '!' | '?')
}

/// What cannot begin a word.
fn cannot_begin(c: char) -> bool {
    matches!(c, '(' | '"' | '`' | '{' | '[' | ':' | ';' | '&' | '#' | '*' | '@' | ')' | '}' | ']' | '-' | ',')
}

/// How many characters of the start are one mark of several: dashes, dots, dots with spaces between.
fn many(text: &[char]) -> Option<usize> {
    let run = |wanted: char| text.iter().take_while(|&&c| c == wanted).count();
    if let Some(length) = [run('-'), run('.')].into_iter().find(|&length| length >= 2) {
        return Some(length);
    }
    let pairs = text.chunks_exact(2).take_while(|pair| pair[0] == '.' && is_space(pair[1])).count();
    let dots = if text.get(2 * pairs) == Some(&'.') { pairs + 1 } else { pairs };
    (dots >= 3).then(|| 2 * dots - 1)
}

/// The tokens of a line.
fn words(line: &str) -> Vec<Vec<char>> {
    let line: Vec<char> = line.chars().collect();
    let ends = |at: usize| match line.get(at) {
        None => true,
        Some(&c) => is_space(c) || is_outside(c) || many(&line[at..]).is_some(),
    };
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < line.len() {
        if is_space(line[at]) {
            at += 1;
            continue;
        }
        let start = at;
        at += match many(&line[at..]) {
            Some(length) => length,
            None if cannot_begin(line[at]) => 1,
            None => {
                let end = (at + 1..=line.len()).find(|&end| ends(end) || (line[end] == ',' && ends(end + 1)));
                end.unwrap_or(line.len()) - at
            }
        };
        tokens.push(line[start..at].to_vec());
    }
    tokens
}

/// Marks that may end a sentence, one for each word before them: of several marks behind one word, the last.
fn candidates(text: &[char]) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    // The word before the mark of the latest candidate.
    let mut word = (0, 0);
    for (at, &c) in text.iter().enumerate() {
        if !matches!(c, '.' | '?' | '!') {
            continue;
        }
        let spaces = text[at + 1..].iter().take_while(|&&c| is_space(c)).count();
        let (context_end, next) = match text.get(at + 1 + spaces) {
            Some(&after) if spaces == 0 && is_outside(after) => (at + 2, None),
            Some(_) if spaces > 0 => {
                let next = at + 1 + spaces;
                (next + text[next..].iter().take_while(|&&c| !is_space(c)).count(), Some(next))
            }
            _ => continue,
        };
        // Space at the very start of what lies between does not count as found in the reference, and only ASCII's does.
        let between = &text[word.1..at];
        let space = between.iter().rposition(|&c| matches!(c, ' ' | '\t'..='\r')).filter(|&index| index > 0);
        let start = space.map_or(word.0, |index| word.1 + index + 1);
        if start < word.1 {
            found.pop();
        }
        word = (start, at);
        found.push(Candidate { end: at + 1, word: start, context_end, next });
    }
    found
}

/// Closing marks at the start of a sentence belong to the one before.
fn realigned(text: &[char], spans: &[(usize, usize)]) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut skip = 0;
    for (index, &(start, end)) in spans.iter().enumerate() {
        let start = start + skip;
        skip = 0;
        let mut end = end;
        let mut closed = false;
        if let Some(&(next, next_end)) = spans.get(index + 1)
            && let Some((marks, length)) = closing(&text[next..next_end])
        {
            (end, skip, closed) = (next + marks, length, true);
        }
        if start < end || closed {
            sentences.push(text[start.min(end)..end].iter().collect());
        }
    }
    sentences
}

/// Closing marks at the start, before space, two dashes or the end: how many, and how long they are with the space behind.
fn closing(text: &[char]) -> Option<(usize, usize)> {
    let marks = text.iter().take_while(|c| matches!(c, '"' | '\'' | ')' | ']' | '}')).count();
    if marks == 0 {
        return None;
    }
    let spaces = text[marks..].iter().take_while(|&&c| is_space(c)).count();
    let followed = spaces > 0 || marks == text.len() || text[marks..].starts_with(&['-', '-']);
    followed.then_some((marks, marks + spaces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(Punkt::without_training().sentences(text), expected);
    }

    #[test]
    fn sentences_end() {
        check("One. Two! Three? four", &["One.", "Two!", "Three?", "four"]);
        check("Dr. Kim came at 5 p.m. sharp. She left.", &["Dr. Kim came at 5 p.m. sharp.", "She left."]);
        check("He said \"Stop.\" Then (he left.) Good", &["He said \"Stop.\"", "Then (he left.)", "Good"]);
        check("Wait... what?", &["Wait... what?"]);
        check("Very bad!!! I know.", &["Very bad!!!", "I know."]);
        check("J. Bach wrote it.", &["J. Bach wrote it."]);
        check("  ", &[]);
        check("", &[]);
        check(".", &["."]);
    }

    #[test]
    fn tokens_of_a_line() {
        #[track_caller]
        fn check(line: &str, expected: &[&str]) {
            let got: Vec<String> = words(line).into_iter().map(|word| word.into_iter().collect()).collect();
            assert_eq!(got, expected);
        }
        check("a, b,c (d) e--f . . . g", &["a", ",", "b,c", "(", "d", ")", "e", "--", "f", ". . .", "g"]);
        check("3.5 it's", &["3.5", "it", "'s"]);
    }
}
