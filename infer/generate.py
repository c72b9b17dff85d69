"""The `orbit` and `generate` verbs: pictures to orbits and meshes. A repeated run skips finished stages."""

import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sv3d_jax.cutout import Remover
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError
from sv3d_jax.infer.config import GenerateConfig, OrbitConfig
from sv3d_jax.io.images import read_mask, read_picture
from sv3d_jax.io.outputs import OutputFolder
from sv3d_jax.io.video import available_format
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.plan import checked_size
from sv3d_jax.preprocess import PreparedImage, prepare_for
from sv3d_jax.progress import Progress
from sv3d_jax.recon.config import ReconstructConfig

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath
    from sv3d_jax.infer.batch import OrbitSampler
    from sv3d_jax.pipeline import Pipeline

NOT_IN_RESULT = ("batch", "low_memory", "auto_fit")  # settings that do not change the result
ORBIT_STAGES = ["load", "preprocess", "compile", "sample", "decode", "write"]
MINI_NOTE = (
    "mini is a small model for trying things out: it knows one kind of object, upright figures on a white ground,"
    " at {size} px; other objects come out as such figures. For those: --weights with SV3D's own weights"
)

SINE_NOTE = "meshes come out better from an orbit that shows top and bottom: --orbit sine (SV3D, table 8)"


def run_orbit(config: OrbitConfig, progress: Progress) -> dict[str, Any]:
    """The `orbit` verb: write an orbit folder with a video for every picture; returns the paths."""
    return _run("orbit", config, None, progress)


def run_generate(config: GenerateConfig, progress: Progress) -> dict[str, Any]:
    """The `generate` verb: as `run_orbit`, and a mesh with a turntable video in the same folder."""
    reconstruction = ReconstructConfig(preset=config.reconstruction, seed=config.seed)
    if config.sds:
        reconstruction.require_use("sds")
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
    """Check all inputs first, then process the pictures in groups that are sampled together."""
    from sv3d_jax.infer.batch import OrbitSampler
    from sv3d_jax.weights.hub import read_model_config

    model = read_model_config(config.weights, config.variant)
    size = checked_size(model, config.size)
    if sds:
        from sv3d_jax.recon.guide import check_model

        check_model(model)
    family = model.family
    cameras = config.camera_path(model.num_frames).with_input(family.input_frame)
    settings = _settings(verb, config, model, cameras, reconstruction)
    jobs = _jobs(config, model, settings, size)
    sampler = OrbitSampler(config, model, cameras, progress)
    if config.weights == "mini":
        progress.note(MINI_NOTE.format(size=size))
    elif reconstruction is not None and model.family.has_cameras and not np.ptp(cameras.elevations_deg):
        progress.note(SINE_NOTE)
    if config.dry_run:
        places = [str(job.folder.directory) for job in jobs]
        return {"dry_run": True, "model": model.name, "plan": str(sampler.plan), "directories": places}

    video = "png" if config.format == "png" else available_format(config.format)

    for start in range(0, len(jobs), sampler.pictures_at_once):
        group = jobs[start : start + sampler.pictures_at_once]
        with ExitStack() as held:
            for job in group:
                held.enter_context(job.folder)
                if len(jobs) > 1 and not job.folder.done:
                    progress.note(f"{job.image} -> {job.folder.directory}")
            _sample(sampler, [job for job in group if not job.folder.done], video, progress)
            for job in group:
                _finish(job.folder, reconstruction, progress, sampler, sds)
    return {job.image.stem: _results(job.folder.directory) for job in jobs}


def _settings(
    verb: str,
    config: OrbitConfig,
    model: ModelConfig,
    cameras: "CameraPath",
    reconstruction: ReconstructConfig | None,
) -> dict[str, Any]:
    """What decides the results: recorded in their folder, and compared with an earlier run there."""
    settings = {"verb": verb, **config.settings()}
    settings["frames"] = model.num_frames if config.frames is None else config.frames
    settings["guidance"] = config.sampling.resolve(model).guidance
    for name in NOT_IN_RESULT:
        settings.pop(name)
    for absent in ("mask", "box"):
        if not settings[absent]:
            settings.pop(absent)
    if config.cameras is not None:
        settings["cameras"] = [cameras.azimuths_deg.tolist(), cameras.elevations_deg.tolist()]
    if reconstruction is not None:
        settings["reconstruction"] = reconstruction.resolve()
    return settings


