//! What a person types for a model: `OWNER/NAME`, or `OWNER/NAME@REVISION`; for a data set the same behind `datasets/`.

use std::fmt;

use anyhow::Result;

use crate::hints::failure;

/// A model or a data set of the Hub at a revision: a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryId {
    pub kind: Kind,
    pub repository: String, // OWNER/NAME
    pub revision: String,
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// As addresses and folders of the cache have it.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

impl RepositoryId {
    /// The path of its pages: models stand at the root.
    pub fn page(&self) -> String {
        match self.kind {
            Kind::Model => self.repository.clone(),
            Kind::Dataset => format!("datasets/{}", self.repository),
        }
    }

    /// Checks that the parts can be used in addresses and in paths.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, name) = match text.strip_prefix("datasets/") {
            Some(name) => (Kind::Dataset, name),
            None => (Kind::Model, text),
        };
        let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
        let is_name = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty()
                && name.chars().all(allowed)
                && !name.starts_with(['.', '-'])
                && !name.contains("--")
        };
        let owner_and_name =
            repository.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name));
        if !owner_and_name || !revision.split('/').all(is_name) {
            return Err(failure(
                format_args!("{text:?} is not the name of a model or data set"),
                "write OWNER/NAME or OWNER/NAME@REVISION, such as kakaocorp/kanana-1.5-2.1b-instruct-2505, or datasets/OWNER/NAME",
            ));
        }
        Ok(RepositoryId { kind, repository: repository.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.page())?;
        match &*self.revision {
            "main" => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(&str, &str)>) {
        let parsed = RepositoryId::parse(text).ok();
        let page = parsed.as_ref().map(RepositoryId::page);
        let parsed = page.as_deref().zip(parsed.as_ref().map(|id| &*id.revision));
        assert_eq!(parsed, expected, "{text}");
    }

    #[test]
    fn ids() {
        check("owner/name", Some(("owner/name", "main")));
        check("o/n.1_2-b@v1.0", Some(("o/n.1_2-b", "v1.0")));
        check("o/n@refs/pr/1", Some(("o/n", "refs/pr/1")));
        check("datasets/o/n@v1", Some(("datasets/o/n", "v1")));
        for text in [
            "",
            "name",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@..",
            "a/b@x/../../y",
            "a/b c",
            "a/b@\\",
            "a--b/c",
        ] {
            check(text, None);
        }
    }
}
