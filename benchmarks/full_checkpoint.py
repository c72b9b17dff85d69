"""Convert a random checkpoint of full size to an Orbax folder and back, compare every bit, report peak memory.

    python benchmarks/full_checkpoint.py [--folder /path/with/30/GB]

Names and shapes are those of the published sv3d_p. Prints JSON: seconds and peak resident memory of each way.
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

from sv3d_jax.weights.safetensors_file import SafetensorsFile, TensorInfo, write_safetensors

KEYS = Path(__file__).parents[1] / "tests" / "reference" / "sv3d_p.keys.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    parser.add_argument("--keys", type=Path, default=KEYS, help="names and shapes to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        original, orbax, back = (Path(folder) / name for name in ("a.safetensors", "orbax", "b.safetensors"))
        write_random(original, arguments.keys)
        report = {
            "tensors": len(SafetensorsFile(original).tensors),
            "bytes": original.stat().st_size,
            "to_orbax": convert(original, orbax),
            "to_safetensors": convert(orbax, back),
        }
        report["different"] = different_tensors(original, back)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["different"]))


def write_random(path: Path, keys: Path) -> None:
    """Standard normal float32 tensors of every name and shape in a key list, one at a time."""
    shapes = json.loads(keys.read_text())["keys"]
    infos = {name: TensorInfo(np.dtype(np.float32), tuple(shape)) for name, shape in shapes.items()}
    generator = np.random.default_rng(0)
    tensors = (np.asarray(generator.standard_normal(info.shape, np.float32)) for info in infos.values())
    write_safetensors(path, infos, tensors, {})


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
    a, b = SafetensorsFile(first), SafetensorsFile(second)
    names = a.tensors.keys() | b.tensors.keys()
    same = {name for name in names if a.tensors.get(name) == b.tensors.get(name)}
    return sorted(
        (names - same) | {name for name in same if a.read(name).tobytes() != b.read(name).tobytes()}
    )


if __name__ == "__main__":
    main()
