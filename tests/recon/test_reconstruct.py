"""Orbit to mesh, on balls that take seconds."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from sv3d_jax.cameras.orbit import sine_orbit
from sv3d_jax.errors import Cancelled, InputError, SV3DError, WeightsError
from sv3d_jax.io.images import read_picture
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.io.orbits import write_orbit
from sv3d_jax.metrics.geometry import is_closed
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.plan import plan_orbit
from sv3d_jax.progress import NullProgress
from sv3d_jax.recon.config import ReconstructConfig, ReconstructVerbConfig
from sv3d_jax.recon.dmtet.stage import sds_steps
from sv3d_jax.recon.dmtet.surface import Surface
from sv3d_jax.recon.export import render_mesh, with_vertex_colors
from sv3d_jax.recon.fit import FitInfo
from sv3d_jax.recon.pictures import Pictures
from sv3d_jax.recon.reconstruct import reconstruct, run_reconstruct
from sv3d_jax.recon.uv import smooth_normals
from sv3d_jax.recon.views import CoverageWarning
from sv3d_jax.weights import hub
from sv3d_jax.weights.hub import write_shipped
from tests.recon.scenes import ball_orbit, ball_pictures
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG as MODEL
from tests.tiny_model import tiny_pipeline

TINY = {
    "num_levels": 3,
    "table_size": 2**12,
    "finest_resolution": 32,
    "num_steps": 256,
    "rays_per_step": 512,
    "candidates_per_ray": 48,
    "samples_per_ray": 16,
    "occupancy_resolution": 24,
    "refresh_cells": 4096,
    "surface_resolution": 32,
}
CONFIG = ReconstructConfig(preset="preview", nerf=TINY, texture_size=64)
FINE = replace(CONFIG, nerf=TINY | {"num_steps": 96}, mesh={"num_steps": 32, "cells": 16})
CENTER = np.array([5.0, -3.0, 2.0])


@pytest.fixture(scope="module")
def ball():
    """Of radius 4 around CENTER, for the world is ten times as large as SV3D's."""
    return reconstruct(ball_orbit(center=CENTER, scale=10.0), CONFIG)


def test_the_surface_is_where_the_object_was(ball):
    radius = np.linalg.norm(ball.mesh.vertices - CENTER, axis=1)
    assert np.abs(radius - 4.0).mean() < 0.3  # a cell is 0.37, a pixel 0.38


def test_the_surface_is_closed(ball):
    import trimesh

    assert is_closed(ball.mesh)
    surface = trimesh.Trimesh(ball.mesh.vertices, ball.mesh.faces, process=False)
    surface.merge_vertices()  # those that the texture's seams part
    assert surface.is_watertight


def test_faces_look_outwards(ball):
    a, b, c = np.moveaxis(ball.mesh.vertices[ball.mesh.faces] - CENTER, 1, 0)
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 > 0


def test_the_texture_has_the_colours_of_the_frames(ball):
    expected = 0.5 + 0.1 * (ball.mesh.vertices - CENTER)
    assert np.abs(with_vertex_colors(ball.mesh).vertex_colors - expected).mean() < 0.06


def test_the_same_seed_gives_the_same_mesh():
    short = replace(CONFIG, nerf=TINY | {"num_steps": 16, "num_levels": 2})
    first, second = (reconstruct(ball_orbit(), short).mesh for _ in range(2))
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.texture, second.texture)


def test_a_callback_cancels():
    def cancel(info):
        raise Cancelled

    with pytest.raises(Cancelled):
        reconstruct(ball_orbit(), CONFIG, callback=cancel)


