//! Rule: a path named in a Markdown file exists.
//!
//! What counts as a path, outside fenced blocks:
//! - the target of a link, `[text](target)` or `[text]: target`, read from the folder of the file; not a URL, not an
//!   anchor, not a place outside the workspace;
//! - inline code made only of letters, digits and `_ - . /`, that names a source file (`.rs`, `.md`, `.toml`, `.py`,
//!   `.cu`), starts with a folder at the root of the workspace, or ends with `/`. It exists when some path of the
//!   tree ends with it, so `cli/src/main.rs` and `main.rs` both do. Commands, globs, `../elsewhere`, `/absolute` and
//!   names such as `owner/model` or `tokens/s` are not paths.

use super::Violation;

const SOURCES: [&str; 5] = ["rs", "md", "toml", "py", "cu"];

/// The violations of one Markdown file. `tree` holds every path from the root; folders end with `/`.
pub fn check(file: &str, text: &str, tree: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut is_fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            continue;
        }
        if is_fenced {
            continue;
        }
        let missing_links = link_targets(line)
            .filter(|target| resolve(file, target).is_some_and(|path| !is_at(&path, tree)))
            .map(|target| (target, "links are read from the folder of this file"));
        let missing_code = line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|code| is_path(code, tree) && !is_tail(code, tree))
            .map(|code| (code, "inline code names a path from the root, or the end of one"));
        for (path, how) in missing_links.chain(missing_code) {
            violations.push(Violation {
                file: file.into(),
                line: index + 1,
                law: format!("`{path}` does not exist"),
                hint: format!("name what stands today ({how}); a file of another project is no inline code"),
            });
        }
    }
    violations
}

fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target);
    inline.chain(definition)
}

/// The path from the root that a link in `file` means; none for URLs, anchors and places outside.
fn resolve(file: &str, target: &str) -> Option<String> {
    let target = target.split('#').next().unwrap_or_default();
    if target.is_empty() || target.contains(':') {
        return None;
    }
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn is_at(path: &str, tree: &[String]) -> bool {
    path.is_empty() || tree.iter().any(|known| known.trim_end_matches('/') == path)
}

fn is_path(code: &str, tree: &[String]) -> bool {
    let is_plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    if !is_plain || code.starts_with(['/', '-']) || code.starts_with("..") || !code.contains(['/', '.']) {
        return false;
    }
    let (folders, name) = code.rsplit_once('/').unwrap_or(("", code));
    let is_source = name
        .rsplit_once('.')
        .is_some_and(|(stem, extension)| !stem.is_empty() && SOURCES.contains(&extension));
    let first = format!("{}/", folders.split('/').next().unwrap_or_default());
    is_source || name.is_empty() || tree.contains(&first)
}

fn is_tail(code: &str, tree: &[String]) -> bool {
    tree.iter().any(|known| {
        let known = if code.ends_with('/') { known } else { known.trim_end_matches('/') };
        known.strip_suffix(code).is_some_and(|before| before.is_empty() || before.ends_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines with a missing path in the file docs/a.md of a small tree.
    #[track_caller]
    fn check_lines(text: &str, expected: &[usize]) {
        let tree = [
            ".ci/",
            ".ci/run",
            "README.md",
            "crates/",
            "crates/cli/",
            "crates/cli/main.rs",
            "docs/",
            "docs/a.md",
        ];
        let tree = tree.map(String::from);
        let got: Vec<usize> = check("docs/a.md", text, &tree).iter().map(|v| v.line).collect();
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn links_are_read_from_the_folder_of_the_file() {
        check_lines("[a](a.md) ![r](../README.md#top) [up](..) [c](../crates/cli)", &[]);
        check_lines("fine\n[r](README.md)", &[2]);
        check_lines("[a](a.md) and [b](gone.md \"title\")", &[1]);
        check_lines("[name]: gone.md", &[1]);
    }

    #[test]
    fn urls_anchors_and_places_outside_are_not_ours() {
        check_lines("[u](https://example.com/a.md) [m](mailto:a@b.c) [t](#top) [s](../../shared/x.md)", &[]);
    }

    #[test]
    fn inline_code_that_names_what_stands() {
        check_lines(
            "`crates/cli/main.rs` `cli/main.rs` `main.rs` `crates/` `cli/` `crates/cli` `.ci/run`",
            &[],
        );
    }

    #[test]
    fn inline_code_that_names_nothing() {
        for gone in
            ["gone.rs", "crates/gone", "crates/cli/gone.rs", "gone/", "ain.rs", "lab/try.py", ".ci/gone"]
        {
            check_lines(&format!("text\n\nsee `main.rs` and `{gone}`"), &[3]);
        }
    }

    #[test]
    fn inline_code_that_is_no_path() {
        for other in [
            "cargo test crates/gone.rs",
            "crates/*/gone.rs",
            "../shared/gone.md",
            "/reset",
            "owner/model-1.5",
            "tokens/s",
            "config.json",
            "self_attn.q_proj",
            "--model",
            ".rs",
            "a::b",
        ] {
            check_lines(&format!("`{other}`"), &[]);
        }
    }

    #[test]
    fn fenced_blocks_are_commands_and_output() {
        check_lines("```\n`gone.rs`\n```\n`gone.rs`", &[4]);
    }
}
