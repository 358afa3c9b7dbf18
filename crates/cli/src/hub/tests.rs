use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::server::{COMMIT, Files, Reply, Request, Server, etag, hub_of};
use super::*;

fn files() -> Files {
    let weights: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let small = [
        ("config.json", "{}"),
        ("README.md", "# 카나나"),
        ("1_Pooling/config.json", "{\"a\": 1}"),
        ("x.bin", ""),
    ];
    let mut files: Files = small.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into();
    files.insert("model.safetensors".to_owned(), weights);
    files
}

fn hub(url: &str, home: &Path, more: &[(&str, &str)]) -> Hub {
    let home = home.to_str().unwrap();
    let variable = |name: &str| {
        let all = [("HF_ENDPOINT", url), ("HF_HOME", home)];
        all.iter().chain(more).rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let mut hub = Hub::from_variables(&variable).unwrap();
    hub.client.first_wait = Duration::from_millis(1);
    hub
}

fn pull(hub: &Hub) -> Result<PathBuf> {
    hub.pull("o/n", &[], &Progress::on_stderr())
}

/// Pulling fails, and message and hint have these parts.
fn check_error(result: Result<PathBuf>, message: &str, hint: &str) {
    let error = result.unwrap_err();
    let (got, structure) = (format!("{error:#}"), format!("{error:#?}"));
    assert!(got.contains(message), "{got:?} does not say {message:?}");
    assert!(structure.contains(hint), "{structure} does not say {hint:?}");
}

/// Pulling from a Hub that answers everything so fails, and message and hint have these parts.
fn check_answer(reply: Reply, variables: &[(&str, &str)], message: &str, hint: &str) {
    let home = TempDir::new().unwrap();
    let server = Server::start(move |_| reply.clone());
    check_error(pull(&hub(&server.url, home.path(), variables)), message, hint);
}

fn check_snapshot(folder: &Path, expected: &[&str]) {
    let files = files();
    for name in expected {
        assert!(fs::read(folder.join(name)).unwrap() == files[*name], "{name}");
    }
}

const FETCHED: [&str; 4] = ["config.json", "README.md", "1_Pooling/config.json", "model.safetensors"];

fn partial(home: &Path, name: &str) -> PathBuf {
    home.join("hub/models--o--n/blobs").join(format!("{}.incomplete", etag(name, &files()[name])))
}

#[test]
fn everything_once_in_the_layout_of_the_python_tools() {
    let home = TempDir::new().unwrap();
    let server = Server::start(|request| hub_of(&files(), request));
    let hub = hub(&server.url, home.path(), &[]);
    assert_eq!(hub.cached("o/n"), None);
    let folder = pull(&hub).unwrap();
    check_snapshot(&folder, &FETCHED);

    let repository = home.path().join("hub/models--o--n");
    assert_eq!(folder, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert!(!folder.join("x.bin").exists());
    assert_eq!(fs::read_dir(repository.join("blobs")).unwrap().count(), FETCHED.len());
    #[cfg(unix)]
    for (name, up) in [("model.safetensors", "../.."), ("1_Pooling/config.json", "../../..")] {
        let target = fs::read_link(folder.join(name)).unwrap();
        assert_eq!(target, PathBuf::from(format!("{up}/blobs/{}", etag(name, &files()[name]))));
    }
    for id in ["o/n", "o/n@main", &format!("o/n@{COMMIT}")] {
        assert_eq!(hub.cached(id), Some(folder.clone()));
    }
    assert_eq!(hub.cached("o/n@other"), None);

    assert_eq!(pull(&hub).unwrap(), folder);
    assert_eq!(server.requests("GET", "/model.safetensors").len(), 1);
}

#[test]
fn a_data_set_has_addresses_and_a_folder_of_its_own() {
    let home = TempDir::new().unwrap();
    let files: Files = ["main/test.parquet", "README.md", "x.bin", "loader.py"]
        .map(|name| (name.to_owned(), name.as_bytes().to_vec()))
        .into();
    let served = files.clone();
    let server = Server::start(move |request| hub_of(&served, request));
    let hub = hub(&server.url, home.path(), &[]);
    let folder = hub.pull("datasets/o/n@v1", &[], &Progress::on_stderr()).unwrap();
    for name in ["main/test.parquet", "README.md"] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), files[name], "{name}");
    }
    assert!(!folder.join("x.bin").exists() && !folder.join("loader.py").exists());
    assert_eq!(folder, home.path().join("hub/datasets--o--n/snapshots").join(COMMIT));
    assert_eq!(server.requests("GET", "/api/datasets/o/n/revision/v1").len(), 1);
    let path = format!("/datasets/o/n/resolve/{COMMIT}/main/test.parquet");
    assert_eq!(server.requests("GET", &path).len(), 1);
}

