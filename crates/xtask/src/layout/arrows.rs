//! Rule: a crate depends on another only along an arrow of the table, and some dependencies have one home.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Violation;

/// What a crate may use.
struct Arrows {
    krate: &'static str,
    /// Crates it may use in the program.
    uses: &'static [&'static str],
    /// Crates its tests may use besides.
    tests_use: &'static [&'static str],
}

const fn arrows(
    krate: &'static str,
    uses: &'static [&'static str],
    tests_use: &'static [&'static str],
) -> Arrows {
    Arrows { krate, uses, tests_use }
}

/// The table: folders below `crates/`, from the ground up. An arrow that is not here does not exist.
const TABLE: &[Arrows] = &[
    arrows("tensor", &[], &[]),
    arrows("kernels", &["tensor"], &[]),
    arrows("checkpoint", &["tensor"], &[]),
    arrows("model", &["tensor", "kernels", "checkpoint"], &[]),
    arrows("tokenizer", &[], &[]),
    arrows("plot", &[], &[]),
    // The loop knows token ids only; its tests may open checkpoints.
    arrows("engine", &["tensor", "kernels", "model"], &["checkpoint"]),
    // The edges. Tests may build a model to serve, evaluate or train.
    arrows("serve", &["engine", "tokenizer"], &["tensor", "kernels", "checkpoint", "model"]),
    arrows("data", &["tokenizer"], &[]),
    arrows("eval", &["engine", "tokenizer", "data", "plot"], &["tensor", "kernels", "checkpoint", "model"]),
    // Tests may use the engine: the trainer's log-probability is the one that the engine sampled with.
    arrows("train", &["tensor", "kernels", "checkpoint", "model", "data"], &["engine", "tokenizer"]),
    arrows(
        "cli",
        &[
            "tensor",
            "kernels",
            "checkpoint",
            "model",
            "tokenizer",
            "engine",
            "serve",
            "eval",
            "data",
            "train",
            "plot",
        ],
        &[],
    ),
    arrows("xtask", &[], &[]),
];

/// Dependencies from outside that only these crates may use, tests included.
const HOMES: &[(&str, &[&str])] =
    &[("tokio", &["serve"]), ("anyhow", &["cli", "xtask"]), ("tokenizers", &["tokenizer"])];

/// The violations of `manifest`, the text of `crates/<name>/Cargo.toml`.
///
/// Errors: the text is not TOML.
pub fn check(file: &str, manifest: &str) -> Result<Vec<Violation>> {
    let krate = file.split('/').nth(1).unwrap_or_default();
    let table: Table = manifest.parse().with_context(|| format!("{file} is not TOML"))?;
    let Some(allowed) = TABLE.iter().find(|row| row.krate == krate) else {
        return Ok(vec![Violation {
            file: file.into(),
            line: 1,
            law: format!("crate `{krate}` is not in the table of arrows"),
            hint: "add its row to TABLE in crates/xtask/src/layout/arrows.rs and to ARCHITECTURE.md".into(),
        }]);
    };

    let mut violations = Vec::new();
    for (dependency, is_test) in dependencies(&table) {
        let (law, hint) = match workspace_crate(&dependency) {
            Some(used) => {
                let may_use = allowed.uses.contains(&used) || (is_test && allowed.tests_use.contains(&used));
                if may_use {
                    continue;
                }
                let law = format!("no arrow `{krate}` -> `{used}` in the table of ARCHITECTURE.md");
                (law, format!("move the code to a crate that may use `{used}`, or pass in what it needs"))
            }
            None => match HOMES.iter().find(|(name, _)| *name == dependency) {
                Some((_, homes)) if !homes.contains(&krate) => {
                    let law = format!("`{dependency}` is used only by {}", homes.join(", "));
                    (law, format!("`{krate}` must do without it: move the code that needs it"))
                }
                _ => continue,
            },
        };
        violations.push(Violation { file: file.into(), line: line_of(manifest, &dependency), law, hint });
    }
    Ok(violations)
}

/// The violations of ARCHITECTURE.md: for every crate of the tree its table says what TABLE says.
pub fn check_map(file: &str, text: &str, tree: &[String]) -> Vec<Violation> {
    let stands = |krate: &str| tree.contains(&format!("crates/{krate}/"));
    let mut violations = Vec::new();
    for row in TABLE.iter().filter(|row| stands(row.krate)) {
        let uses: Vec<String> =
            row.uses.iter().filter(|used| stands(used)).map(|used| format!("`{used}`")).collect();
        let uses = if uses.is_empty() { "nothing".to_owned() } else { uses.join(", ") };
        let start = format!("| `{}` |", row.krate);
        let line = text.lines().position(|line| line.starts_with(&start));
        let is_true = |index| {
            text.lines().nth(index).is_some_and(|line| line.starts_with(&format!("{start} {uses} |")))
        };
        if !line.is_some_and(is_true) {
            violations.push(Violation {
                file: file.into(),
                line: line.map_or(1, |index| index + 1),
                law: format!("the table does not say what `{}` may use", row.krate),
                hint: format!("begin its row with: {start} {uses} |"),
            });
        }
    }
    violations
}