def test_cameras_that_do_not_fit_the_frames_leave_no_surface():
    frames = ball_orbit()
    frames.camera_to_world[:, :3, 3] += frames.camera_to_world[
        :, :3, 0
    ]  # each passes the object on its right
    with pytest.raises(SV3DError, match="no point lies in the foreground"):
        reconstruct(frames, CONFIG)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_few_views_give_a_surface_that_looks_right_from_there(count):
    frames = ball_orbit()
    arrays = "images", "alphas", "camera_to_world", "focal_px", "center_px", "azimuths_deg", "elevations_deg"
    some = {name: getattr(frames, name)[:count] for name in arrays}
    frames = replace(frames, **some, files=frames.files[:count], input_frame=0)
    with nullcontext() if count == 2 else pytest.warns(CoverageWarning, match="depth is unconstrained"):
        result = reconstruct(frames, replace(CONFIG, nerf=TINY | {"num_steps": 128}))
    rendered = render_mesh(result.mesh, frames.camera_to_world, frames.focal_px, frames.center_px, 32, 32)
    silhouette = (rendered < 250).any(axis=-1)
    mask = frames.alphas > 0.5
    assert (silhouette & mask).sum() > 0.8 * (silhouette | mask).sum()


# The fine stage


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that was cancelled in the fine stage, and what it kept."""
    scratch = tmp_path_factory.mktemp("scratch")
    seen = []

    def cancel(info):
        seen.append(info)
        if info.total == 32:
            raise Cancelled

    pictures = Pictures(scratch / "progress", 48)
    with pytest.raises(Cancelled):
        reconstruct(ball_orbit(), FINE, callback=cancel, scratch=scratch, pictures=pictures)
    assert [info.step for info in seen] == [16, 32, 48, 64, 80, 96, 16]
    return scratch


@pytest.fixture(scope="module")
def fine(unfinished):
    """The same run, resumed."""
    seen = []
    pictures = Pictures(unfinished / "progress", 48)
    result = reconstruct(ball_orbit(), FINE, callback=seen.append, scratch=unfinished, pictures=pictures)
    assert {info.total for info in seen} == {32}  # the coarse stage is not repeated
    return result


def test_the_fine_surface_is_closed_and_where_the_object_was(fine):
    radius = np.linalg.norm(fine.mesh.vertices, axis=1)
    assert is_closed(fine.mesh) and np.abs(radius - 0.4).mean() < 0.02  # a pixel is 0.038


def test_lit_colours_are_albedo_times_light(fine):
    vertices = np.unique(fine.mesh.vertices, axis=0)
    assert len(vertices) > 100
    albedo, lit = (with_vertex_colors(mesh).vertex_colors for mesh in (fine.mesh, fine.lit))
    shading = np.asarray(fine.light.shade(smooth_normals(fine.mesh).astype(np.float32)))[:, None]
    expected = np.clip(albedo * shading, 0.0, 1.0)
    assert np.abs(lit - expected).mean() < 0.01  # textures are sampled between texels


def test_the_brightest_places_show_the_albedo_itself(fine):
    shading = fine.light.shade(smooth_normals(fine.mesh).astype(np.float32))
    assert np.quantile(shading, 0.95) == pytest.approx(1.0, abs=0.05)  # a textured mesh has other vertices


def test_lit_colours_are_those_of_the_frames(fine):
    expected = 0.5 + fine.lit.vertices
    assert np.abs(with_vertex_colors(fine.lit).vertex_colors - expected).mean() < 0.06


def test_a_run_may_end_with_the_fine_surface_in_the_colours_of_its_vertices(fine, unfinished):
    result = reconstruct(ball_orbit(), FINE, scratch=unfinished, stage="fine")
    assert result.mesh.texture is None and [info.total for info in result.log] == [96] * 6 + [32] * 2
    assert np.abs(result.lit.vertex_colors - (0.5 + result.mesh.vertices)).mean() < 0.06
    seams = {tuple(vertex) for vertex in fine.mesh.vertices} - {
        tuple(vertex) for vertex in result.mesh.vertices
    }
    assert not seams  # so small a mesh is not simplified


def copy_coarse(scratch, folder):
    for name in ("coarse.npz", "surface.npz"):
        shutil.copy(scratch / name, folder)


def test_a_fine_surface_that_vanishes_says_its_range(unfinished, tmp_path, monkeypatch):
    copy_coarse(unfinished, tmp_path)
    nothing = Surface(np.zeros((8, 3)), np.zeros((8, 3), int), np.zeros((8, 2), int), 0, 0, False)
    left = nothing, {"sdf": np.array([0.5, 0.1, 2.0])}, []
    monkeypatch.setattr("sv3d_jax.recon.dmtet.stage.fit_surface", lambda *_, **__: left)
    with pytest.raises(SV3DError, match="the surface is empty: .* between 0.1 and 2") as caught:
        reconstruct(ball_orbit(), FINE, scratch=tmp_path)
    assert caught.value.exit_code == 1


def from_kept(scratch, folder, monkeypatch, **options):
    """A run that goes on from the coarse stage with a fine stage of no effect; what it was handed, and the result."""
    copy_coarse(scratch, folder)
    handed = []

    def fit_surface(config, color, coarse, field, views, seed, vgg, **others):
        handed.append((views, vgg))
        faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
        surface = Surface(np.eye(4, 3), faces, faces, 4, 4, False)
        params = {"field": field, "light": None}
        return surface, params, [FitInfo(16, 16, {"perceptual": 0.0})]

    monkeypatch.setattr("sv3d_jax.recon.dmtet.stage.fit_surface", fit_surface)
    config = options.pop("config", FINE)
    unlit = replace(config, mesh=config.mesh | {"num_lobes": 0})
    return handed, reconstruct(ball_orbit(), unlit, scratch=folder, **options)


def test_an_estimator_is_asked_once_for_the_normals_of_all_frames(unfinished, tmp_path, monkeypatch):
    asked, up = [], np.broadcast_to(np.float32([0, 0, 1]), (8, 32, 32, 3))

    def normals(images):
        asked.append(images)
        return up

    [(views, vgg)], result = from_kept(unfinished, tmp_path, monkeypatch, normals=normals)
    np.testing.assert_array_equal(asked, [ball_orbit().images])
    np.testing.assert_array_equal(views.normals, up)
    assert vgg is None and result.facts["perceptual"] == "ssim + multi-scale l1"


def test_lpips_is_read_from_its_file_and_said(unfinished, tmp_path, monkeypatch):
    monkeypatch.setattr("sv3d_jax.recon.reconstruct.read_lpips_weights", lambda path: {"of": str(path)})
    config = replace(FINE, lpips=Path("vgg.safetensors"))
    [(_, vgg)], result = from_kept(unfinished, tmp_path, monkeypatch, config=config)
    assert vgg == {"of": "vgg.safetensors"} and result.facts["perceptual"] == "lpips"


def long_and_short(images):
    """Vectors of length 0.5 and 1.5, whose mean is 1."""
    lengths = 0.5 + np.indices(images.shape[:-1]).sum(axis=0) % 2
    return lengths[..., None] * np.float32([0, 0, 1])


@pytest.mark.parametrize(
    ("normals", "says"),
    [
        (lambda images: images[..., 0], "the shape .* got"),
        (lambda images: np.full_like(images, np.nan), "finite"),
        (lambda images: np.full_like(images, 0.2), "differ from 1 by 0.65 on average"),
        (long_and_short, "differ from 1 by 0.5 on average"),
    ],
)
def test_what_is_no_unit_normal_is_refused(normals, says):
    with pytest.raises(InputError, match=says):
        reconstruct(ball_orbit(), FINE, normals=normals)


@pytest.mark.usefixtures("command_line")
def test_normals_and_lpips_need_a_fine_stage():
    with pytest.raises(InputError, match="normals: there is no fine stage"):
        reconstruct(ball_orbit(), CONFIG, normals=lambda images: images)
    with pytest.raises(InputError, match="--lpips: there is no fine stage"):
        replace(CONFIG, lpips=Path("vgg.safetensors"))


def test_pictures_of_the_fits_come_to_look_like_the_input_view(fine, unfinished):
    error = {}
    for file in (unfinished / "progress").iterdir():
        given, fitted = np.split(read_picture(file).rgb / 255.0, 2, axis=1)
        np.testing.assert_allclose(given, ball_orbit().images[-1], atol=0.002)  # 8 bits
        error[file.stem] = np.abs(fitted - given).mean()
    assert set(error) == {"coarse_000048", "coarse_000096", "fine_000032"}
    assert 0.06 > error["coarse_000048"] > error["coarse_000096"] > error["fine_000032"]


def test_the_log_holds_both_stages(fine):
    assert [info.total for info in fine.log] == [96] * 6 + [32] * 2
    assert {"illumination", "mask", "sdf_sign"} <= set(fine.log[-1].losses)


# The verb


@pytest.fixture
def verb(tmp_path):
    cameras = sine_orbit(6)
    images, _ = ball_pictures(cameras, 32, 0.4)
    write_orbit(tmp_path / "orbit", np.round(images * 255).astype(np.uint8), cameras)
    return ReconstructVerbConfig(
        orbit_dir=tmp_path / "orbit",
        output=tmp_path / "out",
        preset="preview",
        nerf=TINY | {"num_steps": 32},
        texture_size=64,
    )


def modified(folder) -> dict[str, int]:
    """Times of the results; the folder's own records are hidden files."""
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if not file.name.startswith(".")}


