//! Which files of a repository are fetched.

use anyhow::Result;

use super::cache::is_safe_path;
use super::id::{Kind, RepositoryId};
use crate::hints::failure;

/// What this program reads, and what its users should.
const DEFAULT: [&str; 7] =
    ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "README.md", "LICENSE*", "NOTICE*"];

/// What is fetched of a data set.
const DATA: [&str; 8] =
    ["*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv", "*.jsonl.gz", "README.md", "LICENSE*"];

/// Formats that run code when they are loaded.
const PICKLES: [&str; 6] = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"];

/// The files to fetch, by the patterns or by default, never a pickle.
///
/// Errors: nothing is left to fetch, or all the weights are pickles.
pub fn select(id: &RepositoryId, files: &[String], include: &[String]) -> Result<Vec<String>> {
    let is_pickle = |name: &str| PICKLES.iter().any(|pattern| matches(pattern, name));
    let is_wanted = |name: &str| match include {
        // Weights in folders are other exports of the same model, and consolidated files are copies of the shards.
        [] if name.ends_with(".safetensors") => !name.contains('/') && !name.starts_with("consolidated"),
        [] => DEFAULT.iter().any(|pattern| matches(pattern, name)),
        patterns => patterns.iter().any(|pattern| matches(pattern, name)),
    };
    let is_wanted = |name: &str| match id.kind {
        Kind::Dataset if include.is_empty() => DATA.iter().any(|pattern| matches(pattern, name)),
        _ => is_wanted(name),
    };
    let wanted: Vec<String> = files
        .iter()
        .filter(|name| is_wanted(name) && !is_pickle(name) && is_safe_path(name))
        .cloned()
        .collect();

    let has_weights = id.kind == Kind::Dataset || wanted.iter().any(|name| name.ends_with(".safetensors"));
    if let (true, false, Some(pickle)) =
        (include.is_empty(), has_weights, files.iter().find(|file| is_pickle(file)))
    {
        return Err(failure(
            format_args!(
                "{id} has its weights as pickles only ({pickle}), and reading a pickle executes code"
            ),
            "look for a safetensors version of the model (often a pull request: OWNER/NAME@refs/pr/N)",
        ));
    }
    if wanted.is_empty() {
        return Err(failure(
            format_args!("none of the {} files of {id} is wanted", files.len()),
            "check the --include patterns; pickles are never fetched",
        ));
    }
    Ok(wanted)
}

/// Whether a file of a model belongs to its weights and configuration wherever they go: tokenizer, chat template, sampling
/// defaults, model card, licence.
pub fn is_companion(name: &str) -> bool {
    let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    !is_weights && name != "config.json" && DEFAULT.iter().any(|pattern| matches(pattern, name))
}

/// Whether a name matches a pattern in which `*` is any text, slashes included, and `?` any character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut retry = None; // after the last star: its place, and where its text may end next
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            retry = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((star, end)) = retry {
            retry = Some((star, end + 1));
            (p, n) = (star + 1, end + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], include: &[&str], expected: Result<&[&str], &str>) {
        let id = RepositoryId::parse("o/n").unwrap();
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        match (select(&id, &owned(files), &owned(include)), expected) {
            (Ok(selected), Ok(expected)) => assert_eq!(selected, expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_is_fetched() {
        let files = [
            "README.md",
            "model.safetensors",
            "tokenizer.model",
            "1_Pooling/config.json",
            "pytorch_model.bin",
            "original/consolidated.00.pth",
            "consolidated.safetensors",
            "onnx/model.safetensors",
            "image.png",
            "../../escape.json",
        ];
        check(
            &files,
            &[],
            Ok(&["README.md", "model.safetensors", "tokenizer.model", "1_Pooling/config.json"]),
        );
        check(&files, &["*.png", "on*"], Ok(&["onnx/model.safetensors", "image.png"]));
        check(&files, &["*.bin"], Err("none of the 10 files"));
        check(&["config.json", "pytorch_model.bin"], &[], Err("pickles only (pytorch_model.bin)"));
    }

    #[test]
    fn companions_are_neither_weights_nor_configuration() {
        for name in
            ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json", "LICENSE"]
        {
            assert!(is_companion(name), "{name}");
        }
        for name in
            ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.py"]
        {
            assert!(!is_companion(name), "{name}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.json", "a/b.json", true),
            ("*.json", "json", false),
            ("a*b*c", "a__b_bc", true),
            ("a*b*c", "a__b_b", false),
            ("?", "한", true),
            ("", "", true),
            ("**", "", true),
            ("a", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
