"""The log-likelihoods that lm-evaluation-harness gets from the server are those of `kanana generate`.

lm-evaluation-harness asks /v1/completions for the echo of token ids, through its `local-completions`; `kanana generate
--prompt-logprobs` scores the same ids without a server. README.md says how to run this.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

TOLERANCE = 1e-4  # nats, of a whole continuation

# Each context with five continuations; the empty one is scored behind the beginning token.
CONTEXTS = {
    "": ["안녕하세요.", "Hello there.", "옛날 옛적에", "1 + 1 = 2", "🙂"],
    "대한민국의 수도는": [" 서울", " 부산", " 대전입니다.", " 도쿄", " 바다"],
    "한글을 만든 사람은 ": ["세종대왕", "이순신", "세종대왕입니다.", "모르겠어요", "the king"],
    "오늘은 비가 와서": [" 우산을 썼다.", " 집에 있었다.", " 기분이 좋다!", " 사과", " 🙂"],
    "질문: 3 더하기 4는?\n답:": [" 7", " 8", " 칠", " 12입니다.", " 모름"],
    "The capital of Korea is": [" Seoul", " Busan", " Tokyo", " Seoul.", " 서울"],
    "Question: What is 2 + 5?\nAnswer:": [" 7", " 9", " seven", " I do not know", " 25"],
    "Once upon a time there was": [" a cat", " a little girl", " nothing", " the end.", " 고양이"],
    "My name is ": ["Kanana.", "Kim", "not important", "카나나", "?"],
    "She opened the door and": [" smiled.", " ran away", " saw a dog", " 문", " and"],
}


def reference(program, model, pairs):
    """(log-likelihood, whether each token is the likeliest) of token ids behind token ids, without a server."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text("".join(json.dumps({"prompt_ids": a + b}) + "\n" for a, b in pairs))
        command = [program, "generate", "--model", model, "--prompts", prompts, "--json"]
        command += ["--prompt-logprobs", "1", "--max-tokens", "1", "--temperature", "0"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for line, (context, _) in zip(lines, pairs, strict=True):
        scored = json.loads(line)["prompt_logprobs"][len(context) :]
        yield sum(token["logprob"] for token in scored), all(token["id"] == token["top"][0]["id"] for token in scored)


def likeliest(program, model, context):
    """What the model itself goes on with."""
    command = [program, "generate", "--model", model, "--prompt", context, "--max-tokens", "3", "--temperature", "0"]
    return json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)["text"]


class Recorder(LocalCompletionsAPI):
    """Keeps the token ids that it scores."""

    def _loglikelihood_tokens(self, requests, **options):
        self.pairs = [(context, continuation) for _, context, continuation in requests]
        return super()._loglikelihood_tokens(requests, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, help="kanana")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="pico", help="as the server and --program know it")
    parser.add_argument("--tokenizer", required=True, help="a folder with the model's tokenizer.json")
    options = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", os.environ.get("KANANA_API_KEY", "none"))

    texts = [(context, continuation) for context in CONTEXTS for continuation in CONTEXTS[context]]
    own = [(context, likeliest(options.program, options.model, context)) for context in list(CONTEXTS)[1:]]
    texts += [(context, continuation) for context, continuation in own if continuation]
    lm = Recorder(
        base_url=f"{options.base_url}/completions",
        model=options.model,
        tokenizer=options.tokenizer,
        tokenizer_backend="huggingface",
        batch_size=8,
        max_length=512,
        max_retries=1,
    )
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
    served = lm.loglikelihood(instances)
    expected = list(reference(options.program, options.model, lm.pairs))
    worst = max(abs(a - b) for (a, _), (b, _) in zip(served, expected, strict=True))
    wrong = [
        text for text, (a, x), (b, y) in zip(texts, served, expected, strict=True) if abs(a - b) > TOLERANCE or x != y
    ]
    greedy = sum(greedy for _, greedy in expected)
    print(
        f"{len(texts)} pairs, {greedy} of them greedy: largest difference {worst:.1e} nats, {len(wrong)} pairs differ"
    )
    for text in wrong:
        print("differs:", text)
    assert 0 < greedy < len(texts), "the pairs do not tell greedy from not greedy"
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
