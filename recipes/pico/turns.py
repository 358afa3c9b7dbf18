"""Joins conversations of one turn to such of several, so that pico does not lose itself in the second one.

    python recipes/pico/turns.py CORPORA recipes/pico/written.jsonl OUT.jsonl

Rows that `kanana data shard --every 40` holds out are left out: one in forty, by the first eight bytes of a SHA-256 of the
words in lower case. Needs the program zstd.
"""

import hashlib
import json
import random
import subprocess
import sys


def rows(path: str) -> list[dict]:
    text = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True, text=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def held_out(messages: list[dict]) -> bool:
    digest = hashlib.sha256()
    for message in messages:
        for word in message["content"].split():
            digest.update(word.lower().encode() + b" ")
    return int.from_bytes(digest.digest()[:8], "little") % 40 == 0


def pair(row: dict) -> list[dict]:
    question, answer = row["question"], row["answer"]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main() -> None:
    corpora, written, out = sys.argv[1:]
    instruct = f"{corpora}/instruct"
    sources = [
        (0.27, [pair(row) for row in rows(f"{instruct}/synth_arith_ko.jsonl.zst")]),
        (0.27, [pair(row) for row in rows(f"{instruct}/synth_arith_en.jsonl.zst")]),
        (0.28, [row["messages"] for row in rows(f"{instruct}/ko_chatbot_songys.jsonl.zst")]),
    ]
    sources = [(weight, [turn for turn in turns if not held_out(turn)]) for weight, turns in sources]
    with open(written, encoding="utf-8") as lines:
        sources.append((0.18, [json.loads(line)["messages"] for line in lines]))
    choose = random.Random(7)
    with open(out, "w", encoding="utf-8") as file:
        for _ in range(7000):
            kinds = choose.choices(sources, [weight for weight, _ in sources], k=choose.choice([2, 2, 3, 3]))
            messages = [message for _, turns in kinds for message in choose.choice(turns)]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


main()