#[test]
fn only_what_is_included() {
    let home = TempDir::new().unwrap();
    let server = Server::start(|request| hub_of(&files(), request));
    let hub = hub(&server.url, home.path(), &[]);
    let folder = hub.pull("o/n", &["*.md".to_owned()], &Progress::on_stderr()).unwrap();
    assert_eq!(hub.cached("o/n"), None);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    assert_eq!(server.requests("GET", "/README.md").len(), 1);
}

/// A Hub that cuts the first `times` answers with weights after `bytes`.
fn cutting(times: usize, bytes: usize) -> Server {
    let cuts = AtomicUsize::new(0);
    Server::start(move |request| {
        let mut reply = hub_of(&files(), request);
        let is_content = request.method == "GET" && request.path.ends_with("/model.safetensors");
        if is_content && cuts.fetch_add(1, Ordering::SeqCst) < times {
            reply.cut = Some(bytes);
        }
        reply
    })
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    let requests = server.requests("GET", "/model.safetensors");
    requests.into_iter().map(|mut request| request.headers.remove("range")).collect()
}

#[test]
fn a_cut_connection_is_continued() {
    let home = TempDir::new().unwrap();
    // More cuts than failures are borne, but each brings something.
    let server = cutting(7, 100_000);
    check_snapshot(&pull(&hub(&server.url, home.path(), &[])).unwrap(), &FETCHED);
    let expected = (0..8).map(|i| (i > 0).then(|| format!("bytes={}-", i * 100_000)));
    assert_eq!(ranges(&server), expected.collect::<Vec<_>>());
}

#[test]
fn an_interrupted_download_is_continued_by_the_next() {
    let home = TempDir::new().unwrap();
    let server = cutting(usize::MAX, 0);
    fs::create_dir_all(partial(home.path(), "model.safetensors").parent().unwrap()).unwrap();
    fs::write(partial(home.path(), "model.safetensors"), &files()["model.safetensors"][..700_000]).unwrap();
    let first = pull(&hub(&server.url, home.path(), &[]));
    check_error(
        first,
        "the connection was lost again and again while fetching model.safetensors",
        "run it again",
    );
    assert_eq!(fs::metadata(partial(home.path(), "model.safetensors")).unwrap().len(), 700_000);
    assert_eq!(hub(&server.url, home.path(), &[]).cached("o/n"), None);

    let server = cutting(0, 0);
    check_snapshot(&pull(&hub(&server.url, home.path(), &[])).unwrap(), &FETCHED);
    assert_eq!(ranges(&server), [Some("bytes=700000-".to_owned())]);
}

/// What an earlier download left is of no use, but the file arrives all the same, in so many requests.
fn check_useless_partial(left: &[u8], answer: fn(&Request) -> Reply, requests: usize) {
    let home = TempDir::new().unwrap();
    let server = Server::start(answer);
    fs::create_dir_all(partial(home.path(), "model.safetensors").parent().unwrap()).unwrap();
    fs::write(partial(home.path(), "model.safetensors"), left).unwrap();
    check_snapshot(&pull(&hub(&server.url, home.path(), &[])).unwrap(), &FETCHED);
    assert_eq!(ranges(&server).len(), requests);
}

#[test]
fn a_server_without_ranges_sends_all_of_it() {
    let answer = |request: &Request| {
        let mut request = request.clone();
        request.headers.remove("range");
        hub_of(&files(), &request)
    };
    check_useless_partial(&[1; 1000], answer, 1);
}

#[test]
fn a_server_that_refuses_the_range_is_asked_for_all_of_it() {
    let answer = |request: &Request| match request.headers.contains_key("range") {
        true => Reply::status(416),
        false => hub_of(&files(), request),
    };
    check_useless_partial(&[1; 1000], answer, 2);
}

#[test]
fn a_longer_partial_file_is_dropped() {
    check_useless_partial(&vec![1; 2_000_000], |request| hub_of(&files(), request), 1);
}

#[test]
fn a_passing_error_of_the_server_is_borne() {
    let home = TempDir::new().unwrap();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.path.ends_with("/model.safetensors") {
        true if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) => Reply::status(503),
        _ => hub_of(&files(), request),
    });
    check_snapshot(&pull(&hub(&server.url, home.path(), &[])).unwrap(), &FETCHED);
}

/// A file whose bytes change on the way is refused by name and removed.
fn check_damage(name: &'static str, damage: fn(&mut Vec<u8>), message: &str) {
    let home = TempDir::new().unwrap();
    let server = Server::start(move |request| {
        let mut reply = hub_of(&files(), request);
        if request.method == "GET" && request.path.ends_with(&format!("{COMMIT}/{name}")) {
            damage(&mut reply.body);
            reply.headers.retain(|(name, _)| name != "Content-Length");
        }
        reply
    });
    let hub = hub(&server.url, home.path(), &[]);
    check_error(pull(&hub), &format!("{name} came damaged and was removed: it is {message}"), "run it again");
    assert!(!partial(home.path(), name).exists());
    assert_eq!(hub.cached("o/n"), None);
}

