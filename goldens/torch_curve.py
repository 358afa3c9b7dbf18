"""Trains a model with PyTorch from a given start on given tokens, to lay its loss curve over that of this program.

    .venv/bin/python goldens/torch_curve.py CHECKPOINT ROWS STEPSxROWSxTOKENS metrics.jsonl [--learning-rate 3e-3 ...]

CHECKPOINT is the folder that the other run started from. ROWS is the raw file of its tokens: little-endian u32 ids
`[steps, rows, tokens]`; the first `tokens - 1` ids of a row are the input and the last ones the targets, and every row
is a document of its own. Each step trains on one `[rows, tokens]` slab, in f32: AdamW, whose decay is for the matrices
of the layers only, the global norm clipped, the schedule a warm-up and a cosine from the peak to the final factor.

Written is one JSON object a step: `{"step": 1, "loss": 6.24, "grad_norm": 1.5}`, both before the step changes anything;
the loss is the mean cross-entropy of the targets in nats.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
import transformers
from make_models import load
from make_training import in_layers


def shape(text: str) -> tuple[int, int, int]:
    steps, rows, tokens = map(int, text.split("x"))
    return steps, rows, tokens


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=pathlib.Path, help="folder with config.json and model.safetensors")
    parser.add_argument("rows", type=pathlib.Path, help="raw u32 ids")
    parser.add_argument("shape", type=shape, help="steps x rows x tokens of that file, as 1000x8x65")
    parser.add_argument("metrics", type=pathlib.Path, help="the JSONL file to write")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at the peak")
    parser.add_argument("--warmup", type=int, default=0, help="steps over which the rate rises to the peak")
    parser.add_argument("--final-factor", type=float, default=0.0, help="of the peak, where the cosine ends")
    parser.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.95))
    parser.add_argument("--eps", type=float, default=1e-8)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    wanted, found = 4 * math.prod(options.shape), options.rows.stat().st_size
    if found != wanted:
        parser.error(f"{options.rows}: {found} bytes, but {options.shape} u32 ids have {wanted}")
    return options


def factor(step: int, steps: int, options) -> float:
    """The share of the peak rate in a step, counted from 0."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, steps - options.warmup)
    return options.final_factor + (1 - options.final_factor) * 0.5 * (1 + math.cos(math.pi * done))


def main() -> None:
    options = arguments()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    model = load(options.checkpoint, torch.float32)
    rows = np.memmap(options.rows, dtype="<u4", mode="r", shape=options.shape)
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for n, p in named if in_layers(n, p)], "weight_decay": options.weight_decay},
         {"params": [p for n, p in named if not in_layers(n, p)], "weight_decay": 0.0}],
        lr=options.learning_rate, betas=tuple(options.betas), eps=options.eps)
    with options.metrics.open("w") as metrics:
        for step in range(len(rows)):
            ids = torch.from_numpy(rows[step].astype(np.int64))
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * factor(step, len(rows), options)
            optimizer.step()
            line = {"step": step + 1, "loss": loss.item(), "grad_norm": norm.item()}
            print(json.dumps(line), file=metrics, flush=True)


if __name__ == "__main__":
    main()
