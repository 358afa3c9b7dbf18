//! Reads a part of an answer with a regular expression, as lm-evaluation-harness does with Python's `re`.
//!
//! Patterns are written for Python, because a protocol fixes them so; [`PythonRegex`] reads them with Python's meaning where the
//! engine's differs. It knows no task. Source: `lm_eval/filters/extraction.py` and `exact_match` of `lm_eval/api/metrics.py`
//! (0.4.13). Test: `cargo test -p kanana-eval extract`.

use fancy_regex::{Captures, Regex};

use crate::{EvalError, Result};

/// What a filter says where nothing matches.
pub const INVALID: &str = "[invalid]";

/// A regular expression with the meaning that Python gives it.
///
/// What differs from the engine: `$` also stands before a line feed that ends the text, `\Z` is the engine's `\z`, `\w` is
/// letters, numbers and the underscore (and `\b` its border), `\s` has the four separators U+001C to U+001F, and `[`, `&`, `~` are themselves within
/// brackets. Look-behinds are allowed. A search that takes more steps than the engine allows finds nothing.
#[derive(Clone, Debug)]
pub struct PythonRegex(Regex);

impl PythonRegex {
    /// Errors: [`EvalError::Pattern`], what the engine does not know.
    pub fn new(pattern: &str) -> Result<Self> {
        let problem = |error: fancy_regex::Error| EvalError::Pattern {
            pattern: pattern.into(),
            problem: error.to_string(),
        };
        Regex::new(&translate(pattern)).map(PythonRegex).map_err(problem)
    }

    /// One that stands in the program.
    pub(crate) fn fixed(pattern: &str) -> Self {
        PythonRegex::new(pattern).expect("a pattern of the program compiles: this is a bug")
    }

    /// `re.findall`: of each match the groups, or the whole where there are none. A group that took no part is empty.
    pub fn find_all(&self, text: &str) -> Vec<Vec<String>> {
        self.matches(text).iter().map(groups).collect()
    }

    /// `re.search`: whether it occurs.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text).unwrap_or(false)
    }

    /// `re.sub` with a replacement that is itself.
    pub fn replace_all(&self, text: &str, replacement: &str) -> String {
        self.replace_with(text, |_| replacement.to_owned())
    }

    /// `re.sub` with a function, which gets the groups by their number (0 is the whole; one that took no part is empty).
    pub fn replace_with<'t>(
        &self,
        text: &'t str,
        replacement: impl Fn(&dyn Fn(usize) -> &'t str) -> String,
    ) -> String {
        let mut out = String::with_capacity(text.len());
        let mut from = 0;
        for captures in self.matches(text) {
            let group = |index| captures.get(index).map_or("", |group| &text[group.range()]);
            let Some(whole) = captures.get(0) else { break };
            out.push_str(&text[from..whole.start()]);
            out.push_str(&replacement(&group));
            from = whole.end();
        }
        out.push_str(&text[from..]);
        out
    }

    /// `re.sub` with a replacement in which `$1` is a group and `$0` the match, which Python spells `\1` and `\g<0>`.
    pub(crate) fn substitute(&self, text: &str, replacement: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut from = 0;
        for captures in self.matches(text) {
            let Some(found) = captures.get(0) else { continue };
            out.push_str(&text[from..found.start()]);
            captures.expand(replacement, &mut out);
            from = found.end();
        }
        out.push_str(&text[from..]);
        out
    }

    /// As Python 3.7 and later: an empty match may stand right behind another one.
    fn matches<'t>(&self, text: &'t str) -> Vec<Captures<'t, str>> {
        let mut all = Vec::new();
        let mut from = 0;
        while from <= text.len() {
            let Ok(Some(captures)) = self.0.captures_from_pos(text, from) else { break };
            let Some(whole) = captures.get(0) else { break };
            let width = |at: usize| text[at..].chars().next().map_or(1, char::len_utf8);
            from = if whole.range().is_empty() { whole.end() + width(whole.end()) } else { whole.end() };
            all.push(captures);
        }
        all
    }
}