def never(*_):
    raise AssertionError("this was done before")


def test_the_verb_goes_on_from_the_stage_it_was_to_end_with_and_leaves_a_whole_run(verb, monkeypatch):
    coarse = run_reconstruct(replace(verb, stage="coarse"), NullProgress())
    assert set(modified(verb.output)) == {"coarse.ply", "coarse.png", "progress"}
    assert os.listdir(verb.output / "progress") == ["coarse_000032.png"]
    assert len(read_mesh(coarse["mesh"]).faces) == coarse["faces"]

    monkeypatch.setattr("sv3d_jax.recon.nerf.stage.fit_field", never)
    mesh = run_reconstruct(replace(verb, stage="bake"), NullProgress())["mesh"]
    names = {"mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply"}
    assert set(modified(verb.output)) == {"coarse.ply", "coarse.png", "progress"} | names
    before = Path(mesh).read_bytes()

    monkeypatch.setattr("sv3d_jax.recon.bake.textured", never)
    result = run_reconstruct(verb, NullProgress())
    assert Path(result["mesh"]).read_bytes() == before
    written = modified(verb.output)
    names = {"mesh.glb", "mesh.obj", "mesh.png", "mesh.ply", "turntable.mp4", "relit.mp4", "comparison.png"}
    assert names | {"albedo.png", "normals.png", "run.json"} <= set(written)
    assert json.loads((verb.output / "run.json").read_text())["config"]["nerf"]["num_steps"] == 32
    glb, ply = (read_mesh(verb.output / name) for name in ("mesh.glb", "mesh.ply"))
    assert len(glb.faces) == len(ply.faces) == result["faces"]
    np.testing.assert_allclose(glb.vertices, ply.vertices, atol=1e-6)

    for stage in ("all", "coarse", "bake"):
        assert run_reconstruct(replace(verb, stage=stage), NullProgress()) == result
    assert modified(verb.output) == written


