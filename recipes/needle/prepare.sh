#!/bin/sh
# Makes what the recipe of the needle model reads, below the folder WORK:
#   recipes/needle/prepare.sh WORK [PROGRAM]
# The documents are generated: a haystack, needles in it, and the needles once more at the end.
set -eu
work=$1 kanana=${2:-kanana}
here=$(dirname "$0")
mkdir -p "$work/shards"
documents() { # name, documents, least and most sentences, needles at most, seed
  cargo run --quiet -p kanana-eval --example needle_documents -- en "$2" "$3" "$4" "$5" "$6" > "$work/$1.jsonl"
}
documents short 16000 0 3 1 1
documents long 8000 3 22 1 2
"$kanana" tokenizer train --vocab-size 1024 --input "$work/short.jsonl" "$work/long.jsonl" --out "$work/tokenizer" \
  --chat-template "$here/../pico/chat_template.jinja"
for name in short long; do
  "$kanana" data shard --tokenizer "$work/tokenizer" --out "$work/shards/$name" --input "$work/$name.jsonl"
done
