#!/bin/sh
# Makes what the recipes of pico read: its tokenizer and its token shards, below the folder of the second argument.
#   recipes/pico/prepare.sh CORPORA WORK [PROGRAM]
# CORPORA holds ko/, en/, instruct/ and pairs/ as JSONL; the model card says where each comes from, and its licence.
set -eu
corpora=$1 work=$2 kanana=${3:-kanana}
here=$(dirname "$0")
mkdir -p "$work/shards" "$work/held-out"

high_ko="$corpora/ko/ko_pydocs.jsonl.zst $corpora/ko/ko_react.jsonl.zst $corpora/ko/ko_rustbook.jsonl.zst $corpora/ko/ko_klue_sentences.jsonl.zst"
high_en="$corpora/en/en_gutenberg.jsonl.zst $corpora/en/en_react.jsonl.zst $corpora/en/en_pydocs.jsonl.zst"
broad_ko="$corpora/ko/ko_law.jsonl.zst $corpora/ko/ko_vsdocs.jsonl.zst $corpora/ko/ko_cppdocs.jsonl.zst"
broad_en="$corpora/en/en_cppdocs.jsonl.zst"

# shellcheck disable=SC2086
"$kanana" tokenizer train --vocab-size 8192 --single-digits --max-bytes 2500000 --out "$work/tokenizer" \
  --chat-template "$here/chat_template.jinja" --input $high_ko $high_en $broad_ko $broad_en

shard() { # name, one in how many is held out, then the arguments
  name=$1 every=$2
  shift 2
  "$kanana" data shard --tokenizer "$work/tokenizer" --out "$work/shards/$name" \
    --held-out "$work/held-out/$name" --every "$every" "$@"
}
# shellcheck disable=SC2086
{
  shard ko-high 40 --input $high_ko
  shard en-high 40 --input $high_en
  shard ko-broad 60 --input $broad_ko
  shard en-broad 60 --input $broad_en
}

# Conversations: the Korean chat pairs, arithmetic in both languages, and translation made from parallel texts.
shard chat-ko 40 --input "$corpora/instruct/ko_chatbot_songys.jsonl.zst" --messages messages
shard arithmetic-ko 40 --input "$corpora/instruct/synth_arith_ko.jsonl.zst" --prompt '{question}' --response '{answer}'
shard arithmetic-en 40 --input "$corpora/instruct/synth_arith_en.jsonl.zst" --prompt '{question}' --response '{answer}'
shard to-ko 40 --input "$corpora/pairs/react_en_ko.jsonl.zst" --prompt 'Translate into Korean: {en}' --response '{ko}'
shard to-en 40 --input "$corpora/pairs/react_en_ko.jsonl.zst" --prompt '영어로 번역하세요: {ko}' --response '{en}'
shard written 1000000 --input "$here/written.jsonl" --messages messages
# Conversations of several turns, made of these.
python3 "$here/turns.py" "$corpora" "$here/written.jsonl" "$work/turns.jsonl"
"$kanana" data shard --tokenizer "$work/tokenizer" --out "$work/shards/turns" --input "$work/turns.jsonl" --messages messages
