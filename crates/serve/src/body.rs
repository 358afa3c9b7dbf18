//! A request's JSON to its type, with errors that name the field: nothing that a client sends is silently dropped.

use std::error::Error;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tower_http::timeout::TimeoutError;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::error::{ApiError, ApiResult};

/// What is said of a body of more than [`crate::AppOptions::max_body`] bytes.
pub const TOO_LARGE: &str = "the body is larger than the server allows";

/// The fields that a type did not take: at the end of every request type, flattened.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rest(Map<String, Value>);

/// A request type, which can say what was left over.
pub trait Api: DeserializeOwned + ToSchema + PartialSchema {
    /// The fields that the type does not have.
    fn rest(&self) -> &Rest;
}

/// A body that is not whole by then is given up, however steadily it drips.
const WHOLE_BODY: Duration = Duration::from_secs(120);

/// Extracts a checked body.
pub struct Body<T>(pub T);

impl<T: Api, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let late = || ApiError::of_status(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
        let read = tokio::time::timeout(WHOLE_BODY, Bytes::from_request(request, state)).await;
        let bytes = read.map_err(|_| late())?.map_err(|rejection| {
            if is_late(&rejection) {
                return late();
            }
            let message = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => TOO_LARGE.to_owned(),
                _ => rejection.body_text(),
            };
            ApiError::of_status(rejection.status(), message)
        })?;
        parse(&bytes).map(Body)
    }
}

/// Whether a body was not read because it did not come in time.
fn is_late(rejection: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(rejection), |&error| error.source());
    causes.any(|error| error.is::<TimeoutError>())
}

/// Errors: no JSON object, a field of the wrong type, an unknown field; each names it.
pub fn parse<T: Api>(bytes: &[u8]) -> ApiResult<T> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::invalid("", format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = &value else {
        return Err(ApiError::invalid("", "the body must be a JSON object"));
    };
    let parsed = read::<T>(&value).map_err(|error| {
        let param = culprit::<T>(fields, &error);
        let named = if param.is_empty() { String::new() } else { format!("{param}: ") };
        ApiError::invalid(param, format!("{named}{error}"))
    })?;
    match parsed.rest().0.keys().next() {
        None => Ok(parsed),
        Some(unknown) => {
            let mut schemas = Vec::new();
            T::schemas(&mut schemas);
            let mut names = Vec::new();
            names_of(&T::schema(), &schemas, &mut names);
            let near = |name: &&String| strsim::damerau_levenshtein(name, unknown);
            let known = names.iter().filter(|_| unknown.len() <= LONGEST_NAME);
            let nearest = known.min_by_key(near).filter(|name| near(name) <= 3);
            let hint = nearest.map_or(String::new(), |name| format!("; did you mean {name}?"));
            let mut error =
                ApiError::invalid(unknown, format!("{unknown} is no field of this request{hint}"));
            error.body.code = Some("unknown_parameter");
            Err(error)
        }
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| error.to_string())
}

/// Fields among which the one at fault is looked for.
const MOST_TRIED: usize = 64;
/// Bytes of a field's name for which a known one is looked for.
const LONGEST_NAME: usize = 64;

/// The field whose absence changes the error: flattened types lose the place where they failed. That a field is missing
/// is only a change where no other has one.
fn culprit<T: DeserializeOwned>(fields: &Map<String, Value>, error: &str) -> String {
    const MISSING: &str = "missing field `";
    if let Some(missing) = error.strip_prefix(MISSING).and_then(|rest| rest.split('`').next()) {
        return missing.to_owned();
    }
    if fields.len() > MOST_TRIED {
        return String::new(); // no honest request, and every try reads all of it
    }
    let without = |name: &String| {
        let mut fields = fields.clone();
        fields.remove(name);
        read::<T>(&Value::Object(fields)).err()
    };
    let changes = |name: &&String| without(name).is_none_or(|other| other != error);
    let cures =
        |name: &&String| without(name).is_none_or(|other| other != error && !other.starts_with(MISSING));
    fields.keys().find(cures).or_else(|| fields.keys().find(changes)).cloned().unwrap_or_default()
}

/// The names of a schema's properties, those of the types flattened into it included.
fn names_of(schema: &RefOr<Schema>, known: &[(String, RefOr<Schema>)], names: &mut Vec<String>) {
    match schema {
        RefOr::T(Schema::Object(object)) => names.extend(object.properties.keys().cloned()),
        RefOr::T(Schema::AllOf(all)) => all.items.iter().for_each(|item| names_of(item, known, names)),
        RefOr::Ref(reference) => {
            let name = reference.ref_location.rsplit('/').next().unwrap_or_default();
            let found = known.iter().find(|(known, _)| known == name);
            found.into_iter().for_each(|(_, schema)| names_of(schema, known, names));
        }
        RefOr::T(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::chat::ChatCompletionRequest;

    fn check(body: &str, param: &str, message: &str) {
        let error = parse::<ChatCompletionRequest>(body.as_bytes()).expect_err(body);
        assert_eq!(error.body.param.as_deref().unwrap_or(""), param, "{body}: {error:?}");
        assert!(error.body.message.contains(message), "{body}: {error:?}");
    }

    #[test]
    fn errors_name_the_field() {
        check("{", "", "not JSON");
        check("[]", "", "must be a JSON object");
        check("{}", "messages", "missing field");
        check(r#"{"messages": 3}"#, "messages", "expected a sequence");
        check(r#"{"messages": [], "temperature": "hot"}"#, "temperature", "expected f32");
        check(r#"{"messages": [], "stop": 3}"#, "stop", "a string or a list of strings");
        check(r#"{"messages": [], "temprature": 1}"#, "temprature", "did you mean temperature?");
        check(r#"{"messages": [], "max_token": 1}"#, "max_token", "did you mean max_tokens?");
        check(r#"{"messages": [], "xyzzy": 1}"#, "xyzzy", "is no field");
        check(r#"{"messages": [], "tool_choice": "maybe"}"#, "tool_choice", "expected none, auto, required");
    }

    #[test]
    fn a_body_of_many_fields_is_refused_at_once() {
        let fields: String = (0..50_000).map(|i| format!("\"k{i}\": 1, ")).collect();
        let started = std::time::Instant::now();
        check(&format!("{{{fields}\"messages\": 3}}"), "", "expected a sequence");
        check(
            &format!("{{\"messages\": [], \"{}\": 1}}", "x".repeat(2_000_000)),
            &"x".repeat(2_000_000),
            "no field",
        );
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        let body = br#"{"messages": [], "temperature": null, "tools": null, "stop": null, "audio": null}"#;
        assert!(parse::<ChatCompletionRequest>(body).unwrap().sampling.temperature.is_none());
    }
}
