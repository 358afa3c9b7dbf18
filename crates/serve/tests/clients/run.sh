#!/usr/bin/env bash
# Tests a server by the clients that people use: OpenAI's for Python and JavaScript, and LangChain.
#
#   cargo build -p kanana && crates/serve/tests/clients/run.sh target/debug/kanana
#
# Installs the clients in a temporary folder, starts the program on a free port, and ends it. What cannot be installed
# because a registry is out of reach is skipped, and said so. Exit code: 0 when nothing failed.
set -euo pipefail
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

[ $# -eq 1 ] || { echo "usage: $0 PROGRAM" >&2; exit 2; }
program=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
server=

finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

skip() {
    echo "skipped: $1"
    return 1
}

# Whether a registry can be reached is tried with one client; a failure after that is a failure.
install_python() {
    local pip=$work/venv/bin/pip openai
    openai=$(grep -m1 ^openai "$here/python/requirements.txt")
    python3 -m venv "$work/venv" >/dev/null 2>&1 || skip "Python's clients, no python3 with venv" || return
    "$pip" download -q --no-deps --retries 1 -d "$work/wheels" "$openai" >/dev/null 2>&1 ||
        skip "Python's clients, the package index is out of reach" || return
    "$pip" install -q --find-links "$work/wheels" -r "$here/python/requirements.txt" || exit 1
}

install_node() {
    command -v npm >/dev/null || skip "JavaScript's client, no npm" || return
    npm view --fetch-retries=0 openai version >/dev/null 2>&1 ||
        skip "JavaScript's client, npm's registry is out of reach" || return
    cp -r "$here/node" "$work/node" # modules are looked for beside the script
    (cd "$work/node" && npm ci --silent --no-audit --no-fund) || exit 1
}

python=yes node=yes
install_python || python=no
install_node || node=no
[ "$python$node" != nono ] || exit 0

# The very small model knows no tools; Kanana's own template shows them to it.
export KANANA_API_KEY=sk-clients-$RANDOM$RANDOM
KANANA_API_KEYS=$KANANA_API_KEY "$program" serve --model pico --port 0 --grace 5 \
    --chat-template "$here/../../../tokenizer/src/template/kanana.jinja" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 100); do
    url=$(grep -om1 'http://127[0-9.:]*' "$work/log" || true)
    [ -z "$url" ] && kill -0 "$server" 2>/dev/null || break
    sleep 0.2
done
[ -n "$url" ] || { echo "the server did not start:" >&2; cat "$work/log" >&2; exit 1; }
export KANANA_BASE_URL=$url/v1

failed=0
if [ $python = yes ]; then
    (cd "$here/python" && "$work/venv/bin/python" -m pytest -q -p no:cacheprovider --tb=short) || failed=1
fi
if [ $node = yes ]; then
    node --test --test-reporter=spec "$work/node/test_openai.mjs" || failed=1
fi

kill "$server"
wait "$server" || { echo "the server ended with code $?" >&2; failed=1; }
server=
[ $failed = 0 ] || tail -n 20 "$work/log" >&2
exit $failed
