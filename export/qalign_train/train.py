"""Photographs in, a small trained checkpoint of exactly OneAlign's architecture out: the model the package embeds.

    PYTHONPATH=export python -m qalign_train.train work/mini --steps 6000

It trains from scratch on distorted photographs (data.py). The loss is cross-entropy on the five level tokens, as in
the paper, with the quality prompts for images and videos. A clip's frames are samples of similar ratings; the clip's
rating is their mean. An extra head, thrown away afterwards, reads each family's severity off the mean vision feature:
with it the tower learns what damage looks like far sooner than through the decoder alone. Autocast is bf16; AdamW's
rate is constant and falls to zero over the last 30 %. You can stop it at any time: it goes on from its last checkpoint,
even if --steps has changed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_export.distortions import DISTORTIONS
from qalign_fast.analysis.measures import spearman
from qalign_fast.families.mplug_owl2.config_json import parse_config
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.levels import LEVELS, level_of, score_of
from qalign_fast.pixels.rule import SquareRule
from qalign_train.data import Pool, fetch_photographs, is_validation, rating
from qalign_train.initial import initialize, whiten_filters
from qalign_train.write_checkpoint import write_checkpoint

SIZES = {
    "visual_config": {
        "visual_model": {
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": 448,
            "patch_size": 32,
            "layer_norm_eps": 1e-6,
        },
        "visual_abstractor": {
            "num_learnable_queries": 16,
            "hidden_size": 160,
            "num_hidden_layers": 1,
            "num_attention_heads": 5,
            "intermediate_size": 320,
            "encoder_hidden_size": 160,
            "grid_size": 14,
            "layer_norm_eps": 1e-6,
        },
    },
    "model_type": "mplug_owl2",
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "hidden_size": 160,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
WARMUP, DECAY, RATE = 100, 0.3, 3e-4
PATCH_SHARE = 0.02  # of the rate: a filter's 3072 inputs all move together, and Adam's steps add up over them


def main() -> None:
    """Trains, or continues an earlier run in the same folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for photographs, checkpoints and the result")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--slots", type=int, default=6000, help="samples kept in memory, 0.6 MB each")
    args = parser.parse_args()
    train(args.work, args.steps, args.batch, args.slots, args.device)


def train(work: Path, steps: int, batch: int, slots: int, device: str) -> None:
    """Trains up to `steps` in all, then writes a checkpoint as upstream's to work/checkpoint."""
    config = parse_config(SIZES, {})
    photographs = fetch_photographs(work / "photographs")
    learn = [p for p in photographs if not is_validation(p)]
    check = [p for p in photographs if is_validation(p)]
    state = work / "state.pt"
    model = initialize(config, torch.Generator().manual_seed(0))
    trained = Trained(model).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(trained), lr=RATE, betas=(0.9, 0.98))
    first = resume(state, trained, optimizer)
    validation = take(check, config.pixels, 480, seed=1)
    pool = Pool(learn, config.pixels, slots, tiles=32, seed=first + 2)
    try:
        while pool.filled() < min(slots, 8 * batch):
            time.sleep(1)
        rng, start = np.random.default_rng(first), time.time()
        if first == 0:
            whiten_filters(model, pool.draw(4 * batch, rng)[0])
        losses: list[tuple[float, float]] = []
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * group["share"] * schedule(step, steps)
            losses.append(train_step(trained, optimizer, *pool.draw(batch, rng)))
            if step % 50 == 49:
                speed = (step + 1 - first) * batch / (time.time() - start)
                loss, severity = np.mean(losses[-50:], axis=0).round(4)
                report(step, loss=loss, severity_loss=severity, samples_per_second=round(speed, 1))
            if step % 500 == 499 or step == steps - 1:
                report(step, **validate(model, *validation))
                save(state, trained, optimizer, step + 1)
    finally:
        pool.close()
    write_checkpoint(model.cpu(), SIZES, work / "checkpoint")


