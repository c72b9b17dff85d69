"""Training runs that take seconds: tiny networks on a few rendered figures."""

from pathlib import Path

from sv3d_jax.config import load_config
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.config import TrainConfig
from sv3d_jax.train.loop import run_train
from tests.tiny_model import CONFIG

DATA = {"objects": 4, "size": 32, "num_frames": 5}


def tiny_config(folder: Path, output: str = "run", **changes) -> TrainConfig:
    """A run of the image encoder, of six steps in folder/output; runs in one folder share its rendered orbits."""
    model = folder / "model.toml"
    if not model.exists():
        model.write_text(CONFIG.to_toml())
    values = {
        "output": folder / output,
        "data_dir": folder / "data",
        "objective": "tower",
        "model": str(model),
        "batch_size": 2,
        "max_steps": 6,
        "validate_every": 100,
        "save_every": 100,
        "data": DATA,
        "diffusion": {"frames_per_sample": 3},
        "watch": {"samples_every": 0},
    }
    return load_config(TrainConfig, None, values | changes)


def write_tiny_recipe(folder: Path, max_steps: int, save_every: int = 500) -> Path:
    """Write the recipe of a run of the image encoder, for `sv3d train --config`; it renders its data to folder/data."""
    (folder / "model.toml").write_text(CONFIG.to_toml())
    path = folder / "train.toml"
    path.write_text(
        f"""
        objective = "tower"
        model = "{folder}/model.toml"
        data_dir = "{folder}/data"
        batch_size = 4
        max_steps = {max_steps}
        validate_every = 1000
        save_every = {save_every}
        log_every = 1
        data = {{objects = 8, size = 32, num_frames = 5}}
        optimizer = {{warmup_steps = 2}}
        diffusion = {{frames_per_sample = 3}}
        """
    )
    return path


def train(folder: Path, output: str = "run", **changes) -> dict:
    """Run it to its end."""
    return run_train(tiny_config(folder, output, **changes), NullProgress())
