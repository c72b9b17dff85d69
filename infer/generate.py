"""The `orbit` and `generate` verbs: pictures to orbits and meshes. A repeated run skips finished stages."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sv3d_jax.config import to_plain
from sv3d_jax.devices import open_device
from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError
from sv3d_jax.infer.config import GenerateConfig, OrbitConfig
from sv3d_jax.infer.pictures import RunPicture, prepare_pictures
from sv3d_jax.io.documents import read_record
from sv3d_jax.io.images import require_readable
from sv3d_jax.io.inputs import refuse_overwriting
from sv3d_jax.io.outputs import RUN_FILE, OutputFolder, check_output_parent, require_space, write_json
from sv3d_jax.io.video import available_format
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.plan import checked_size
from sv3d_jax.progress import Progress
from sv3d_jax.recon.config import ReconstructConfig

if TYPE_CHECKING:
    from sv3d_jax.cameras.orbit import CameraPath
    from sv3d_jax.infer.batch import OrbitSampler
    from sv3d_jax.pipeline import Pipeline

NOT_IN_RESULT = ("batch", "low_memory", "auto_fit", "skip_broken")  # settings that do not change the result
BESIDE_FRAMES = ("input.png", "orbit.*")  # that `Orbit.save` writes
BESIDE_MESH = ("mesh.*", "turntable.*", "relit.*", "albedo.png", "normals.png", "comparison.png")
LEAST_SHARE = 0.1  # of the bytes of raw frames that an orbit takes on disk, at least
ORBIT_STAGES = ["load", "preprocess", "compile", "sample", "decode", "write"]
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

    picture: RunPicture
    folder: OutputFolder


def _run(
    verb: str,
    config: OrbitConfig,
    reconstruction: ReconstructConfig | None,
    progress: Progress,
    sds: bool = False,
) -> dict[str, Any]:
    """Check all inputs, before jax starts; then process the pictures in groups that are sampled together."""
    from sv3d_jax.weights.hub import MINI_NOTE, read_model_config

    model = read_model_config(config.weights, config.variant)
    size = checked_size(model, config.size)
    if sds:
        from sv3d_jax.recon.guide import check_model

        check_model(model)
    cameras = config.camera_path(model.num_frames).with_input(model.family.input_frame)
    require_readable(len(cameras), size, f"{len(cameras)} frames of --size {size}")
    settings = _settings(verb, config, model, cameras, reconstruction)
    check_output_parent(config.output)
    pictures, left_out = prepare_pictures(config, model, size, progress)
    jobs = [_Job(picture, _folder(config, picture, settings)) for picture in pictures]
    _refuse_overwriting(config, jobs, reconstruction is not None)
    batch = _BatchRecord(config.output, settings, jobs, left_out) if pictures[0].folder else None

    todo = sum(not (job.folder.directory / RUN_FILE).exists() for job in jobs)
    raw = todo * len(cameras) * size**2 * 3
    require_space(config.output, int(LEAST_SHARE * raw), f"{todo} orbits of {len(cameras)} frames")

    open_device(config.device, config.compile_cache)
    from sv3d_jax.programs import loading_ahead

    with loading_ahead((verb, config.without_inputs())):
        from sv3d_jax.infer.batch import OrbitSampler

        sampler = OrbitSampler(config, model, cameras, progress, len(jobs))
        if config.weights == "mini":
            progress.note(MINI_NOTE.format(size=size))
        elif reconstruction is not None and model.family.has_cameras and not np.ptp(cameras.elevations_deg):
            progress.note(SINE_NOTE)
        reported = {"left_out": left_out} if left_out else {}
        if config.dry_run:
            places = [str(job.folder.directory) for job in jobs]
            plan = str(sampler.plan)
            return {"dry_run": True, "model": model.name, "plan": plan, "directories": places} | reported

        if batch is not None:
            batch.begin()
        if reconstruction is not None and todo:
            _compile_ahead(reconstruction, len(cameras), size)
        _process(sampler, jobs, config, reconstruction, progress, sds)
        if batch is not None:
            batch.finish()
        names = (job.picture.folder or job.picture.path.stem for job in jobs)
        return {
            name: _results(job.folder.directory) for name, job in zip(names, jobs, strict=True)
        } | reported


def _compile_ahead(reconstruction: ReconstructConfig, frames: int, size: int) -> None:
    """Compile what reconstructions of orbits of this size need, in the background."""
    # All of it is imported here: threads that import modules at the same time may deadlock.
    from sv3d_jax.recon import reconstruct as _all  # noqa: F401
    from sv3d_jax.recon import runner
    from sv3d_jax.recon.methods import find_method

    stages = reconstruction.stages_until("all", find_method(reconstruction.method))
    runner.compile_ahead(stages, reconstruction.resolve(), frames, size, size)


def _refuse_overwriting(config: OrbitConfig, jobs: list[_Job], makes_mesh: bool) -> None:
    """Raise InputError if a picture, a mask or the cameras of a run are among the files that it will write."""
    given = [file for job in jobs for file in (job.picture.path, job.picture.mask)] + [config.cameras]
    further = BESIDE_FRAMES + BESIDE_MESH if makes_mesh else BESIDE_FRAMES
    refuse_overwriting([file for file in given if file], [job.folder.directory for job in jobs], further)


def _process(
    sampler: "OrbitSampler",
    jobs: list[_Job],
    config: OrbitConfig,
    reconstruction: ReconstructConfig | None,
    progress: Progress,
    sds: bool,
) -> None:
    """Orbits, and meshes if wanted, of all jobs; those that are done already are left as they are."""
    video = "png" if config.format == "png" else available_format(config.format)
    for start in range(0, len(jobs), sampler.pictures_at_once):
        group = jobs[start : start + sampler.pictures_at_once]
        with ExitStack() as held:
            for job in group:
                held.enter_context(job.folder)
                if len(jobs) > 1 and not job.folder.done:
                    progress.note(f"{job.picture.path} -> {job.folder.directory}")
            _sample(sampler, [job for job in group if not job.folder.done], video, progress)
            for job in group:
                _finish(job.folder, reconstruction, progress, sampler, sds)


class _BatchRecord:
    """The `run.json` of a folder with a subfolder for each picture: which there are, and what was left out.

    Raises InputError where the folder holds the results of a single picture.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], jobs: list[_Job], left_out: list[str]):
        self._file = directory / RUN_FILE
        folders = [job.picture.folder for job in jobs]
        record = {"config": {**settings, "images": None}, "pictures": folders, "left_out": left_out}
        self._record = json.loads(json.dumps(to_plain(record)))
        self._earlier = read_record(self._file)
        if self._earlier is not None and "pictures" not in self._earlier:
            raise InputError(
                f"{directory} holds the results of a single picture", hint="choose another folder with -o"
            )

    def begin(self) -> None:
        """Remove the record of an earlier run with other pictures, so that the folder does not count as complete."""
        if self._earlier != self._record:
            self._file.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the record, unless it is there already."""
        if not self._file.exists():
            write_json(self._file, self._record)


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


def _folder(config: OrbitConfig, picture: RunPicture, settings: dict[str, Any]) -> OutputFolder:
    """The checked folder of a picture's results; the settings and a hash of the picture identify the run in it."""
    own = {**settings, "images": [str(picture.path)], "picture_sha256": _digest(picture.path)}
    if picture.mask is not None:
        own |= {"mask": [str(picture.mask)], "mask_sha256": _digest(picture.mask)}
    return OutputFolder(
        config.output / picture.folder,
        own,
        config.overwrite,
        below=config.output if picture.folder else None,
        renamed=SamplingConfig.RENAMED,
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sample(sampler: "OrbitSampler", jobs: list[_Job], video: str, progress: Progress) -> None:
    """Sample the orbits of the jobs that have none yet, and write them into their folders."""
    jobs = [job for job in jobs if not job.folder.stage_done("orbit")]
    if not jobs:
        return
    progress.stages = ORBIT_STAGES
    orbits = sampler([job.picture.prepared for job in jobs])
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
