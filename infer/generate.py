"""The main job: pictures to orbits and on to meshes, in stages that a second start does not repeat."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sv3d_jax.errors import InputError, OutOfMemory
from sv3d_jax.infer.config import GenerateConfig, OrbitConfig
from sv3d_jax.io.images import read_picture
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.video import available_format
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.plan import Plan, check_size, memory_advice, plan_orbit, require_accelerator
from sv3d_jax.preprocess import PreparedImage, prepare_for
from sv3d_jax.progress import Progress
from sv3d_jax.recon.config import ReconstructConfig

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath
    from sv3d_jax.pipeline import Orbit, Pipeline

ORBIT_STAGES = ["load", "preprocess", "compile", "sample", "decode", "write"]
MINI_NOTE = (
    "mini is a small model for trying things out: it knows one kind of object, upright figures on a white ground,"
    " at {size} px; other objects come out as such figures. For those: --weights with SV3D's own weights"
)

SINE_NOTE = "meshes come out better from an orbit that shows top and bottom: --orbit sine (SV3D, table 8)"


def run_orbit(config: OrbitConfig, progress: Progress) -> dict[str, Any]:
    """The `orbit` verb: an orbit folder with a video for every picture."""
    return _run("orbit", config, None, progress)


def run_generate(config: GenerateConfig, progress: Progress) -> dict[str, Any]:
    """The `generate` verb: an orbit folder and in it a mesh with a turntable video for every picture."""
    reconstruction = ReconstructConfig(preset=config.reconstruction, seed=config.seed)
    if config.sds:
        reconstruction.require_fine_stage("--sds")
    return _run("generate", config, reconstruction, progress, config.sds)


@dataclass(frozen=True)
class _Job:
    """One picture and the folder of its results."""

    image: Path
    prepared: PreparedImage
    folder: OutputFolder


def _run(
    verb: str,
    config: OrbitConfig,
    reconstruction: ReconstructConfig | None,
    progress: Progress,
    sds: bool = False,
) -> dict[str, Any]:
    """Check everything that can be checked, then do one picture after the other."""
    from sv3d_jax.weights.hub import read_model_config

    model = read_model_config(config.weights, config.variant)
    size = config.size or model.native_size
    check_size(model, size)
    if sds:
        from sv3d_jax.recon.guide import check_model

        check_model(model)
    cameras = config.camera_path()
    settings = {"verb": verb, **config.settings()}
    if config.cameras is not None:
        settings["cameras"] = [cameras.azimuths_deg.tolist(), cameras.elevations_deg.tolist()]
    if reconstruction is not None:
        settings["reconstruction"] = reconstruction.resolve()
    jobs = _jobs(config, model, settings, size)
    plan = _plan(config, model, len(cameras), size)
    if config.weights == "mini":
        progress.note(MINI_NOTE.format(size=size))
    elif reconstruction is not None and model.variant == "p" and not np.ptp(cameras.elevations_deg):
        progress.note(SINE_NOTE)
    if config.dry_run:
        places = [str(job.folder.directory) for job in jobs]
        return {"dry_run": True, "model": model.name, "plan": str(plan), "directories": places}

    video = "png" if config.format == "png" else available_format(config.format)

    attempts = _attempts(config)

    @cache
    def pipeline() -> "Pipeline":
        from sv3d_jax.devices import memory_in_use
        from sv3d_jax.pipeline import Pipeline

        progress.stage("load")
        now = attempts[0]
        with memory_advice(_plan(now, model, len(cameras), size), memory_in_use()):
            return Pipeline.from_pretrained(now.weights, now.variant, now.dtype, low_memory=now.low_memory)

    def sampled(picture: PreparedImage) -> "Orbit":
        while True:
            try:
                return _orbit(pipeline(), attempts[0], model, cameras, picture, progress)
            except OutOfMemory as error:
                if len(attempts) == 1:
                    raise
                progress.note(error.message)
            del attempts[0]
            pipeline.cache_clear()  # before the next one is loaded
            progress.note(f"trying again with {_changes(config, attempts[0])}")

    for job in jobs:
        with job.folder as folder:
            if folder.done:
                progress.note(f"{folder.directory} is done already")
                continue
            if len(jobs) > 1:
                progress.note(f"{job.image} -> {folder.directory}")
            if not folder.stage_done("orbit"):
                progress.stages = ORBIT_STAGES
                orbit = sampled(job.prepared)
                progress.stage("write")
                changed = _changes(config, attempts[0])
                notes = orbit.notes + [f"memory ran out: {changed}"] * bool(changed)
                facts = {"seed": orbit.seed, "notes": notes, "timings_s": orbit.timings}
                files = orbit.save(folder.directory, video)
                folder.finish_stage("orbit", files, {**facts, "weights": pipeline().weights})
            if reconstruction is not None and not folder.stage_done("mesh"):
                made = _mesh(folder, reconstruction, progress, pipeline() if sds else None)
                folder.finish_stage("mesh", *made)
            folder.write_run_json()
    return {job.image.stem: _results(job.folder.directory) for job in jobs}


def _jobs(config: OrbitConfig, model: ModelConfig, settings: dict[str, Any], size: int) -> list[_Job]:
    """One per picture, prepared and with its folder checked. A run is known by its settings and its picture."""
    several = len(config.images) > 1
    counts = Counter(image.stem for image in config.images)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        raise InputError(
            f"several pictures are named {twice[0]}, and so would be their folders",
            hint="rename one, or run them one by one",
        )
    jobs = []
    for image in config.images:
        prepared = prepare_for(model, read_picture(image), size, config.background, config.frame_ratio)
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        own = {**settings, "images": [str(image)], "picture_sha256": digest}
        directory = config.output / image.stem if several else config.output
        folder = OutputFolder(directory, own, config.overwrite, parents=several)
        jobs.append(_Job(image, prepared, folder))
    return jobs


def _plan(config: OrbitConfig, model: ModelConfig, num_frames: int, size: int) -> Plan:
    """Memory and time of one orbit; a full-size model on a CPU must have been asked for."""
    import jax

    from sv3d_jax.pipeline import resolve_dtype

    itemsize = 2 if resolve_dtype(config.dtype) == "bfloat16" else 4
    plan = plan_orbit(
        model, num_frames, config.steps, size, 1, itemsize, config.decode_chunk, config.low_memory
    )
    require_accelerator(plan, jax.default_backend(), config.device)
    return plan


def _attempts(config: OrbitConfig) -> list[OrbitConfig]:
    """The settings and, with --auto-fit, what to try after them when memory runs out; the size stays."""
    attempts = [config]
    if config.auto_fit:
        for change in ({"decode_chunk": 1}, {"low_memory": True}, {"dtype": "bfloat16"}):
            attempts.append(replace(attempts[-1], **change))
    return [new for new, old in zip(attempts, [None, *attempts], strict=False) if new != old]


def _changes(asked: OrbitConfig, taken: OrbitConfig) -> str:
    """What is not as it was asked for, as flags."""
    flags = {
        "--decode-chunk 1": taken.decode_chunk != asked.decode_chunk,
        "--low-memory": taken.low_memory != asked.low_memory,
        "--dtype bfloat16": taken.dtype != asked.dtype,
    }
    return " ".join(flag for flag, is_new in flags.items() if is_new)


def _orbit(
    pipeline: "Pipeline",
    config: OrbitConfig,
    model: ModelConfig,
    cameras: "CameraPath",
    picture: PreparedImage,
    progress: Progress,
) -> "Orbit":
    from sv3d_jax.diffusion.sampler import Churn

    lowest = model.cfg_min if config.cfg_min is None else config.cfg_min
    highest = model.cfg_max if config.cfg_max is None else config.cfg_max
    return pipeline(
        picture,
        cameras=cameras,
        num_steps=config.steps,
        cfg=(lowest, highest),
        guidance=config.guidance,
        churn=Churn(s_churn=config.churn) if config.churn else None,
        seed=config.seed,
        size=config.size,
        decode_chunk=config.decode_chunk,
        progress=progress,
    )


def _mesh(
    folder: OutputFolder, config: ReconstructConfig, progress: Progress, sds: "Pipeline | None"
) -> tuple[list[Path], dict[str, Any]]:
    """The mesh of the orbit in a folder, from its files, so that a resumed run gives the same one."""
    from sv3d_jax.io.orbits import read_orbit
    from sv3d_jax.recon.reconstruct import STAGES, reconstruct_into

    progress.stages = STAGES
    progress.stage("load")
    orbit = read_orbit(folder.directory)
    return reconstruct_into(folder.directory, orbit, config, progress, folder.scratch, sds=sds)


def _results(directory: Path) -> dict[str, str]:
    """What lies in a folder of results, by the names that a user looks for."""
    names = {"orbit": "orbit.*", "contact": "contact.png", "mesh": "mesh.glb", "turntable": "turntable.*"}
    found = {kind: sorted(directory.glob(pattern)) for kind, pattern in names.items()}
    return {"directory": str(directory), **{kind: str(files[0]) for kind, files in found.items() if files}}
