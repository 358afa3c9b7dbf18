//! Strings and regular expressions as Python takes them (`str.strip`, `str.isupper`, `\w` of `re`, CPython 3.11), where Rust
//! differs.

use std::sync::LazyLock;

use fancy_regex::Regex;

/// `\w`: letters, numbers of every kind and the underscore. Rust's also has combining marks, which would join the syllables of
/// Devanagari that Python counts as several words.
pub(crate) const WORD: &str = r"[\p{L}\p{N}_]";

/// `\b` between [`WORD`] and what is none.
pub(crate) const BOUNDARY: &str =
    r"(?:(?<=[\p{L}\p{N}_])(?![\p{L}\p{N}_])|(?<![\p{L}\p{N}_])(?=[\p{L}\p{N}_]))";

/// A pattern of ours.
pub(crate) fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern that does not depend on data compiles: this is a bug")
}

/// `str.isspace` of a character.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `\w` of a character.
pub(crate) fn is_word(c: char) -> bool {
    // Rust's "alphabetic" also has some marks; they are no letters.
    c == '_' || (c.is_alphanumeric() && !is_mark(c))
}

/// `\d` of a character.
pub(crate) fn is_digit(c: char) -> bool {
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| regex(r"\A\d\z"));
    c.is_ascii_digit() || (!c.is_ascii() && DIGIT.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false))
}

fn is_mark(c: char) -> bool {
    static MARK: LazyLock<Regex> = LazyLock::new(|| regex(r"\A[\p{M}\p{So}]\z"));
    !c.is_ascii() && MARK.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false)
}

/// `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}'
        | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// `str.isupper()`: something has case, and nothing is lower or title case.
pub(crate) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c))
}

/// `str.islower()`: something has case, and nothing is upper or title case.
pub(crate) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c))
}

/// How many words `re.findall(r"\w+", text)` finds.
pub(crate) fn count_words(text: &str) -> usize {
    let mut inside = false;
    let starts = text.chars().filter(|&c| {
        let before = std::mem::replace(&mut inside, is_word(c));
        inside && !before
    });
    starts.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_of_strings() {
        #[track_caller]
        fn check(text: &str, upper: bool, lower: bool) {
            assert_eq!((is_upper(text), is_lower(text)), (upper, lower), "{text}");
        }
        check("A1!", true, false);
        check("a-b", false, true);
        check("1!", false, false);
        check("한글", false, false);
        check("한글A", true, false);
        check("ǅ", false, false);
        check("Aª", false, false);
    }

    #[test]
    fn words() {
        #[track_caller]
        fn check(text: &str, expected: usize) {
            assert_eq!(count_words(text), expected, "{text}");
            let same = regex(&format!("{WORD}+")).find_iter(text).count();
            assert_eq!(same, expected, "{text}");
        }
        check("", 0);
        check("don't stop_it now-ish 3.5", 7);
        check("안녕 세상", 2);
        // Vowel signs are no word characters to Python.
        check("हिन्दी", 3);
        check("ⓐ x", 1);
    }
}
