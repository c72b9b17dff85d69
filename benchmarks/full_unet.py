"""Run the full-size UNet of SV3D on this CPU: random parameters, few frames, small latents. Prints JSON.

    python benchmarks/full_unet.py

Fails if the output is not finite or the peak resident memory exceeds --limit-gib. Parameters are made one leaf at a
time, so the peak is the parameters (6.1 GB in float32), one leaf, and the memory of compiling and computing: 7.7 GiB.
"""

import argparse
import json
import os
import resource
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.video_unet import VideoUNet
from sv3d_jax.weights.key_map import Parameter, model_parameters, tree_from_leaves


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--latent", type=int, default=16, help="side of the latents")
    parser.add_argument("--limit-gib", type=float, default=14.0)
    arguments = parser.parse_args()

    config = ModelConfig.published("p").unet
    rng = np.random.default_rng(0)
    parameters = model_parameters(ModelConfig.published("p"), ["unet"])
    start = time.monotonic()
    params = tree_from_leaves((p.path[1:], random_leaf(p, rng)) for p in parameters)
    made = time.monotonic()

    frames, side = arguments.frames, arguments.latent
    inputs = (
        rng.standard_normal((1, frames, side, side, config.in_channels), np.float32),
        np.zeros((1, frames), np.float32),
        rng.standard_normal((1, 1, config.context_width), np.float32),
        rng.standard_normal((1, frames, config.vector_width), np.float32),
    )
    forward = jax.jit(lambda params, *inputs: VideoUNet(config).apply({"params": params}, *inputs))
    program = forward.lower(params, *inputs).compile()
    compiled = time.monotonic()
    output = np.asarray(program(params, *inputs))
    done = time.monotonic()

    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    report = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "input": list(inputs[0].shape),
        "output_std": float(output.std()),
        "finite": bool(np.isfinite(output).all()),
        "make_s": round(made - start, 1),
        "compile_s": round(compiled - made, 1),
        "run_s": round(done - compiled, 1),
        "peak_rss_gib": round(peak_gib, 2),
        "limit_gib": arguments.limit_gib,
    }
    print(json.dumps(report, indent=1))
    return 0 if report["finite"] and peak_gib <= arguments.limit_gib else 1


def random_leaf(parameter: Parameter, rng: np.random.Generator) -> jax.Array:
    """Normal values at the scale of a fresh layer; norms around one."""
    shape = parameter.tree_shape
    if len(shape) == 1:
        return jnp.asarray((parameter.path[-1] == "scale") + 0.1 * rng.standard_normal(shape, np.float32))
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(np.prod(shape[:-1]) ** -0.5))


if __name__ == "__main__":
    sys.exit(main())