class Trained(nn.Module):
    """The model, and the head that is used only in training."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        width = model.config.vision.width
        # BatchNorm removes the large constant part of the features; with it the head learns nothing for 1000s of steps
        head = nn.Linear(width, len(DISTORTIONS))
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 0.17)  # the mean severity
        self.severity = nn.Sequential(nn.BatchNorm1d(width), head)


def train_step(
    trained: Trained, optimizer: torch.optim.Optimizer, pixels: np.ndarray, severities: np.ndarray
) -> tuple[float, float]:
    """One update on a batch [B, S, S, 3], as pictures and, after sorting by rating, as clips of 2 to 4 frames.

    Returns the loss on levels and the loss on severities.
    """
    model = trained.model
    ratings = rating(severities)
    order = np.argsort(ratings, kind="stable")
    ratings = ratings[order]
    device = model.decoder.embed.device
    with in_bfloat16(device):
        features = model.vision(torch.from_numpy(pixels[order]).to(device))
        severity = F.mse_loss(
            trained.severity(features.mean(1)).float(), torch.from_numpy(severities[order]).to(device)
        )
        tokens = model.abstractor(features)
        loss = level_loss(model.decode(tokens, *model.constants(prompt("quality", "image"))), ratings)
        frames = int(torch.randint(2, 5, ()))
        clips = len(ratings) // frames
        grouped = tokens[: clips * frames].unflatten(0, (clips, frames)).flatten(1, 2)
        means = ratings[: clips * frames].reshape(clips, frames).mean(1)
        loss = loss + 0.3 * level_loss(model.decode(grouped, *model.constants(prompt("quality", "video"))), means)
    optimizer.zero_grad(set_to_none=True)
    (loss + 5 * severity).backward()
    nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()), float(severity.detach())


def level_loss(logits: Tensor, ratings: np.ndarray) -> Tensor:
    """Cross-entropy of the logits [B, 5] and the level words of the ratings [B] on 1..5."""
    words = [LEVELS.index(level_of(float(r), 1, 5)) for r in ratings]
    return F.cross_entropy(logits, torch.tensor(words, device=logits.device))


def schedule(step: int, steps: int) -> float:
    """The share of the full rate: it grows over WARMUP steps, stays, and falls to zero over the last share DECAY."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def in_bfloat16(device: torch.device) -> torch.autocast:
    """Products are in bfloat16 if the device has such instructions; other CPUs are faster in float32."""
    has_them = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_them)


def report(step: int, **figures: float) -> None:
    """Prints a step's figures as a line of JSON."""
    print(json.dumps({"step": step + 1, **figures}), flush=True)


def validate(model: Model, pixels: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
    """Loss and rank correlation on samples of photographs that are never trained on."""
    device = model.decoder.embed.device
    with torch.inference_mode(), in_bfloat16(device):
        parts = [torch.from_numpy(part).to(device) for part in np.array_split(pixels, 10)]
        logits = torch.cat(
            [model.decode(model.encode(part), *model.constants(prompt("quality"))) for part in parts]
        ).cpu()
        loss = float(level_loss(logits, ratings))
    scores = [score_of(row, "quality").value for row in logits.numpy()]
    return {
        "validation_loss": round(loss, 4),
        "validation_srcc": round(spearman(np.array(scores), ratings) or 0.0, 4),
    }


def take(photographs: list[Path], rule: SquareRule, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed set of samples: pixels [count, S, S, 3] and ratings [count]."""
    pool = Pool(photographs, rule, count, tiles=24, seed=seed)
    while pool.filled() < count:
        time.sleep(0.2)
    pixels, severities = pool.draw(count, np.random.default_rng(seed))
    pool.close()
    return pixels, rating(severities)


def parameter_groups(trained: Trained) -> list[dict[str, object]]:
    """Only matrices have weight decay; the patch filters move slowly."""
    patch = trained.model.vision.patch
    rest = [(n, p) for n, p in trained.named_parameters() if p is not patch]
    matrices = [p for n, p in rest if p.ndim > 1 and "positions" not in n and "embed" not in n]
    chosen = {id(p) for p in matrices}
    return [
        {"params": matrices, "weight_decay": 0.05, "share": 1.0},
        {"params": [p for _, p in rest if id(p) not in chosen], "weight_decay": 0.0, "share": 1.0},
        {"params": [patch], "weight_decay": 0.0, "share": PATCH_SHARE},
    ]


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the state that `resume` reads, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    partial.rename(path)


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the last saved state, if there is one; returns the step to go on from."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


if __name__ == "__main__":
    main()