def test_a_field_that_never_crosses_says_its_range_and_leaves_no_mesh(verb):
    thin = replace(verb, steps=1, picture_every=0, nerf=TINY | {"density_scale": 0.01})
    with pytest.raises(SV3DError, match="the surface is empty: .* lies between") as caught:
        run_reconstruct(thin, NullProgress())
    assert caught.value.exit_code == 1
    assert not modified(verb.output)


def test_other_frames_in_the_same_folder_are_another_run(verb):
    verb.output.mkdir()
    settings = verb.settings()
    (verb.output / "run.json").write_text(
        json.dumps({"config": {"verb": "reconstruct", **settings, "orbit_sha256": "of other frames"}})
    )
    with pytest.raises(InputError, match="orbit_sha256"):
        run_reconstruct(verb, NullProgress())


def test_a_dry_run_writes_nothing(verb):
    assert run_reconstruct(replace(verb, dry_run=True), NullProgress())["frames"] == 6
    assert not verb.output.exists()


def test_weights_of_lpips_that_cannot_be_read_are_found_in_a_dry_run(verb, tmp_path):
    with pytest.raises(WeightsError, match="absent.safetensors"):
        run_reconstruct(
            replace(verb, fine_steps=16, lpips=tmp_path / "absent.safetensors", dry_run=True), NullProgress()
        )


