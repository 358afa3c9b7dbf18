//! Whether Python's `json.loads` accepts a text: JSON, with `NaN`, `Infinity`, `-Infinity` and halves of surrogate pairs besides,
//! and numbers of any size.

/// Python gives up where lists and objects are nested deeper than its stack (1,000 calls).
const DEPTH: usize = 990;

/// The whole text is one value.
pub(crate) fn is_json(text: &str) -> bool {
    let mut reader = Reader { rest: text };
    reader.value(0).is_some() && {
        reader.space();
        reader.rest.is_empty()
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        self.space();
        match self.rest.chars().next()? {
            '{' if depth < DEPTH => self.items('{', '}', |reader| {
                reader.space();
                reader.string()?;
                reader.space();
                reader.take(":")?;
                reader.value(depth + 1)
            }),
            '[' if depth < DEPTH => self.items('[', ']', |reader| reader.value(depth + 1)),
            '"' => self.string(),
            '-' | '0'..='9' => self.number(),
            _ => ["null", "true", "false", "NaN", "Infinity"].iter().find_map(|word| self.take(word)),
        }
    }

    fn items(&mut self, open: char, close: char, item: impl Fn(&mut Self) -> Option<()>) -> Option<()> {
        self.rest = self.rest.strip_prefix(open)?;
        self.space();
        if let Some(rest) = self.rest.strip_prefix(close) {
            self.rest = rest;
            return Some(());
        }
        loop {
            item(self)?;
            self.space();
            if let Some(rest) = self.rest.strip_prefix(close) {
                self.rest = rest;
                return Some(());
            }
            self.take(",")?;
        }
    }

    fn string(&mut self) -> Option<()> {
        self.take("\"")?;
        loop {
            let mut characters = self.rest.chars();
            match characters.next()? {
                '"' => {
                    self.rest = characters.as_str();
                    return Some(());
                }
                '\\' => match characters.next()? {
                    '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => (),
                    'u' => {
                        for _ in 0..4 {
                            characters.next().filter(char::is_ascii_hexdigit)?;
                        }
                    }
                    _ => return None,
                },
                '\0'..='\x1f' => return None,
                _ => (),
            }
            self.rest = characters.as_str();
        }
    }

    fn digits(&mut self) -> Option<()> {
        let rest = self.rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let some = rest.len() < self.rest.len();
        self.rest = rest;
        some.then_some(())
    }

    fn number(&mut self) -> Option<()> {
        if self.take("-").is_some() && self.take("Infinity").is_some() {
            return Some(());
        }
        if self.take("0").is_none() {
            self.digits()?;
        }
        let before = self.rest;
        if self.take(".").is_some() && self.digits().is_none() {
            self.rest = before;
            return Some(());
        }
        let before = self.rest;
        if self.take("e").or_else(|| self.take("E")).is_some() {
            let _sign = self.take("-").or_else(|| self.take("+"));
            if self.digits().is_none() {
                self.rest = before;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_reads_it() {
        #[track_caller]
        fn check(text: &str, expected: bool) {
            assert_eq!(is_json(text), expected, "{text:.80}");
        }
        for text in [
            "{}",
            "[1, -2.5e+3, 0]",
            " {\"a\": [\"\\ud800\", null, true]} ",
            "NaN",
            "-Infinity",
            "1e999",
            "\"가\"",
        ] {
            check(text, true);
        }
        for text in [
            "",
            "{a: 1}",
            "{'a': 1}",
            "[1,]",
            "01",
            "1.",
            "1e",
            "\"a\nb\"",
            "{} {}",
            "\"\\x\"",
            "nul",
            "-",
            "\u{feff}1",
        ] {
            check(text, false);
        }
        check(&"[".repeat(100_000), false);
        check(&("[".repeat(900) + &"]".repeat(900)), true);
    }
}
