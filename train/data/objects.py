"""The verb `data objects`: procedural objects as mesh files."""

from typing import Any

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.train.data.config import ObjectsConfig
from sv3d_jax.train.data.figures import figure_mesh
from sv3d_jax.train.data.mixed import mixed_mesh

FAMILIES = {"figures": figure_mesh, "mixed": mixed_mesh}

__all__ = ["FAMILIES", "figure_mesh", "mixed_mesh", "object_mesh", "run_objects"]


def object_mesh(family: str, seed: int) -> Mesh:
    """The object of a family with this seed, z up."""
    return FAMILIES[family](seed)


def run_objects(config: ObjectsConfig, progress: Progress | NullProgress) -> dict[str, Any]:
    """The verb `data objects`: object i has seed `config.seed + i` and is written to <seed>.glb."""
    from sv3d_jax.io.meshes import write_glb
    from sv3d_jax.io.outputs import OutputFolder

    seeds = range(config.seed, config.seed + config.count)
    files = [f"{seed}.glb" for seed in seeds]
    result = {"family": config.family, "output": config.output, "objects": config.count}
    folder = OutputFolder(config.output, {"verb": "data objects", **config.settings()}, config.overwrite)
    if config.dry_run:
        return result
    with folder:
        if not folder.done:
            progress.stage("objects", total=config.count)
            for seed, file in zip(seeds, files, strict=True):
                write_glb(folder.path(file), object_mesh(config.family, seed))
                progress.advance()
            folder.finish_stage("objects", files)
            folder.write_run_json(seeds=[seeds[0], seeds[-1]])
    return result
