"""What is said where the folder of checkpoints cannot be opened."""

import errno
import os

import jax.numpy as jnp
import pytest

from sv3d_jax.errors import CheckpointError
from sv3d_jax.train import checkpoints as module
from sv3d_jax.train.checkpoints import Checkpoints, checkpoint_steps


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_made_is_not_called_unreadable(number, tmp_path, monkeypatch):
    monkeypatch.setattr(module.ocp, "CheckpointManager", failing(OSError(number, os.strerror(number))))
    with pytest.raises(
        CheckpointError, match="checkpoints cannot be written: .*(?i:no space|denied|read-only)"
    ):
        Checkpoints(tmp_path / "checkpoints")


def test_the_end_of_another_process_is_no_fault_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module.ocp, "CheckpointManager", failing(RuntimeError("a peer has died")))
    with pytest.raises(RuntimeError, match="a peer has died"):
        Checkpoints(tmp_path / "checkpoints")


def test_a_folder_of_other_things_to_read_is_said_to_be_one(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    monkeypatch.setattr(module.ocp, "CheckpointManager", failing(ValueError("no step")))
    with pytest.raises(CheckpointError, match="is no folder of checkpoints"):
        checkpoint_steps(tmp_path)
