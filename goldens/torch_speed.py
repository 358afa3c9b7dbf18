"""Measures how fast PyTorch trains a 63M dense model on this machine: the baseline of training on a CPU.

    .venv/bin/python goldens/torch_speed.py                          # all modes
    .venv/bin/python goldens/torch_speed.py --modes f32 --steps 1    # one of them, briefly

Two cores with AMX take seconds a step; where bf16 has no instructions of its own, its modes take minutes a step.

The model: hidden 512, 12 layers, 6 query and 2 key heads of 128, ffn 2304, vocabulary 16384, tied, random weights. A step
is 4 sequences of 1024 random tokens, forward, backward and AdamW (the fused one), weights in f32. Modes: `f32`, `bf16`
(autocast), and both after torch.compile, which needs a C++ compiler. Each mode runs in a process of its own, so that the
peak memory is its own: the largest resident size, with what compiling took.

Written to stdout is one JSON object for each mode: `tokens_per_second` is of the median step after the warm-up,
`seconds` has all measured steps, and `peak_memory` is in bytes.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time

import make_models  # noqa: F401  lets transformers have a hidden size that is no multiple of the heads
import torch
import transformers

MODES = ("f32", "bf16", "f32-compile", "bf16-compile")


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=2304, num_hidden_layers=12, num_attention_heads=6,
        num_key_value_heads=2, head_dim=128, max_position_embeddings=1024, tie_word_embeddings=True,
        attn_implementation="sdpa")).train()


def measure(mode: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    net = model()
    parameters = sum(p.numel() for p in net.parameters())
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(net) if mode.endswith("compile") else net
    ids = torch.randint(16384, (options.rows, options.tokens + 1))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.startswith("bf16")):
            logits = run(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    warmup = [step() for _ in range(options.warmup)]
    seconds = [step() for _ in range(options.steps)]
    tokens = options.rows * options.tokens
    print(json.dumps({
        "mode": mode,
        "tokens_per_second": round(tokens / statistics.median(seconds), 1),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts KiB
        "seconds": [round(s, 3) for s in seconds],
        "warmup_seconds": [round(s, 3) for s in warmup],
        "tokens_per_step": tokens,
        "parameters": parameters,
        "threads": options.threads,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }), flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments.add_argument("--steps", type=int, default=5, help="measured steps")
    arguments.add_argument("--warmup", type=int, default=2, help="steps before them")
    arguments.add_argument("--rows", type=int, default=4, help="sequences a step")
    arguments.add_argument("--tokens", type=int, default=1024, help="tokens of a sequence")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = arguments.parse_args()
    processes = multiprocessing.get_context("spawn")
    for mode in options.modes:
        process = processes.Process(target=measure, args=(mode, options))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"mode {mode} failed with status {process.exitcode}")


if __name__ == "__main__":
    main()
