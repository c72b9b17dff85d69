"""Hash encoding: points per second forward and with the gradient of the tables, against plain autodiff.

    python benchmarks/hash_grid.py [--points 131072] [--levels 16] [--table 524288] [--json]

Medians of `--repeats` calls after two warm-ups; the two ways take turns. Compiling is counted apart.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import numpy as np

from sv3d_jax.recon.nerf.hash_grid import HashGrid, encode, init_tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=2**17)
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--table", type=int, default=2**19)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    grid = HashGrid(num_levels=options.levels, table_size=options.table)
    tables = init_tables(grid, jax.random.key(0))
    points = jax.random.uniform(jax.random.key(1), (options.points, 3))
    ways = {
        "forward": jax.jit(lambda tables: encode(grid, tables, points)),
        "forward_and_gradient": jax.jit(
            jax.value_and_grad(lambda tables: (encode(grid, tables, points) ** 2).sum())
        ),
        "forward_and_autodiff": jax.jit(
            jax.value_and_grad(lambda tables: (encode.fun(grid, tables, points) ** 2).sum())
        ),
    }
    compile_s = {name: _seconds(way, tables) for name, way in ways.items()}
    rounds = [
        {name: _seconds(way, tables) for name, way in ways.items()} for _ in range(2 + options.repeats)
    ][2:]
    medians = {name: float(np.median([times[name] for times in rounds])) for name in ways}
    result = {
        "device": jax.devices()[0].device_kind,
        "points": options.points,
        "levels": options.levels,
        "table_size": options.table,
        "milliseconds": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "million_points_per_second": {
            name: round(options.points / value / 1e6, 3) for name, value in medians.items()
        },
        "gradient_to_autodiff": round(medians["forward_and_gradient"] / medians["forward_and_autodiff"], 3),
        "first_call_seconds": {name: round(value, 2) for name, value in compile_s.items()},
    }
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


def _seconds(function: Callable, tables: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(tables))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
