//! API keys: several, from a file that can be read again, compared in constant time.

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use crate::error::{ApiError, ApiResult, ServeError};

/// The keys that open the server; none: it is open.
#[derive(Debug)]
pub struct Keys {
    fixed: Vec<String>,
    file: Option<PathBuf>,
    from_file: RwLock<Vec<String>>,
}

impl Keys {
    /// Keys that were given, and those of a file: one a line, `#` begins a comment.
    ///
    /// Errors: the file cannot be read or holds no key.
    pub fn new(fixed: Vec<String>, file: Option<PathBuf>) -> Result<Self, ServeError> {
        let keys = Keys { fixed, file, from_file: RwLock::new(Vec::new()) };
        keys.reload()?;
        Ok(keys)
    }

    /// Reads the file again; on an error the keys stay as they were.
    ///
    /// Errors: as [`Keys::new`].
    pub fn reload(&self) -> Result<(), ServeError> {
        let Some(file) = &self.file else { return Ok(()) };
        let problem = |problem: String| ServeError::File { path: file.display().to_string(), problem };
        let text = std::fs::read_to_string(file).map_err(|error| problem(error.to_string()))?;
        let key = |line: &str| {
            // Keys may hold a `#`: a comment begins a line, or follows white space.
            let comment = line.find(" #").or_else(|| line.find("\t#")).unwrap_or(line.len());
            line[..comment].trim().to_owned()
        };
        let lines = text.lines().map(key).filter(|line| !line.starts_with('#'));
        let keys: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
        if keys.is_empty() {
            return Err(problem("holds no API key; write one a line".to_owned()));
        }
        *self.from_file.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Errors: 401 without a key that is known.
    pub fn check(&self, headers: &HeaderMap) -> ApiResult<()> {
        let from_file = self.from_file.read().unwrap_or_else(PoisonError::into_inner);
        if self.fixed.is_empty() && from_file.is_empty() {
            return Ok(());
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let scheme =
            |value: &'_ str| value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "));
        let Some(given) = bearer.filter(|value| scheme(value)).map(|value| &value[7..]) else {
            return Err(ApiError::unauthorized("an API key is needed: send `Authorization: Bearer KEY`"));
        };
        // Every key is compared, so that the time tells nothing of which came close.
        let known = self.fixed.iter().chain(from_file.iter());
        let matches =
            known.fold(0u8, |found, key| found | key.as_bytes().ct_eq(given.as_bytes()).unwrap_u8());
        match matches {
            0 => Err(ApiError::unauthorized("this API key is not known here")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &Keys, authorization: Option<&str>, opens: bool) {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        assert_eq!(keys.check(&headers).is_ok(), opens, "{authorization:?}");
    }

    #[test]
    fn only_known_keys_open() {
        let keys = Keys::new(vec!["alpha".into(), "beta".into()], None).unwrap();
        check(&keys, Some("Bearer beta"), true);
        check(&keys, Some("Bearer bet"), false);
        check(&keys, Some("Bearer betaa"), false);
        check(&keys, Some("Bearer "), false);
        check(&keys, Some("Basic beta"), false);
        check(&keys, None, false);
        check(&Keys::new(Vec::new(), None).unwrap(), None, true);
    }

    #[test]
    fn a_file_is_read_again_and_a_bad_one_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "# ours\n first \nsecond # of a friend\n").unwrap();
        let keys = Keys::new(Vec::new(), Some(file.path().into())).unwrap();
        check(&keys, Some("Bearer second"), true);
        std::fs::write(&file, "third#and its rest\n").unwrap();
        keys.reload().unwrap();
        check(&keys, Some("Bearer second"), false);
        check(&keys, Some("Bearer third"), false);
        check(&keys, Some("bearer third#and its rest"), true);
        std::fs::write(&file, "# none\n").unwrap();
        assert!(keys.reload().is_err());
        check(&keys, Some("Bearer third#and its rest"), true);
    }
}
