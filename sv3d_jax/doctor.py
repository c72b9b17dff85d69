"""The `doctor` verb: what works on this machine and what does not."""

import os
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sv3d_jax.config import CommonConfig
from sv3d_jax.errors import SV3DError

if TYPE_CHECKING:
    from sv3d_jax.progress import Progress

DISK_NEEDED = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommonConfig):
    """Report versions, devices, video encoder, disk space and weights; exit code 1 if a run would fail here."""


def run_doctor(config: DoctorConfig, progress: "Progress") -> dict[str, Any]:
    """The report. `problems` would make a run fail, `remarks` would not; `ok` is true without problems."""
    import platform

    from sv3d_jax.cutout import ways

    problems: list[str] = []
    remarks: list[str] = []
    report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(problems),
        "devices": _devices(config.device, problems, remarks),
        "bfloat16": _bfloat16(config.compile_cache, problems),
        "memory": _host_memory(),
        "video": _video(problems, remarks),
        "pictures": ways(),
        "disk_free": _disk(problems),
        "weights": _weights(problems),
        "offline": os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"),
        "remarks": remarks,
        "problems": problems,
        "ok": not problems,
    }
    return report


def _packages(problems: list[str]) -> dict[str, str]:
    """Installed versions of this package and its dependencies; missing ones are added to the problems."""
    try:
        needed = [line for line in requires("sv3d_jax") or [] if "extra ==" not in line]
        found = {"sv3d_jax": version("sv3d_jax")}
    except PackageNotFoundError:
        problems.append("sv3d_jax is not installed: run pip install . in its folder")
        return {}
    for line in needed:
        name = line.split(";")[0].rstrip("<>=!~.,0123456789 ")
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            problems.append(f"{name} is missing: pip install '{line}'")
    return found


def _devices(wanted: str | None, problems: list[str], remarks: list[str]) -> list[str]:
    try:
        import jax

        from sv3d_jax.devices import device_failure, select_device

        select_device(wanted)
        if failure := device_failure():
            problems.append(failure.message)
        devices = jax.devices()
    except (SV3DError, ImportError, RuntimeError) as error:
        problems.append(f"jax does not start: {error}")
        return []
    if all(device.platform == "cpu" for device in devices):
        remarks.append(
            "no accelerator: mini, render, convert, eval and reconstruct run; full-size sampling takes hours"
        )
    return [_device_line(device) for device in devices]


def _device_line(device: Any) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return f"{device.platform}:{device.id} {device.device_kind}" + (f", {_gib(limit)}" if limit else "")


def _bfloat16(keep_programs: bool, problems: list[str]) -> str:
    """What products of 16-bit factors are worth on the device that `_devices` has selected."""
    if problems:
        return "unknown"
    from sv3d_jax.devices import enable_compile_cache
    from sv3d_jax.precision import LEAST_SPEEDUP, MIN_WIDTH, best_dtype, speedup_in_16_bit

    if best_dtype(0) == "bfloat16":
        return "used unless --dtype says otherwise"
    if keep_programs:
        enable_compile_cache()
    speedup = speedup_in_16_bit()
    if speedup == 1:
        return "this CPU has no instructions for it: computed in float32"
    used = f"used by models of {MIN_WIDTH} channels or more" if speedup >= LEAST_SPEEDUP else "not used"
    return f"products take 1/{speedup:.1f} of float32's time: {used} unless --dtype says otherwise"


def _host_memory() -> str:
    try:
        return _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return "unknown"


def _video(problems: list[str], remarks: list[str]) -> str:
    try:
        from sv3d_jax.io.video import available_format
    except ImportError as error:
        problems.append(f"videos cannot be written: {error}")
        return "none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if available_format("mp4") == "mp4":
            return "mp4 (H.264)"
    remarks.append("no H.264 encoder: videos are written as gif")
    return "gif"


def _disk(problems: list[str]) -> dict[str, str]:
    from sv3d_jax.devices import cache_directory
    from sv3d_jax.io.outputs import free_bytes

    free = {"here": free_bytes(Path.cwd()), "cache": free_bytes(cache_directory())}
    problems += [f"little disk space ({name})" for name, size in free.items() if size < DISK_NEEDED]
    return {name: _gib(size) for name, size in free.items()}


def _weights(problems: list[str]) -> dict[str, str]:
    """Where there are weights: the shipped model, and SV3D models in the Hugging Face cache."""
    import sv3d_jax.weights

    found = {}
    mini = Path(sv3d_jax.weights.__file__).parent / "mini"
    if size := sum(file.stat().st_size for file in mini.glob("*.safetensors")):
        found["mini"] = f"{size / 1e6:.1f} MB"
    else:
        problems.append(f"the shipped weights are missing from {mini}")
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return found
    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*sv3d*")):
        found[folder.name.removeprefix("models--").replace("--", "/")] = str(folder)
    return found


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