def _finish(
    folder: OutputFolder,
    reconstruction: ReconstructConfig | None,
    progress: Progress,
    sampler: "OrbitSampler",
    sds: bool,
) -> None:
    """What comes after the orbit in a folder: the mesh, if one is wanted, and run.json."""
    if folder.done:
        progress.note(f"{folder.directory} is done already")
        return
    if reconstruction is not None and not folder.stage_done("mesh"):
        made = _mesh(folder, reconstruction, progress, sampler.pipeline if sds else None)
        folder.finish_stage("mesh", *made)
    folder.write_run_json()


def _jobs(config: OrbitConfig, model: ModelConfig, settings: dict[str, Any], size: int) -> list[_Job]:
    """One job per picture, with the picture prepared and the folder checked.

    The settings and a hash of the picture identify a run. Raises InputError if two pictures have the same name.
    """
    several = len(config.images) > 1
    counts = Counter(image.stem for image in config.images)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        raise InputError(
            f"several pictures are named {twice[0]}, so their folders would have the same name",
            hint="rename one, or run the pictures one by one",
        )
    jobs, remover = [], Remover()
    for image, mask in zip_longest(config.images, config.mask):
        prepared = prepare_for(
            model,
            read_picture(image),
            size,
            config.background,
            config.frame_ratio,
            None if mask is None else read_mask(mask),
            config.box,
            remover,
        )
        own = {**settings, "images": [str(image)], "picture_sha256": _digest(image)}
        if mask is not None:
            own |= {"mask": [str(mask)], "mask_sha256": _digest(mask)}
        directory = config.output / image.stem if several else config.output
        folder = OutputFolder(
            directory, own, config.overwrite, parents=several, renamed=SamplingConfig.RENAMED
        )
        jobs.append(_Job(image, prepared, folder))
    return jobs


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sample(sampler: "OrbitSampler", jobs: list[_Job], video: str, progress: Progress) -> None:
    """Sample the orbits of the jobs that have none yet, and write them into their folders."""
    jobs = [job for job in jobs if not job.folder.stage_done("orbit")]
    if not jobs:
        return
    progress.stages = ORBIT_STAGES
    orbits = sampler([job.prepared for job in jobs])
    progress.stage("write")
    for job, orbit in zip(jobs, orbits, strict=True):
        facts = {
            "seed": orbit.seed,
            "notes": orbit.notes + sampler.notes,
            "timings_s": orbit.timings,
            "weights": sampler.pipeline.weights,
        }
        job.folder.finish_stage("orbit", orbit.save(job.folder.directory, video), facts)


def _mesh(
    folder: OutputFolder, config: ReconstructConfig, progress: Progress, sds: "Pipeline | None"
) -> tuple[list[Path], dict[str, Any]]:
    """Reconstruct the mesh from the orbit's files, so that a resumed run gives the same mesh.

    Returns the written files and facts for run.json.
    """
    from sv3d_jax.io.orbits import read_orbit
    from sv3d_jax.recon.methods import find_method
    from sv3d_jax.recon.reconstruct import reconstruct_into

    progress.stages = find_method(config.method).progress_stages(config.resolve())
    progress.stage("load")
    orbit = read_orbit(folder.directory)
    return reconstruct_into(folder.directory, orbit, config, progress, folder.scratch, sds=sds)


def _results(directory: Path) -> dict[str, str]:
    """Paths of the main results in a folder, by kind; kinds without a file are left out."""
    names = {"orbit": "orbit.*", "contact": "contact.png", "mesh": "mesh.glb", "turntable": "turntable.*"}
    found = {kind: sorted(directory.glob(pattern)) for kind, pattern in names.items()}
    return {"directory": str(directory), **{kind: str(files[0]) for kind, files in found.items() if files}}