/// Every dependency by package name, and whether only tests use it; those of `[target.…]` too.
fn dependencies(manifest: &Table) -> Vec<(String, bool)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let platforms = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let mut found = Vec::new();
    for table in std::iter::once(manifest).chain(platforms) {
        for (section, is_test) in
            [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
        {
            let section = table.get(section).and_then(Value::as_table);
            for (key, value) in section.into_iter().flatten() {
                let package = value.get("package").and_then(Value::as_str).unwrap_or(key);
                found.push((package.to_owned(), is_test));
            }
        }
    }
    found
}

/// The folder below `crates/` of a package of this workspace.
fn workspace_crate(package: &str) -> Option<&str> {
    match package {
        "kanana" => Some("cli"),
        "xtask" => Some("xtask"),
        _ => package.strip_prefix("kanana-"),
    }
}

fn line_of(manifest: &str, dependency: &str) -> usize {
    let is_key = |line: &str| {
        let line = line.trim_start().trim_start_matches('"');
        line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=', '"']))
    };
    let header = format!(".{dependency}]"); // [dependencies.NAME]
    let renamed = format!("\"{dependency}\""); // KEY = { package = "NAME" }
    let names = |line: &str| is_key(line) || line.ends_with(&header) || line.contains(&renamed);
    manifest.lines().position(names).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_manifest(krate: &str, manifest: &str, expected: &[(usize, &str)]) {
        let violations = check(&format!("crates/{krate}/Cargo.toml"), manifest).unwrap();
        let got: Vec<_> = violations.iter().map(|v| (v.line, v.law.as_str())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn arrows_of_the_table_pass() {
        check_manifest(
            "model",
            "[dependencies]\nkanana-tensor.workspace = true\nhalf.workspace = true\n",
            &[],
        );
        check_manifest("engine", "[dev-dependencies]\nkanana-checkpoint.workspace = true\n", &[]);
    }

    #[test]
    fn an_arrow_upwards_fails() {
        let law = "no arrow `tensor` -> `model` in the table of ARCHITECTURE.md";
        check_manifest(
            "tensor",
            "[dependencies]\nhalf = \"2\"\nkanana-model.workspace = true\n",
            &[(3, law)],
        );
        check_manifest(
            "tensor",
            "[build-dependencies]\nkanana-model = { path = \"../model\" }\n",
            &[(2, law)],
        );
        check_manifest("tensor", "[target.'cfg(unix)'.dependencies]\nkanana-model = \"0\"\n", &[(2, law)]);
        check_manifest("tensor", "[dependencies.kanana-model]\npath = \"../model\"\n", &[(1, law)]);
    }

    #[test]
    fn a_renamed_package_does_not_hide() {
        let law = "no arrow `tokenizer` -> `tensor` in the table of ARCHITECTURE.md";
        let manifest = "[dependencies]\narray = { package = \"kanana-tensor\", path = \"../tensor\" }\n";
        check_manifest("tokenizer", manifest, &[(2, law)]);
    }

    #[test]
    fn arrows_of_tests_are_not_arrows_of_the_program() {
        let law = "no arrow `engine` -> `checkpoint` in the table of ARCHITECTURE.md";
        check_manifest("engine", "[dependencies]\nkanana-checkpoint.workspace = true\n", &[(2, law)]);
    }

    #[test]
    fn tokio_outside_serve_fails_even_in_tests() {
        check_manifest("serve", "[dependencies]\ntokio = \"1\"\n", &[]);
        let law = "`tokio` is used only by serve";
        check_manifest("engine", "[dev-dependencies]\ntokio = \"1\"\n", &[(2, law)]);
    }

    #[test]
    fn an_unknown_crate_fails() {
        check_manifest("utils", "[dependencies]\n", &[(1, "crate `utils` is not in the table of arrows")]);
    }

    #[test]
    fn the_map_says_what_the_table_says() {
        let tree = ["crates/", "crates/tensor/", "crates/kernels/", "crates/cli/"].map(String::from);
        let check_text = |text: &str, expected: &[usize]| {
            let got: Vec<usize> = check_map("ARCHITECTURE.md", text, &tree).iter().map(|v| v.line).collect();
            assert_eq!(got, expected, "{text}");
        };
        let ground = "| `tensor` | nothing | x |\n| `kernels` | `tensor` | x |\n";
        check_text(&format!("{ground}| `cli` | `tensor`, `kernels` | x |\n"), &[]);
        check_text(&format!("{ground}| `cli` | `tensor` | x |\n"), &[3]);
        check_text(ground, &[1]);
    }

    #[test]
    fn the_table_names_only_crates_that_stand_below() {
        for (index, row) in TABLE.iter().enumerate().filter(|(_, row)| row.krate != "xtask") {
            for used in row.uses {
                assert!(TABLE[..index].iter().any(|below| below.krate == *used), "{} -> {used}", row.krate);
            }
        }
    }
}