fn groups(captures: &Captures<'_, str>) -> Vec<String> {
    let first = usize::from(captures.len() > 1);
    let group = |index| captures.get(index).map_or(String::new(), |group| group.as_str().to_owned());
    (first..captures.len()).map(group).collect()
}

/// `\b` where `\w` is Python's.
const BORDER: &str = r"(?:(?<=[\p{L}\p{N}_])(?![\p{L}\p{N}_])|(?<![\p{L}\p{N}_])(?=[\p{L}\p{N}_]))";

/// Python's pattern as the engine's. Lines have ends (`re.MULTILINE`) where it begins with `(?m)`.
fn translate(pattern: &str) -> String {
    let multiline = pattern.starts_with("(?m)");
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut characters = pattern.chars();
    let mut in_class = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('w') if in_class => out.push_str(r"\p{L}\p{N}_"),
                Some('w') => out.push_str(r"[\p{L}\p{N}_]"),
                Some('W') => out.push_str(r"[^\p{L}\p{N}_]"),
                Some('s') if in_class => out.push_str(r"\s\x1c-\x1f"),
                Some('s') => out.push_str(r"[\s\x1c-\x1f]"),
                Some('S') => out.push_str(r"[^\s\x1c-\x1f]"),
                Some('b') if !in_class => out.push_str(BORDER),
                Some('Z') => out.push_str(r"\z"),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            '[' if in_class => out.push_str(r"\["),
            '&' | '~' if in_class => out.extend(['\\', character]),
            '[' => {
                in_class = true;
                out.push('[');
                let rest = characters.as_str();
                let negated = rest.starts_with('^');
                // A bracket that closes first is itself.
                let literal = rest[usize::from(negated)..].starts_with(']');
                if negated {
                    out.push('^');
                    characters.next();
                }
                if literal {
                    out.push_str(r"\]");
                    characters.next();
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '$' if !in_class && !multiline => out.push_str(r"(?=\n?\z)"),
            other => out.push(other),
        }
    }
    out
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(|character: char| {
        character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
    })
}

/// Which of several matches counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// `group_select: 0`.
    First,
    /// `group_select: -1`.
    Last,
}

/// The `regex` filter followed by `take_first`.
#[derive(Clone, Debug)]
pub struct RegexFilter {
    regex: PythonRegex,
    select: Select,
}

impl RegexFilter {
    /// Errors: a pattern that is none.
    pub fn new(pattern: &str, select: Select) -> Result<Self> {
        Ok(RegexFilter { regex: PythonRegex::new(pattern)?, select })
    }

    /// One that stands in the program.
    pub(crate) fn fixed(pattern: &str, select: Select) -> Self {
        RegexFilter { regex: PythonRegex::fixed(pattern), select }
    }

    /// The part of the response, without space around it: of several groups the first that is not empty. None where the filter
    /// says [`INVALID`].
    pub fn find(&self, response: &str) -> Option<String> {
        let mut all = self.regex.find_all(response);
        let mut groups = match self.select {
            Select::First if !all.is_empty() => all.swap_remove(0),
            Select::First => return None,
            Select::Last => all.pop()?,
        };
        let part = match groups.len() {
            1 => groups.pop()?,
            _ => groups.into_iter().find(|group| !group.is_empty())?,
        };
        Some(strip(&part).to_owned())
    }

    /// The same as a string, which is [`INVALID`] where there is nothing: what the reference compares.
    pub fn apply(&self, response: &str) -> String {
        self.find(response).unwrap_or_else(|| INVALID.to_owned())
    }
}

/// What `exact_match` leaves out before it compares.
#[derive(Clone, Debug, Default)]
pub struct ExactMatch {
    ignored: Vec<PythonRegex>,
    ignore_case: bool,
}

