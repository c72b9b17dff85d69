"""The overhead of saving in training: `python benchmarks/checkpoints.py [--every 200] [--rounds 3] [--json]`.

Trains the UNet of sv3d-mini on random latents. A round times some steps without a save, then as many steps during which
a save starts and completes. The overhead is the difference divided by the time of `--every` steps.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
from train_step import random_views

from sv3d_jax.parallel.devices import device_mesh, global_batch
from sv3d_jax.parallel.rules import tree_shardings
from sv3d_jax.train.checkpoints import Checkpoints
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.loop import compiled_step
from sv3d_jax.train.objectives import init_params, make_loss, read_model
from sv3d_jax.train.optimizer import make_optimizer
from sv3d_jax.train.state import new_state

STEPS = 6  # of a round without a save, and with one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = TrainConfig(output=Path("unused"))
    step, state, batch = program(config)
    key = jax.random.key(0)
    plain, extra = [], []
    state, _ = step(state, {}, batch, key)  # compiles
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        for number in range(options.rounds):
            start = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = step(state, {}, batch, key)
                jax.device_get(metrics)
            plain.append((time.perf_counter() - start) / STEPS)
            start = time.perf_counter()
            checkpoints.save(number + 1, state, {})
            for _ in range(STEPS):
                state, metrics = step(state, {}, batch, key)
                jax.device_get(metrics)
            checkpoints.wait()
            extra.append(time.perf_counter() - start - STEPS * plain[-1])
    step_s, save_s = statistics.median(plain), statistics.median(extra)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    result = {
        "device": jax.devices()[0].device_kind,
        "state_mb": round(size / 1e6, 1),
        "step_s": round(step_s, 3),
        "save_s": round(save_s, 3),
        "overhead": round(save_s / (options.every * step_s), 5),
    }
    print(json.dumps(result, indent=1) if options.json else result)


def program(config: TrainConfig):
    """A compiled step with its first state and a random batch."""
    model, mesh = read_model(config.model), device_mesh()
    optimizer = make_optimizer(config.optimizer, config.max_steps)
    init = functools.partial(init_params, "unet", model)
    begin = lambda key: new_state(init(key), optimizer)  # noqa: E731
    shardings = tree_shardings(jax.eval_shape(begin, jax.random.key(0)), mesh)
    state = jax.jit(begin, out_shardings=shardings)(jax.random.key(0))
    step = compiled_step(config, make_loss(config, model), lambda params, frozen: params, optimizer, state)
    rows, frames = config.batch_size, config.diffusion.frames_per_sample
    batch = random_views(model, rows, frames, config.data.size // model.vae.downsampling)
    return step, state, global_batch(batch, mesh, rows)


if __name__ == "__main__":
    main()
