"""Results of short training runs on a CPU: `python benchmarks/finetune.py objects|orbit|mindone [-o DIR] [--json]`.

objects: fine-tunes sv3d-mini on eight objects of a new kind (configs/train/finetune_mini.toml); loss and one-step
PSNR on held-out orbits of them, before and after. orbit: overfits new weights to one orbit
(configs/train/overfit_mini.toml); first and last training loss, and a sampled orbit of the exported weights compared
with the mean picture. mindone: the recipe of mindone on sv3d-mini (configs/train/mindone_mini.toml); a sampled orbit
of the object, before and after. Minutes include compiling, training and validation, not rendering. Exits with 1 if a
result misses its threshold.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sv3d_jax.config import load_config
from sv3d_jax.progress import Progress
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.data.orbits import nth_orbit, render_pool
from sv3d_jax.train.evaluate import HeldOut, evaluate
from sv3d_jax.train.initial import first_params
from sv3d_jax.train.loop import run_train
from sv3d_jax.train.objectives import make_objective
from sv3d_jax.weights.hub import load_weights

CONFIGS = Path(__file__).parents[1] / "configs" / "train"
FILES = {"objects": "finetune_mini.toml", "orbit": "overfit_mini.toml", "mindone": "mindone_mini.toml"}
LOSS_FALLS, PSNR_RISES_DB = 0.15, 1.0
LOSS_LEFT, OVER_MEAN_DB = 0.1, 6.0
SAMPLED = ("one_step", "sampled", "mean_image", "autoencoder")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=FILES)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("runs"), help="folder for the run and its orbits"
    )
    parser.add_argument(
        "--layers", choices=("all", "temporal", "lora"), help="trained layers (default: the file's)"
    )
    parser.add_argument("--rank", type=int, default=8, help="rank of LoRA")
    parser.add_argument("--learning-rate", type=float, help="(default: the file's)")
    parser.add_argument("--steps", type=int, help="training steps (default: the file's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    config = settings(arguments)
    with Progress() as progress:
        report = {"objects": finetune, "orbit": overfit, "mindone": recite}[arguments.task](config, progress)
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
    return 0 if report["passed"] else 1


def settings(arguments: argparse.Namespace) -> TrainConfig:
    """The settings of the TOML file, overridden by those of the command line."""
    name = "_".join(filter(None, (arguments.task, arguments.layers)))
    given: dict[str, Any] = {
        "output": arguments.output / name,
        "data_dir": arguments.output / f"{arguments.task}_data",
        "log_every": 1,
        "overwrite": True,
    }
    if arguments.layers:
        given["trainable"] = {
            "layers": arguments.layers,
            "rank": arguments.rank,
            "alpha": float(arguments.rank),
        }
    if arguments.learning_rate:
        given["optimizer"] = {"learning_rate": arguments.learning_rate}
    if arguments.steps:
        given["max_steps"] = arguments.steps
    return load_config(TrainConfig, CONFIGS / FILES[arguments.task], given)


def finetune(config: TrainConfig, progress: Progress) -> dict:
    """Train, and compare validation before and after."""
    objective = make_objective(config, progress)
    before = objective.validate(first_params(config, objective.model))
    minutes = train(config, progress)
    after = [line for line in metrics(config) if "val_loss" in line][-1]
    falls = 1.0 - after["val_loss"] / before["val_loss"]
    rises = after["val_psnr"] - before["val_psnr"]
    return {
        **figures(config),
        **minutes,
        "val_loss_before": before["val_loss"],
        "val_loss_after": after["val_loss"],
        "val_loss_falls": falls,
        "one_step_psnr_before": before["val_psnr"],
        "one_step_psnr_after": after["val_psnr"],
        "one_step_psnr_rises": rises,
        "passed": falls >= LOSS_FALLS and rises >= PSNR_RISES_DB,
    }


def overfit(config: TrainConfig, progress: Progress) -> dict:
    """Train on one orbit, export, and sample that orbit."""
    minutes = train(config, progress)
    report = sampled(config, exported(config, progress), progress)
    losses = [line["loss"] for line in metrics(config) if "loss" in line]
    left = float(np.mean(losses[-50:]) / np.mean(losses[:5]))
    over_mean = report["sampled"] - report["mean_image"]
    return {
        **figures(config),
        **minutes,
        "loss_first_5": float(np.mean(losses[:5])),
        "loss_last_50": float(np.mean(losses[-50:])),
        "loss_left": left,
        **{name: report[name] for name in ("sampled", "mean_image", "autoencoder")},
        "sampled_over_mean_image": over_mean,
        "passed": left <= LOSS_LEFT and over_mean >= OVER_MEAN_DB,
    }


def recite(config: TrainConfig, progress: Progress) -> dict:
    """Train the given weights on one orbit, and sample that orbit before and after."""
    before = sampled(config, config.initial, progress)
    minutes = train(config, progress)
    after = sampled(config, exported(config, progress), progress)
    report = {
        f"{name}_{when}": r[name] for when, r in (("before", before), ("after", after)) for name in SAMPLED
    }
    return {**figures(config), **minutes, **report, "passed": after["sampled"] > before["sampled"]}


def sampled(config: TrainConfig, weights: str | Path, progress: Progress) -> dict[str, float]:
    """PSNR of the first orbit of the data, sampled by some weights."""
    pool = render_pool(config.data_dir, config.data, progress)
    params, model, _ = load_weights(weights, dtype="float32")
    orbit = HeldOut(np.asarray(pool.shards()[0][:1]), [nth_orbit(config.data, 0)[1]])
    return evaluate(params, model, orbit, model.num_steps, progress)[0]


def exported(config: TrainConfig, progress: Progress) -> Path:
    """Export the averaged weights of the run; returns the model folder."""
    folder = config.output / "exported"
    run_train(replace(config, export=folder), progress)
    return folder


def train(config: TrainConfig, progress: Progress) -> dict[str, float]:
    """Train to the end; returns elapsed minutes and CPU minutes of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    run_train(config, progress)
    return {
        "wall_minutes": (time.perf_counter() - wall) / 60.0,
        "cpu_minutes": (time.process_time() - cpu) / 60.0,
    }


def metrics(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


def figures(config: TrainConfig) -> dict:
    return {
        "layers": config.trainable.layers,
        "steps": config.max_steps,
        "learning_rate": config.optimizer.learning_rate,
    }


if __name__ == "__main__":
    sys.exit(main())
