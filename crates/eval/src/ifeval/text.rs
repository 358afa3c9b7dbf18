//! Strings as Python takes them (`str.isupper`, `str.split`; CPython 3.11), where Rust differs.

use std::sync::LazyLock;

use crate::extract::PythonRegex;

/// `str.isspace` of a character.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `[^\W\d]` of a character: letters, the underscore, numbers that are no decimal digits.
pub(crate) fn is_letter(c: char) -> bool {
    static LETTER: LazyLock<PythonRegex> = LazyLock::new(|| PythonRegex::fixed(r"\w(?<!\d)"));
    LETTER.is_match(c.encode_utf8(&mut [0; 4]))
}

/// `\d` of a character.
pub(crate) fn is_digit(c: char) -> bool {
    static DIGIT: LazyLock<PythonRegex> = LazyLock::new(|| PythonRegex::fixed(r"\d"));
    c.is_ascii_digit() || (!c.is_ascii() && DIGIT.is_match(c.encode_utf8(&mut [0; 4])))
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
    static WORDS: LazyLock<PythonRegex> = LazyLock::new(|| PythonRegex::fixed(r"\w+"));
    WORDS.find_all(text).len()
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
        }
        check("", 0);
        check("don't stop_it now-ish 3.5", 7);
        check("안녕 세상", 2);
        // Vowel signs are no word characters to Python.
        check("हिन्दी", 3);
    }
}