impl ExactMatch {
    /// `regexes_to_ignore`, in this order, and `ignore_case`.
    ///
    /// Errors: a pattern that is none.
    pub fn new(ignored: &[&str], ignore_case: bool) -> Result<Self> {
        let ignored = ignored.iter().map(|pattern| PythonRegex::new(pattern)).collect::<Result<_>>()?;
        Ok(ExactMatch { ignored, ignore_case })
    }

    /// Whether the two are the same string afterwards.
    pub fn matches(&self, prediction: &str, reference: &str) -> bool {
        self.normal(prediction) == self.normal(reference)
    }

    fn normal(&self, text: &str) -> String {
        let text = self.ignored.iter().fold(text.to_owned(), |text, regex| regex.replace_all(&text, ""));
        if self.ignore_case { text.to_lowercase() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(pattern: &str, text: &str, expected: &[&[&str]]) {
        let found = PythonRegex::new(pattern).unwrap().find_all(text);
        assert_eq!(found, expected, "{pattern:?} in {text:?}");
    }

    fn check(pattern: &str, select: Select, text: &str, expected: &str) {
        assert_eq!(
            RegexFilter::new(pattern, select).unwrap().apply(text),
            expected,
            "{pattern:?} in {text:?}"
        );
    }

    #[test]
    fn matches_are_pythons() {
        check_all(r"\.$", "5.\n", &[&["."]]);
        check_all(r"\.\Z", "5.\n", &[]);
        check_all("a*", "ab", &[&["a"], &[""], &[""]]);
        check_all(r"\w+", "정답_1² e\u{301}", &[&["정답_1²"], &["e"]]);
        check_all(r"[\w.]+", "x.y z", &[&["x.y"], &["z"]]);
        check_all(r"a\sb", "a\u{1c}b a\u{3000}b", &[&["a\u{1c}b"], &["a\u{3000}b"]]);
        check_all(r"\d+", "٣ and 4", &[&["٣"], &["4"]]);
        check_all(r"\bहिन\b", "हिन्दी", &[&["हिन"]]);
        check_all(r"(?m)^.$", "a\nb\n", &[&["a"], &["b"]]);
        check_all("[[&&~$]", "[&~$", &[&["["], &["&"], &["~"], &["$"]]);
        check_all("[]a]", "]a", &[&["]"], &["a"]]);
        check_all("(a)|(b)", "ab", &[&["a", ""], &["", "b"]]);
    }

    #[test]
    fn filters_take_one_match() {
        const BEST: &str = "best answer is ([A-Z])";
        check(BEST, Select::Last, "The best answer is A. No, the best answer is C.", "C");
        check(BEST, Select::First, "The best answer is A. No, the best answer is C.", "A");
        check(BEST, Select::Last, "C", INVALID);
        const KOREAN: &str = r"(?<=정답은)\s*[(]?(A|B|C|D)[)]?.*(?=입니다.)";
        check(KOREAN, Select::First, "따라서 정답은 (B) 입니다.", "B");
        check(KOREAN, Select::First, "정답은 B", INVALID);
        check("(x)?(y)?", Select::First, "z", INVALID);
        check(r"= (.*)", Select::First, "= \u{1f}7\u{a0}", "7");
    }

    #[test]
    fn groups_stand_in_replacements() {
        let pattern = PythonRegex::new(r"(\w)-(\w)").unwrap();
        assert_eq!(pattern.substitute("a-b c-d-e", "$2 $0"), "b a-b d c-d-e");
    }

    #[test]
    fn a_pattern_that_is_none_is_named() {
        let error = PythonRegex::new("(a").unwrap_err().to_string();
        assert!(error.contains("(a"), "{error}");
    }

    #[test]
    fn a_search_that_explodes_ends() {
        let text = "a".repeat(400);
        assert!(!PythonRegex::new(r"(a|a)*(?=b)\Z").unwrap().is_match(&text));
    }
}
