"""Ranges of the settings."""

import math

import pytest

from sv3d_jax.errors import InputError
from sv3d_jax.recon.config import ReconstructConfig


@pytest.mark.parametrize(
    ("tables", "name"),
    [
        ({"nerf": {"base_resolution": 0}}, "nerf.base_resolution"),
        ({"nerf": {"base_resolution": 64, "finest_resolution": 32}}, "finest_resolution"),
        ({"nerf": {"num_features": 0}}, "num_features"),
        ({"nerf": {"hidden_width": 0}}, "hidden_width"),
        ({"nerf": {"hidden_layers": -1}}, "hidden_layers"),
        ({"nerf": {"density_scale": 0.0}}, "density_scale"),
        ({"nerf": {"learning_rate": -0.1}}, "learning_rate"),
        ({"nerf": {"mask_weight": -1.0}}, "mask_weight"),
        ({"nerf": {"refresh_cells": 0}}, "refresh_cells"),
        ({"nerf": {"surface_levels": ()}}, "surface_levels"),
        ({"nerf": {"surface_levels": (1.0, -2.0)}}, "surface_levels"),
        ({"nerf": {"surface_blur": -1.0}}, "surface_blur"),
        ({"mesh": {"learning_rate": 0.0}}, "learning_rate"),
        ({"mesh": {"learning_rate": math.nan}}, "learning_rate"),
        ({"mesh": {"weights": {"mask": -1.0}}}, "mask"),
        ({"mesh": {"weights": {"depth": math.inf}}}, "depth"),
        ({"mesh": {"sds": {"weight": -1.0}}}, "weight"),
    ],
)
def test_a_setting_out_of_its_range_is_named(tables, name):
    with pytest.raises(InputError, match=name):
        ReconstructConfig(**tables)


@pytest.mark.parametrize("preset", ["preview", "fast", "quality"])
def test_presets_are_within_the_ranges(preset):
    assert ReconstructConfig(preset=preset).resolve()