def test_a_folder_without_cameras_writes_nothing(verb):
    (verb.orbit_dir / "cameras.json").unlink()
    with pytest.raises(InputError, match="cameras.json"):
        run_reconstruct(verb, NullProgress())
    assert not verb.output.exists()


@pytest.mark.usefixtures("command_line")
def test_a_fine_stage_that_a_preset_lacks_cannot_be_the_last(verb):
    with pytest.raises(InputError, match="no fine stage in --preset preview"):
        replace(verb, stage="fine")


def test_a_misspelt_setting_is_refused_with_the_nearest():
    with pytest.raises(InputError) as caught:
        ReconstructConfig(nerf={"num_step": 10})
    assert "num_steps" in str(caught.value.hint)


# Score distillation


def written(model, folder) -> str:
    write_shipped(reference_params(model), model, folder)
    return str(folder)


@pytest.mark.usefixtures("command_line")
def test_distillation_without_a_fine_stage_is_refused():
    with pytest.raises(InputError, match="no fine stage in --preset preview") as caught:
        reconstruct(ball_orbit(), CONFIG, sds=tiny_pipeline())
    assert "--preset fast" in caught.value.hint


@pytest.mark.usefixtures("command_line")
def test_the_verb_refuses_it_before_any_work(verb):
    with pytest.raises(InputError, match="no fine stage in --preset preview"):
        replace(verb, sds=True)
    assert replace(verb, sds=True, fine_steps=16).sds


def test_a_model_without_cameras_writes_nothing(verb, tmp_path):
    model = replace(MODEL, variant="u")
    config = replace(verb, sds=True, fine_steps=16, weights=written(model, tmp_path / "tiny_u"))
    with pytest.raises(WeightsError, match="not told any cameras"):
        run_reconstruct(config, NullProgress())
    assert not verb.output.exists()


def test_full_size_weights_guide_on_a_cpu_only_where_they_are_asked_to(verb, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    model = ModelConfig.published("p")
    monkeypatch.setattr(hub, "read_model_config", lambda *weights: model)
    config = replace(verb, sds=True, fine_steps=6000)
    num_steps = len(sds_steps(config.resolve().mesh))
    assert 1000 < num_steps < 6000  # more than an orbit may have
    hours = replace(plan_orbit(model), num_steps=num_steps).cpu_hours
    with pytest.raises(InputError, match=f"takes about {hours:.1f} hours"):
        run_reconstruct(config, NullProgress())
    assert not verb.output.exists()


def test_the_model_is_a_setting_where_there_is_one(verb):
    assert not {"weights", "variant"} & set(verb.settings())
    guided = replace(verb, sds=True, fine_steps=16)
    changes = replace(guided, weights="other"), replace(guided, mesh={"sds": {"masked": False}})
    assert all(change.settings() != guided.settings() for change in changes)


@pytest.mark.slow
def test_a_guided_run_tells_its_weights_and_its_distillation(verb, tmp_path):
    config = replace(
        verb, sds=True, fine_steps=16, mesh={"cells": 12}, weights=written(MODEL, tmp_path / "tiny")
    )
    result = run_reconstruct(config, NullProgress())
    assert len(result["weights"]["sha256"]) == 64 and result["losses"]["sds"] > 0
    assert json.loads((verb.output / "run.json").read_text())["config"]["mesh"]["sds"]["masked"]
