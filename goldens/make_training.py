"""Makes the golden files of the train crate: losses, gradients and ten optimiser steps, as PyTorch computes them.

    python -m venv .venv && .venv/bin/pip install -r goldens/requirements.txt
    .venv/bin/python goldens/make_training.py crates/model/tests/goldens crates/train/tests/goldens          # all
    .venv/bin/python goldens/make_training.py crates/model/tests/goldens crates/train/tests/goldens mixtral  # one

The models are those that `goldens/make_models.py` made, in the folders of the first argument. Of each there will be

- `{model}.json`: three documents of token ids (`sequences`), the token wanted after each (`targets`, -100 where nothing
  is), and for every objective its loss. `runs` has the losses before each of ten steps and the norms of the gradients
  before they are clipped, with the options of the run.
- `{model}.safetensors`: `{objective}.{parameter}`, the gradient of every parameter by its name in the checkpoint, f32.

Objectives: `next_token` is the sum of the cross-entropy over all targets, divided by their number; `z_loss` and
`label_smoothing` change it as `next_token_loss` says; `router_losses` adds what `router_losses` says. Every document
runs as a sequence of its own, in f32, with eager attention, on one thread.

Runs: `adamw` is torch.optim.AdamW, with decay of the matrices of the layers only, and with the global norm clipped.
`adamw_independent` decays by `weight_decay * factor` instead of by `weight_decay * learning rate`, under a falling
factor. `muon` orthogonalises the updates of the matrices of the layers, each expert's on its own, and leaves the rest
and the routers to AdamW.

What the script refuses to write: a run that bends when the weights change by a millionth, a gradient that is zero, more
than 250 KB for a model.
"""

import argparse
import copy
import json
import pathlib
import tempfile

import torch
import transformers
from make_models import load
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, log_softmax

# Models, and the seeds of their documents.
MODELS = {"llama-biased": 5, "llama-tied": 3, "llama-yarn": 8, "mixtral": 4, "qwen2-moe": 1, "qwen3-moe": 1,
          "qwen3-moe-some-dense": 3, "qwen3-tied": 1}
OBJECTIVES = {
    "next_token": {},
    "z_loss": {"z_loss": 1e-4},
    "label_smoothing": {"label_smoothing": 0.1},
    "router_losses": {"load_balance": 0.01, "router_z_loss": 0.001},
}
LENGTHS = (11, 1, 17)
IGNORED = -100
STEPS = 10
SIZE_LIMIT = 250_000  # bytes
ADAMW = {"learning_rate": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0,
         "factors": [1.0] * STEPS}
RUNS = {
    "adamw": ADAMW,
    "adamw_independent": ADAMW | {"weight_decay": 0.02, "factors": [1.0 - s / STEPS for s in range(STEPS)]},
    "muon": ADAMW | {"muon_learning_rate": 0.02, "momentum": 0.95, "newton_schulz_steps": 5},
}


def next_token_loss(logits, targets, z_loss=0.0, label_smoothing=0.0):
    """The sum over targets of lse - q.z + z_loss * lse^2; q gives `label_smoothing` evenly to all, the rest to the target.

    Written out instead of torch's cross_entropy, so that the formula stands here: (Szegedy et al. 2016; PaLM, section 5).
    """
    wanted = targets != IGNORED
    logits, targets = logits[wanted], targets[wanted]
    lse = logits.logsumexp(-1)
    chosen = logits.gather(1, targets[:, None])[:, 0]
    expected = (1 - label_smoothing) * chosen + label_smoothing * logits.mean(-1)
    return (lse - expected + z_loss * lse.square()).sum()


def router_losses(logits, top_k):
    """Of one router's logits over all tokens: the load balance X * sum(f * P) (Switch, section 2.2; f is the share of the
    choices that an expert got and has no gradient, P its mean probability), and the mean of lse^2 (ST-MoE, section 3.1).
    """
    experts = logits.shape[1]
    p = log_softmax(logits, -1).exp()
    choices = p.detach().topk(top_k).indices.flatten()
    f = torch.bincount(choices, minlength=experts) / choices.numel()
    return experts * (f * p.mean(0)).sum(), logits.logsumexp(-1).square().mean()