#[test]
fn a_wrong_digest_is_refused() {
    check_damage("model.safetensors", |body| body[123_456] ^= 1, "of digest ");
    check_damage("config.json", |body| body[0] = b'[', "of digest ");
}

#[test]
fn a_wrong_length_is_refused() {
    check_damage("model.safetensors", |body| body.push(0), "1200001 bytes long, expected 1200000");
}

#[test]
fn refused_without_a_token() {
    let message = "the Hub gives o/n to nobody without a token";
    check_answer(Reply::status(401), &[], message, "set HF_TOKEN");
}

#[test]
fn refused_with_a_token() {
    let token = [("HF_TOKEN", "hf_x")];
    check_answer(
        Reply::status(401),
        &token,
        "does not accept the token for o/n",
        "check the name and HF_TOKEN",
    );
    check_answer(Reply::status(403), &token, "no access to o/n: it is gated", "accept the licence");
}

#[test]
fn not_there() {
    check_answer(Reply::status(404), &[], "the Hub has no o/n", "check the name");
    let revision = Reply::status(404).with("X-Error-Code", "RevisionNotFound");
    check_answer(revision, &[], "o/n has no revision main", "look for branches");
}

#[test]
fn not_a_hub() {
    check_answer(Reply::status(200), &[], "does not answer as a Hub does", "check HF_ENDPOINT");
    let body = br#"{"sha": "../../../../etc", "siblings": []}"#.to_vec();
    check_answer(
        Reply { body, ..Reply::status(200) },
        &[],
        "does not answer as a Hub does",
        "check HF_ENDPOINT",
    );
    check_answer(Reply::status(302).with("Location", "/"), &[], "without end", "check HF_ENDPOINT");
}

#[test]
fn an_etag_cannot_leave_the_folder() {
    let home = TempDir::new().unwrap();
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::status(200).with("ETag", "\"../../../escape\""),
        _ => hub_of(&files(), request),
    });
    check_error(
        pull(&hub(&server.url, home.path(), &[])),
        "does not answer as a Hub does",
        "check HF_ENDPOINT",
    );
}

#[test]
fn nobody_listens() {
    let home = TempDir::new().unwrap();
    // A server that is gone leaves a port where nobody listens.
    let url = Server::start(|_| Reply::default()).url.clone();
    check_error(pull(&hub(&url, home.path(), &[])), "cannot reach 127.0.0.1", "check the connection");
}

#[test]
fn offline_with_and_without_a_cached_model() {
    let home = TempDir::new().unwrap();
    let server = Server::start(|request| hub_of(&files(), request));
    let folder = pull(&hub(&server.url, home.path(), &[])).unwrap();
    let count = server.requests("GET", "").len();
    let offline = hub(&server.url, home.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(pull(&offline).unwrap(), folder);
    check_error(
        offline.pull("o/other", &[], &Progress::on_stderr()),
        "o/other is not in",
        "unset HF_HUB_OFFLINE",
    );
    assert_eq!(server.requests("GET", "").len(), count);
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("token"), "hf_secret\n").unwrap();
    // Another port is another host.
    let storage = Server::start(|request| hub_of(&files(), request));
    let storage_url = storage.url.clone();
    let server = Server::start(move |request| {
        let reply = hub_of(&files(), request);
        match request.path.strip_prefix("/moved") {
            None if request.path.starts_with("/o/n/") => {
                Reply::status(307).with("Location", format!("/moved{}", request.path))
            }
            Some(path) if path.ends_with(".safetensors") => {
                let headers = reply.headers.into_iter().filter(|(name, _)| name.starts_with("X-"));
                let found = Reply { headers: headers.collect(), ..Reply::status(302) };
                found.with("X-Linked-Size", 1_200_000).with("Location", format!("{storage_url}{path}"))
            }
            _ => reply,
        }
    });
    check_snapshot(&pull(&hub(&server.url, home.path(), &[])).unwrap(), &FETCHED);
    let at_hub = server.requests("GET", "");
    assert!(at_hub.iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"));
    let at_storage = storage.requests("GET", "/model.safetensors");
    assert_eq!(at_storage.len(), 1);
    assert!(!at_storage[0].headers.contains_key("authorization"));
}

#[cfg(target_os = "linux")]
#[test]
fn disk_full() {
    let home = TempDir::new().unwrap();
    let server = Server::start(|request| hub_of(&files(), request));
    let partial = partial(home.path(), "model.safetensors");
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    check_error(pull(&hub(&server.url, home.path(), &[])), "No space left on device", "free some space");
}

#[test]
fn an_endpoint_must_be_an_address() {
    for endpoint in ["huggingface.co", "ftp://host", "http://"] {
        let variable =
            |name: &str| (name == "HF_ENDPOINT").then(|| endpoint.to_owned()).or(Some("/h".to_owned()));
        let error = Hub::from_variables(&variable).err().unwrap();
        assert!(error.to_string().contains("expected an http or https address"), "{error}");
    }
}
