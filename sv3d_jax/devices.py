"""Choice of the device, and the cache of compiled programs."""

import os
from pathlib import Path

from sv3d_jax.errors import InputError

CACHE_BYTES = 2 << 30


def select_device(name: str | None) -> None:
    """Make `name` (cpu, gpu, tpu, gpu:1) the default device; None takes the best one.

    A backend that was named, here or in JAX_PLATFORMS, and is absent is an InputError that lists what there is.
    """
    import jax

    platform, _, index = (name or "").partition(":")
    if platform not in ("", "cpu", "gpu", "cuda", "rocm", "tpu") or not (index or "0").isdigit():
        raise InputError(
            f"--device {name}: unknown", hint="cpu, gpu, tpu, or one of several, for example gpu:1"
        )
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")  # an accelerator is then not even opened
    try:
        devices = jax.local_devices(backend=platform or None)
    except (RuntimeError, AssertionError) as error:
        if platform:
            raise InputError(f"--device {name}: this machine has no such device", hint=_present()) from error
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            f"jax cannot start on JAX_PLATFORMS={asked}: {error or 'no such backend'}",
            hint="unset JAX_PLATFORMS to take the best device there is",
        ) from error
    if platform:
        if int(index or 0) >= len(devices):
            raise InputError(f"--device {name}: there are {len(devices)} of this kind, counted from 0")
        jax.config.update("jax_default_device", devices[int(index or 0)])


def enable_compile_cache(directory: Path | None = None) -> None:
    """Keep compiled programs on disk for the next start: one folder per jaxlib version, of limited size.

    A folder that jax was already told to use (JAX_COMPILATION_CACHE_DIR) stays.
    """
    import jax
    import jaxlib

    if jax.config.jax_compilation_cache_dir is not None:
        return
    directory = directory or cache_directory() / f"compiled-jaxlib-{jaxlib.__version__}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # compiled programs are trusted code
    except OSError:
        return  # a home that cannot be written costs compile time, not the run
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def cache_directory() -> Path:
    """Where this user's cached files go."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "sv3d_jax"


def _present() -> str:
    import jax

    try:
        found = ", ".join(f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices())
    except (RuntimeError, AssertionError):
        found = "none that starts"
    return f"devices here: {found}"