def loss_of(model, batch, load_balance=0.0, router_z_loss=0.0, **options):
    """The loss of a batch and its parts by name, averaged over targets; losses of routers are summed over layers."""
    seen = {}

    def note(router, inputs, _output):
        hidden = inputs[0].reshape(-1, router.weight.shape[1])
        seen.setdefault(router, []).append(linear(hidden, router.weight))

    # Qwen2 has a gate of its shared expert too, which is no router.
    routers = [m for name, m in model.named_modules() if name.endswith(".gate")]
    hooks = [router.register_forward_hook(note) for router in routers]
    total = 0.0
    for ids, targets in zip(batch["sequences"], batch["targets"]):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        total = total + next_token_loss(logits, torch.tensor(targets), **options)
    for hook in hooks:
        hook.remove()
    parts = {"loss": total / sum(y != IGNORED for targets in batch["targets"] for y in targets)}
    if load_balance or router_z_loss:
        losses = [router_losses(torch.cat(logits), model.config.num_experts_per_tok) for logits in seen.values()]
        parts["load_balance"], parts["router_z_loss"] = (sum(part) for part in zip(*losses))
        return parts["loss"] + load_balance * parts["load_balance"] + router_z_loss * parts["router_z_loss"], parts
    return parts["loss"], parts


@torch.no_grad()
def by_checkpoint_name(model) -> dict[str, torch.Tensor]:
    """The gradients by the names that parameters have in a checkpoint, where experts are not stacked."""
    gradients = copy.deepcopy(model)
    for of, parameter in zip(gradients.parameters(), model.parameters()):
        of.copy_(parameter.grad)
    with tempfile.TemporaryDirectory() as folder:
        gradients.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors")


def in_layers(name: str, parameter) -> bool:
    """Whether this is a matrix of a layer, which weight decay is for."""
    return ".layers." in name and parameter.ndim >= 2


def is_muons(name: str, parameter) -> bool:
    return in_layers(name, parameter) and not name.endswith("gate.weight")


def matrices(name: str, tensor) -> list[torch.Tensor]:
    """Views of the matrices in a parameter: transformers stacks experts, and their gate on their up projection."""
    experts = list(tensor) if tensor.ndim == 3 else [tensor]
    return [half for e in experts for half in e.chunk(2)] if name.endswith("gate_up_proj") else experts


def orthogonalised(update, steps):
    """Newton and Schulz' iteration with Keller Jordan's coefficients: singular values near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (update.norm() + 1e-7)
    x = x.T if update.shape[0] > update.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


@torch.no_grad()
def muon_step(parameters, momenta, options, learning_rate):
    for name, parameter in parameters:
        momentum = momenta.setdefault(name, torch.zeros_like(parameter))
        momentum.mul_(options["momentum"]).add_(parameter.grad)
        update = parameter.grad + options["momentum"] * momentum  # Nesterov
        for w, u in zip(matrices(name, parameter), matrices(name, update)):
            scale = max(1.0, w.shape[0] / w.shape[1]) ** 0.5
            u = scale * orthogonalised(u, options["newton_schulz_steps"])
            w.sub_(learning_rate * (u + options["weight_decay"] * w))


def train(model, batch, run: str, options) -> dict[str, list[float]]:
    """The losses before ten steps on one batch, and the norms of their gradients."""
    named = list(model.named_parameters())
    muons = [(n, p) for n, p in named if run == "muon" and is_muons(n, p)]
    rest = [(n, p) for n, p in named if run != "muon" or not is_muons(n, p)]
    decayed = [p for n, p in rest if in_layers(n, p)]
    independent = run == "adamw_independent"
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.0 if independent else options["weight_decay"]},
         {"params": [p for n, p in rest if not in_layers(n, p)], "weight_decay": 0.0}],
        lr=options["learning_rate"], betas=options["betas"], eps=options["eps"])
    momenta, losses, norms = {}, [], []
    for factor in options["factors"]:
        model.zero_grad()
        loss, _ = loss_of(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
        losses.append(loss.item())
        norms.append(norm.item())
        for group in adamw.param_groups:
            group["lr"] = options["learning_rate"] * factor
        # Both shrink what the weights were before the step.
        before = [p.detach().clone() for p in decayed] if independent else []
        adamw.step()
        with torch.no_grad():
            for p, w in zip(decayed, before):
                p.sub_(options["weight_decay"] * factor * w)
        if muons:
            muon_step(muons, momenta, options, options["muon_learning_rate"] * factor)
    return {"losses": losses, "grad_norms": norms}


def documents(vocabulary: int, seed: int) -> dict[str, list[list[int]]]:
    """Random documents; of the longest, the first tokens and some others are not learnt from."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(vocabulary, (n + 1,), generator=generator).tolist() for n in LENGTHS]
    targets = [ids[1:] for ids in texts]
    for t in (0, 1, 2, 3, 9, 14):
        targets[-1][t] = IGNORED
    targets[0][5] = IGNORED
    return {"sequences": [ids[:-1] for ids in texts], "targets": targets}


