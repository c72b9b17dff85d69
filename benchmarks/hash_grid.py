"""Hash encoding: points per second forward and with the gradient of the tables.

    python benchmarks/hash_grid.py [--points 131072] [--levels 16] [--table 524288] [--json]

Compared in the same run with JAX's automatic differentiation of the encoding and, if torch is installed (extra
`bench`), with the encoding by indexing in torch, on the same number of threads. Medians of `--repeats` alternating
calls after two to warm up; compile time is reported separately.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable

import jax
import numpy as np

from sv3d_jax.recon.nerf.hash_grid import CORNERS, HASH_PRIMES, HashGrid, encode, init_tables


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
    result = measure(options.points, options.levels, options.table, options.repeats)
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


def measure(num_points: int, levels: int, table_size: int, repeats: int) -> dict:
    """Milliseconds and points per second of all implementations that can run."""
    grid = HashGrid(num_levels=levels, table_size=table_size)
    tables = init_tables(grid, jax.random.key(0))
    points = jax.random.uniform(jax.random.key(1), (num_points, 3))
    forward = jax.jit(lambda tables: encode(grid, tables, points))
    gradient = jax.jit(jax.value_and_grad(lambda tables: (encode(grid, tables, points) ** 2).sum()))
    autodiff = jax.jit(jax.value_and_grad(lambda tables: (encode.fun(grid, tables, points) ** 2).sum()))
    ways = {
        "forward": lambda: jax.block_until_ready(forward(tables)),
        "forward_and_gradient": lambda: jax.block_until_ready(gradient(tables)),
        "forward_and_autodiff": lambda: jax.block_until_ready(autodiff(tables)),
    }
    if importlib.util.find_spec("torch"):
        ways |= torch_ways(grid, np.asarray(tables), np.asarray(points))
    first = {name: _seconds(way) for name, way in ways.items()}
    rounds = [{name: _seconds(way) for name, way in ways.items()} for _ in range(2 + repeats)][2:]
    medians = {name: float(np.median([times[name] for times in rounds])) for name in ways}
    rates = {name: round(num_points / value / 1e6, 3) for name, value in medians.items()}
    ours = rates["forward_and_gradient"]
    result = {
        "device": jax.devices()[0].device_kind,
        "points": num_points,
        "levels": levels,
        "table_size": table_size,
        "milliseconds": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "million_points_per_second": rates,
        "speed_over_autodiff": round(ours / rates["forward_and_autodiff"], 2),
        "first_call_seconds": {name: round(value, 2) for name, value in first.items()},
    }
    if "torch_forward_and_gradient" in rates:
        result["speed_over_torch"] = round(ours / rates["torch_forward_and_gradient"], 2)
    return result


def torch_ways(grid: HashGrid, tables: np.ndarray, points: np.ndarray) -> dict[str, Callable]:
    """The same encoding in plain torch: all corners of a level are indexed at once."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(os.cpu_count() or 1)
    rows, x = torch.tensor(tables, requires_grad=True), torch.tensor(points)
    corners = torch.tensor(CORNERS)
    primes = torch.tensor(HASH_PRIMES)

    def encoded():
        features = []
        for level, resolution in enumerate(grid.resolutions):
            position = x * resolution
            base = position.floor().long()
            fraction = (position - base)[:, None]
            corner = base[:, None] + corners
            if (resolution + 1) ** 3 <= grid.table_size:
                i, j, k = corner.unbind(-1)
                index = i + (resolution + 1) * (j + (resolution + 1) * k)
            else:
                i, j, k = (corner * primes).unbind(-1)
                index = i ^ j ^ k
            weights = torch.where(corners.bool(), fraction, 1 - fraction).prod(-1, keepdim=True)
            features.append((rows[level][index % grid.table_size] * weights).sum(1))
        return torch.cat(features, -1)

    ours = np.asarray(encode(grid, jax.numpy.asarray(tables), jax.numpy.asarray(points)))
    np.testing.assert_allclose(encoded().detach().numpy(), ours, atol=1e-8)

    def gradient():
        rows.grad = None
        (encoded() ** 2).sum().backward()

    return {"torch_forward": encoded, "torch_forward_and_gradient": gradient}


def _seconds(way: Callable) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
