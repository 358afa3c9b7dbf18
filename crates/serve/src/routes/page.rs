//! The page at `/`: one document with everything in it, put together from the files below `page/`.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;

/// Each file takes the place of its name in double braces in `index.html`.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let files = [
        ("style.css", include_str!("../../page/style.css")),
        ("text.js", include_str!("../../page/text.js")),
        ("dom.js", include_str!("../../page/dom.js")),
        ("markdown.js", include_str!("../../page/markdown.js")),
        ("store.js", include_str!("../../page/store.js")),
        ("stream.js", include_str!("../../page/stream.js")),
        ("settings.js", include_str!("../../page/settings.js")),
        ("message.js", include_str!("../../page/message.js")),
        ("app.js", include_str!("../../page/app.js")),
    ];
    let page = include_str!("../../page/index.html").to_owned();
    files.iter().fold(page, |page, (name, text)| page.replace(&format!("{{{{{name}}}}}"), text))
});

/// The page. Its own policy lets it load nothing from elsewhere, and nobody may frame it.
pub async fn handle() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE.as_str())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;

    /// The text between two marks, and whether the policy lets it run.
    fn check(from: &str, to: &str, directive: &str) {
        let start = PAGE.find(from).unwrap() + from.len();
        let text = &PAGE[start..start + PAGE[start..].find(to).unwrap()];
        let allowed = format!("{directive} 'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
        assert!(PAGE.contains(&allowed), "run `npm run csp` in crates/serve/page/test: {allowed}");
    }

    #[test]
    fn the_policy_lets_this_style_and_this_script_run() {
        assert!(!PAGE.contains("{{"), "every file has its place");
        check("<style>", "</style>", "style-src");
        check("<script type=\"module\">", "</script>", "script-src");
    }
}