def shaken(model):
    """The model with every weight a millionth off."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-6 * torch.randn(parameter.shape, generator=generator))
    return model


def make(name: str, models: pathlib.Path, root: pathlib.Path) -> None:
    def fresh():
        return load(models / name, torch.float32)

    batch = documents(fresh().config.vocab_size, MODELS[name])
    objectives, gradients = {}, {}
    mixture = hasattr(fresh().config, "num_experts_per_tok")
    # One dense model shows what changes the loss itself, every mixture what its routers add.
    shown = {"next_token"} | ({"router_losses"} if mixture else set()) | (
        {"z_loss", "label_smoothing"} if name == "llama-yarn" else set())
    for objective in sorted(shown):
        options, model = OBJECTIVES[objective], fresh()
        loss, parts = loss_of(model, batch, **options)
        loss.backward()
        objectives[objective] = options | {"expected": {k: v.item() for k, v in parts.items()}}
        for parameter, gradient in by_checkpoint_name(model).items():
            assert gradient.abs().max() > 0, f"{name} {objective}: no gradient of {parameter}"
            gradients[f"{objective}.{parameter}"] = gradient.contiguous()
    runs = {}
    for run, options in RUNS.items():
        curve = train(fresh(), batch, run, options)
        bent = train(shaken(fresh()), batch, run, options)
        off = max(abs(a / b - 1) for kind in curve for a, b in zip(curve[kind], bent[kind]))
        print(f"{name} {run}: loss {curve['losses'][0]:.4f} to {curve['losses'][-1]:.4f}, "
              f"norm {curve['grad_norms'][0]:.3f} to {curve['grad_norms'][-1]:.3f}, sensitivity {off:.1e}")
        assert off < 5e-4, f"{name} {run}: {off:.1e} off when the weights are a millionth off, change the seed"
        runs[run] = options | {"expected": curve}

    save_file(dict(sorted(gradients.items())), root / f"{name}.safetensors")
    (root / f"{name}.json").write_text(json.dumps(batch | {
        "objectives": objectives,
        "runs": runs,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }) + "\n")
    size = sum((root / f"{name}.{end}").stat().st_size for end in ("safetensors", "json"))
    assert size < SIZE_LIMIT, f"{name}: {size} bytes"
    print(f"{name}: {size} bytes, {len(gradients)} gradients")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("models", type=pathlib.Path, help="the folder with the models' folders")
    arguments.add_argument("root", type=pathlib.Path, help="the folder to write to")
    arguments.add_argument("names", nargs="*", help="which models; all when none is named")
    options = arguments.parse_args()
    if unknown := set(options.names) - set(MODELS):
        arguments.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in MODELS:
        if not options.names or name in options.names:
            make(name, options.models, options.root)


if __name__ == "__main__":
    main()
