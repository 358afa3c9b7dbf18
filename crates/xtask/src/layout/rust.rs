//! Rules about one source file: its length, and where `unsafe` may stand.

use super::Violation;

const MAX_LINES: usize = 800;
const TABLE_MARKER: &str = "layout: data table";
const UNSAFE_HOMES: [&str; 2] = ["crates/kernels/", "crates/checkpoint/"];

/// A file over 800 lines is a violation, unless one of its first five lines says `layout: data table`.
pub fn check_length(file: &str, text: &str) -> Option<Violation> {
    let lines = text.lines().count();
    let is_table = text.lines().take(5).any(|line| line.contains(TABLE_MARKER));
    (lines > MAX_LINES && !is_table).then(|| Violation {
        file: file.into(),
        line: MAX_LINES + 1,
        law: format!("{lines} lines; a source file has at most {MAX_LINES}"),
        hint: format!("split it by subject; a table of data says `{TABLE_MARKER}` in its first lines"),
    })
}

/// `unsafe` outside its two crates, or inside them with no `SAFETY:` (on a function, `# Safety`) close above it and
/// no `SAFETY of every block` above the item that holds it.
pub fn check_unsafe(file: &str, text: &str) -> Vec<Violation> {
    let is_home = UNSAFE_HOMES.iter().any(|home| file.starts_with(home));
    let code = blank_comments_and_literals(text);
    let lines: Vec<&str> = text.lines().collect();
    let mut violations = Vec::new();
    for (at, _) in code.match_indices("unsafe") {
        let (before, after) = (&code[..at], &code[at + "unsafe".len()..]);
        if before.ends_with(is_word) || after.starts_with(is_word) {
            continue;
        }
        let index = before.matches('\n').count();
        let (law, hint) = if !is_home {
            let hint = "give that crate a safe function that checks what is needed, and call it";
            ("`unsafe` stands only in the crates kernels and checkpoint", hint)
        } else if !is_pointer_type(after) && !is_explained(&lines, index) {
            (
                "`unsafe` without a reason",
                "write above it `// SAFETY:` and why it holds (on a fn: `/// # Safety`)",
            )
        } else {
            continue;
        };
        violations.push(Violation { file: file.into(), line: index + 1, law: law.into(), hint: hint.into() });
    }
    violations
}

/// `unsafe fn(..)` and `unsafe extern "C" fn(..)` are types: nothing unsafe is done or promised there.
fn is_pointer_type(after: &str) -> bool {
    let after = after.trim_start();
    let after = after.strip_prefix("extern").unwrap_or(after).trim_start();
    after.strip_prefix("fn").is_some_and(|rest| rest.trim_start().starts_with('('))
}

/// A reason on the line, up to five lines above it, or in the comments and attributes that these touch; or one for
/// every block of the item that holds it, above that item.
fn is_explained(lines: &[&str], index: usize) -> bool {
    let near = &lines[start_of_comments(lines, index.saturating_sub(5))..=index];
    let is_head = |line: &&str| !line.is_empty() && !line.starts_with([' ', '}', ')']);
    let head = lines[..=index].iter().rposition(is_head).unwrap_or(0);
    let above_item = &lines[start_of_comments(lines, head)..=head];
    near.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
        || above_item.iter().any(|line| line.contains("SAFETY of every"))
}

/// The first line of the comments and attributes that end at line `index` or just above it.
fn start_of_comments(lines: &[&str], index: usize) -> usize {
    let is_comment = |line: &&str| line.trim_start().starts_with("//") || line.trim_start().starts_with("#[");
    index - lines[..index].iter().rev().take_while(|line| is_comment(line)).count()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `text` with every comment, string and character literal replaced by spaces; lines stay where they are.
fn blank_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (length, is_code) = match first {
            '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), false),
            '/' if rest.starts_with("/*") => (block_comment(rest), false),
            '"' => (1 + quoted(&rest[1..], '"'), false),
            '\'' if is_char_literal(rest) => (1 + quoted(&rest[1..], '\''), false),
            _ if matches!(&rest[..word], "r" | "br" | "cr") => match raw_string(&rest[word..]) {
                Some(length) => (word + length, false),
                None => (word, true),
            },
            _ => (word.max(first.len_utf8()), true),
        };
        let (piece, tail) = rest.split_at(length);
        if is_code {
            code.push_str(piece);
        } else {
            code.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = tail;
    }
    code
}

/// Bytes of a block comment at the start of `text`; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Bytes up to and with the closing `quote`; a backslash escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// `'a'` and `'\n'`, not the lifetime `'a`.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}

