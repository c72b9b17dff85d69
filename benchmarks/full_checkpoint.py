"""Convert a random checkpoint of full size to an Orbax folder and back, compare every bit, report peak memory.

    python benchmarks/full_checkpoint.py [--folder /path/with/30/GB] [--shards 3]

Names and shapes are those of the published sv3d_p. Prints JSON: seconds and peak resident memory of each direction.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sv3d_jax.weights.safetensors_file import TensorInfo, write_safetensors
from sv3d_jax.weights.shards import open_files

KEYS = Path(__file__).parents[1] / "tests" / "reference" / "sv3d_p.keys.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    parser.add_argument("--keys", type=Path, default=KEYS, help="names and shapes to write")
    parser.add_argument("--shards", type=int, default=1, help="number of safetensors files to begin with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        original, orbax, back = (Path(folder) / name for name in ("a", "orbax", "b.safetensors"))
        write_random(original, arguments.keys, arguments.shards)
        files = open_files(original)
        report = {
            "tensors": len(files.tensors),
            "bytes": sum(file.stat().st_size for file in files.files),
            "to_orbax": convert(original, orbax),
            "to_safetensors": convert(orbax, back),
        }
        report["different"] = different_tensors(original, back)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["different"]))


def write_random(folder: Path, keys: Path, count: int) -> None:
    """Standard normal float32 tensors of every name and shape in a key list, one at a time, in `count` files."""
    shapes = list(json.loads(keys.read_text())["keys"].items())
    generator = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        infos = {name: TensorInfo(np.dtype(np.float32), tuple(shape)) for name, shape in shapes[index::count]}
        tensors = (np.asarray(generator.standard_normal(info.shape, np.float32)) for info in infos.values())
        file = folder / f"model-{index + 1:05d}-of-{count:05d}.safetensors"
        write_safetensors(file, infos, tensors, {})


def convert(source: Path, output: Path) -> dict[str, float]:
    """Run `sv3d convert` in a process of its own; its duration and peak resident memory."""
    start = time.monotonic()
    command = [sys.executable, "-m", "sv3d_jax", "convert", "--quiet", str(source), str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {
        "seconds": round(time.monotonic() - start, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),  # kilobytes on Linux
    }


def different_tensors(first: Path, second: Path) -> list[str]:
    """Names whose type, shape or bits differ between two files."""
    a, b = open_files(first), open_files(second)
    names = a.tensors.keys() | b.tensors.keys()
    same = {name for name in names if a.tensors.get(name) == b.tensors.get(name)}
    return sorted(
        (names - same) | {name for name in same if a.read(name).tobytes() != b.read(name).tobytes()}
    )


if __name__ == "__main__":
    main()
