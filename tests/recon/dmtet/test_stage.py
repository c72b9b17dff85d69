"""The fine stage on a ball, from a coarse surface that is known."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.metrics.geometry import is_closed
from sv3d_jax.recon.config import MeshConfig, NerfConfig
from sv3d_jax.recon.dmtet import stage
from sv3d_jax.recon.nerf.field import init_field
from sv3d_jax.recon.views import prepare_views
from tests.geometry.test_decimate import ball
from tests.recon.scenes import ball_orbit

NERF = NerfConfig(num_levels=2, table_size=2**10, finest_resolution=32)
CONFIG = MeshConfig(num_steps=48, cells=12, num_lobes=0)
RADIUS = 0.4


@pytest.fixture(scope="module")
def views():
    return prepare_views(ball_orbit(num_frames=4, radius=RADIUS))


@pytest.fixture(scope="module")
def coarse(views):
    """A ball a tenth too large."""
    mesh = ball(resolution=24, radius=9.0)
    return Mesh(1.1 * RADIUS / 9.0 / views[1].scale * mesh.vertices, mesh.faces)


def fit(config, views, coarse):
    """Surface, parameters and log."""
    field = init_field(NERF, jax.random.key(0))
    return stage.fit_surface(config, NERF, coarse, field, views[0], seed=0)


def test_the_surface_shrinks_to_the_silhouettes_and_is_closed(views, coarse):
    surface, params, log = fit(CONFIG, views, coarse)
    mesh = stage.surface_mesh(surface, min_component=0.01)
    radius = views[1].scale * np.linalg.norm(mesh.vertices, axis=1).mean()
    assert is_closed(mesh) and abs(radius - RADIUS) < 0.05 * RADIUS
    assert params["light"] is None and "illumination" not in log[-1].losses


@pytest.fixture(scope="module")
def seen(views):
    """What the views show of the ball itself, lit evenly."""
    masks = views[0].masks
    poses = views[0].camera_to_box
    normals = np.where(masks[..., None] > 0.99, (views[0].images - 0.5) / 0.4, 0.0)  # as the ball is coloured
    depth = np.linalg.norm(poses[:, :3, 3], axis=1)[:, None, None] * masks
    return stage.Rendered(
        0.9 * views[0].images,
        masks,
        masks,
        normals,
        normals,
        normals,
        depth,
        np.round(masks),
        np.bool_(False),
    )


def test_the_estimated_normals_are_those_of_the_cameras_axes(views, seen):
    assert "normal" not in stage.image_losses(seen, views[0])
    towards = np.linalg.inv(views[0].camera_to_box)[:, :3, :3]
    in_camera = np.einsum("fij,fhwj->fhwi", towards, seen.normals)
    assert in_camera[:, 16, 16, 2].min() > 0.9  # towards the viewer
    same = stage.image_losses(seen, views[0]._replace(normals=in_camera))["normal"]
    other = stage.image_losses(seen, views[0]._replace(normals=in_camera * np.float32([1, 1, -1])))["normal"]
    assert abs(same) < 0.01 and other > 0.5


def test_normals_and_lpips_take_part_in_the_fit(views, coarse, monkeypatch):
    monkeypatch.setattr(stage, "lpips", lambda rendered, target, vgg: vgg["far"] * np.ones(len(rendered)))
    given = views[0]._replace(normals=np.zeros_like(views[0].images))
    field, vgg = init_field(NERF, jax.random.key(0)), {"far": np.float32(3.0)}
    _, _, log = stage.fit_surface(replace(CONFIG, num_steps=16), NERF, coarse, field, given, 0, vgg=vgg)
    assert log[-1].losses["normal"] == pytest.approx(1.0)  # of normals that are 0
    assert log[-1].losses["perceptual"] == 3.0


def test_steps_without_room_for_the_pixels_are_made_again(views, coarse, monkeypatch):
    monkeypatch.setattr(stage, "_object_pixels", lambda views, count: 512)  # two views of the ball have more
    config = replace(CONFIG, num_steps=16)
    _, params, log = fit(config, views, coarse)
    moved = np.abs(params["sdf"] - stage.start_lattice(config, coarse).sdf).max()
    assert moved > 0.01 and len(log) == 1