/// Bytes of `"…"` or `#"…"#` with any number of hashes at the start of `text`.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let body = text[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &text[..hashes]);
    Some(body.find(&end).map_or(text.len(), |at| hashes + 1 + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(file: &str, text: &str, expected: &[usize]) {
        let got: Vec<usize> = check_unsafe(file, text).iter().map(|v| v.line).collect();
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn files_end_at_800_lines() {
        assert_eq!(check_length("a.rs", &"x\n".repeat(800)), None);
        let violation = check_length("a.rs", &"x\n".repeat(801)).unwrap();
        assert_eq!(
            (violation.line, violation.law.as_str()),
            (801, "801 lines; a source file has at most 800")
        );
    }

    #[test]
    fn data_tables_are_exempt_and_say_so_at_the_top() {
        let table = format!("// {TABLE_MARKER}\n{}", "x\n".repeat(900));
        assert_eq!(check_length("a.rs", &table), None);
        let late = format!("{}// {TABLE_MARKER}\n", "x\n".repeat(900));
        assert!(check_length("a.rs", &late).is_some());
    }

    #[test]
    fn unsafe_has_two_homes() {
        let text = "fn f() {\n    // SAFETY: checked.\n    unsafe { g() }\n}\n";
        check_text("crates/kernels/src/a.rs", text, &[]);
        check_text("crates/checkpoint/src/a.rs", text, &[]);
        check_text("crates/model/src/a.rs", text, &[3]);
        check_text("crates/cli/tests/a.rs", "#[unsafe(no_mangle)]\nfn f() {}\n", &[1]);
        check_text("lab/a.rs", "unsafe impl Send for A {}", &[1]);
    }

    #[test]
    fn unsafe_gives_its_reason() {
        let home = "crates/kernels/src/a.rs";
        check_text(home, "fn f() {\n    unsafe { g() }\n}\n", &[2]);
        check_text(home, "unsafe impl Send for A {}\n", &[1]);
        check_text(home, "/// Adds.\nunsafe fn add() {}\n", &[2]);
        check_text(home, "/// Adds.\n///\n/// # Safety\n/// AVX2.\n#[inline]\nunsafe fn add() {}\n", &[]);
        let far = format!("// SAFETY: far away.\n{}unsafe {{ g() }}\n", "let x = 1;\n".repeat(6));
        check_text(home, &far, &[8]);
        let long_comment =
            format!("// SAFETY: long.\n{}let y =\n unsafe {{ g() }};\n", "// more\n".repeat(9));
        check_text(home, &long_comment, &[]);
    }

    #[test]
    fn one_reason_may_hold_for_a_whole_item() {
        let body = "impl A {\n    fn f() {\n        unsafe { g() }\n    }\n}\n";
        let filler = "\n".repeat(9);
        let home = "crates/kernels/src/a.rs";
        check_text(home, &format!("// SAFETY of every block: so.\n#[cfg(x)]\n{body}"), &[]);
        check_text(
            home,
            &format!(
                "// SAFETY of every block: so.\n{}",
                body.replace("{\n    fn", &format!("{{{filler}    fn"))
            ),
            &[],
        );
        check_text(home, &format!("// SAFETY of every block: so.\n{filler}{body}"), &[13]);
    }

    #[test]
    fn types_of_functions_need_no_reason() {
        check_text(
            "crates/kernels/src/a.rs",
            "type F = unsafe fn(u8);\ntype G = unsafe extern \"C\" fn();\n",
            &[],
        );
    }

    #[test]
    fn the_word_is_not_the_keyword() {
        for text in [
            "#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]",
            "// unsafe { }",
            "/* a /* unsafe */ unsafe */",
            "let s = \"a \\\" unsafe {\";",
            "let s = r#\"a \" unsafe {\"#;",
            "let s = b\"unsafe\";",
            "let not_unsafe = 1;",
        ] {
            check_text("crates/model/src/a.rs", text, &[]);
        }
    }

    #[test]
    fn literals_end_where_they_end() {
        for text in [
            "let c = '\"'; unsafe { }",
            "let c = '\\''; unsafe { }",
            "fn f<'a>(x: &'a str) { unsafe { } }",
            "let s = r\"\\\"; unsafe { }",
            "let s = \"\\\\\"; unsafe { }",
            "/* /* */ */ unsafe { }",
            "let 한글 = '글'; unsafe { }",
        ] {
            check_text("crates/model/src/a.rs", text, &[1]);
        }
    }
}
