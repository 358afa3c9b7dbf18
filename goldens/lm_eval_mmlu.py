"""Compares `kanana eval` with lm-evaluation-harness: log-likelihoods of every choice, predictions, and wall time.

    pip install -r goldens/requirements.txt lm_eval==0.4.13
    python goldens/lm_eval_mmlu.py --program target/release/kanana --data DIR --tokenizer models/pico --limit 2

Makes a small random Llama checkpoint (f32) with the tokenizer of a folder, runs both on the same questions of MMLU (DIR/mmlu as
published), and compares. The harness gets the requests that `kanana eval` wrote in its journal, whose prompts the tests hold to be
those of the harness; it runs them through `HFLM.loglikelihood` on as many threads. Exits with 1 where they differ.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--program", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--tokenizer", required=True)
parser.add_argument("--limit", type=int, default=2)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batch", default="8", help="batch size of the harness, or auto")
parser.add_argument("--keep", help="folder of an earlier checkpoint, or for this one")
args = parser.parse_args()

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(args.threads)
work = pathlib.Path(tempfile.mkdtemp())
checkpoint = pathlib.Path(args.keep) if args.keep else work / "checkpoint"
if not (checkpoint / "config.json").exists():
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, head_dim=64, max_position_embeddings=4096,
        initializer_range=0.06, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True, dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(checkpoint)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(pathlib.Path(args.tokenizer) / name, checkpoint)

out = work / "out"
started = time.perf_counter()
subprocess.run(
    [args.program, "eval", "--tasks", "mmlu", "--model", checkpoint, "--dtype", "f32", "--data", args.data, "--limit",
     str(args.limit), "--out", out, "--threads", str(args.threads)], check=True)
whole = time.perf_counter() - started
report = json.loads((out / "report.json").read_text())["tasks"][0]
ours = [json.loads(line) for line in (out / "journal/model.jsonl").open()]

started = time.perf_counter()
lm = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=args.batch, max_length=4096)
loading = time.perf_counter() - started
pairs = [(line["request"]["context"], line["request"]["continuation"]) for line in ours]
# in the order of the questions, as the harness would have them
order = sorted(range(len(pairs)), key=lambda index: pairs[index])
requests = [Instance("loglikelihood", {}, pairs[index], place) for place, index in enumerate(order)]
started = time.perf_counter()
theirs = lm.loglikelihood(requests, disable_tqdm=True)
seconds = time.perf_counter() - started

worst, flips, near, questions = 0.0, 0, 0, {}
for index, (sum_, greedy) in zip(order, theirs):
    answer = ours[index]["answer"]
    worst = max(worst, abs(sum_ - answer["sum"]))
    questions.setdefault(pairs[index][0], []).append((sum_, answer["sum"]))
for choices in questions.values():
    ranked = sorted((their for their, _ in choices), reverse=True)
    best = [max(range(len(choices)), key=lambda i: choices[i][side]) for side in (0, 1)]
    if best[0] != best[1]:
        near += ranked[0] - ranked[1] <= 2e-3
        flips += ranked[0] - ranked[1] > 2e-3
print(f"{len(pairs)} requests, {len(questions)} questions, {args.threads} threads")
print(f"largest difference of a log-likelihood {worst:.2e} nats; predictions that differ: {flips} (within a margin: {near})")
print(f"kanana eval {report['seconds']:.1f} s ({whole:.1f} s with loading); HFLM {seconds:.1f} s ({seconds + loading:.1f} s); "
      f"ratio {seconds / report['seconds']:.1f} ({(seconds + loading) / whole:.1f})")
sys.exit(1 if worst > 1e-3 or flips else 0)
