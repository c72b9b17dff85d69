"""Methods from outside the package, and the runner with made-up stages."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.errors import Cancelled, InputError, SV3DError
from sv3d_jax.geometry.marching_cubes import extract_surface
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.metrics.geometry import is_closed
from sv3d_jax.recon import fit as fit_module
from sv3d_jax.recon import methods
from sv3d_jax.recon.config import ReconstructConfig, ReconstructVerbConfig
from sv3d_jax.recon.context import Context
from sv3d_jax.recon.fit import FitHooks, fit
from sv3d_jax.recon.methods import register_method
from sv3d_jax.recon.nerf.occupancy import visual_hull
from sv3d_jax.recon.reconstruct import reconstruct, reconstruct_into
from sv3d_jax.recon.runner import load_tree, run_stages, save_tree
from sv3d_jax.recon.stages import Method, Stage, State
from sv3d_jax.recon.views import BOX_HALF_SIZE, prepare_views
from tests.recon.scenes import ball_orbit

pytestmark = pytest.mark.usefixtures("command_line")

RESOLUTION = 24


def carve(context: Context, state: State) -> State:
    """The visual hull of the masks as a mesh."""
    hull = visual_hull(context.views, RESOLUTION, tolerance=0.0)
    vertices, faces = extract_surface(hull.astype(np.float32), 0.5)
    points = ((vertices + 0.5) / RESOLUTION * 2 - 1) * BOX_HALF_SIZE
    return replace(state, mesh=Mesh(points, faces), facts={"cells": int(hull.sum())})


HULL = Method("hull", (Stage("hull", carve),))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    register_method(HULL)


def test_a_method_of_one_stage_gives_a_mesh():
    result = reconstruct(ball_orbit(), method=HULL)
    radius = np.linalg.norm(result.mesh.vertices, axis=1)
    assert is_closed(result.mesh) and 0.4 < radius.mean() < 0.55  # no view shows that the top is round
    assert result.facts["cells"] > 0 and result.log == [] and result.light is None
    assert set(result.timings) == {"load", "hull"}


def test_a_registered_method_is_found_by_its_name_and_writes_its_files(registered, tmp_path):
    config = ReconstructVerbConfig(method="hull", stage="hull", orbit_dir=tmp_path, output=tmp_path)
    assert config.settings()["method"] == "hull"
    result = reconstruct(ball_orbit(), ReconstructConfig(method="hull"))
    result.save(tmp_path / "saved.glb")
    assert len(read_mesh(tmp_path / "saved.glb").faces) == len(result.mesh.faces)
    arguments = tmp_path, ball_orbit(), config, Context.__dataclass_fields__["progress"].default_factory()
    files, facts = reconstruct_into(*arguments, tmp_path, "hull")
    assert [file.name for file in files] == ["hull.ply", "hull.png"] and facts["cells"]


def test_what_a_method_does_not_have_is_refused_with_what_it_has(registered, tmp_path):
    places = {"orbit_dir": tmp_path, "output": tmp_path}
    with pytest.raises(InputError, match="--method nerf") as caught:
        ReconstructConfig(method="nerf")
    assert "hull" in caught.value.hint and "sv3d" in caught.value.hint
    with pytest.raises(InputError, match="--preset slow: method sv3d"):
        ReconstructConfig(preset="slow")
    with pytest.raises(InputError, match="--stage backe: method sv3d") as caught:
        ReconstructVerbConfig(stage="backe", **places)
    assert caught.value.hint == "did you mean bake?"
    with pytest.raises(InputError, match="--stage coarse: method hull"):
        ReconstructVerbConfig(method="hull", stage="coarse", **places)
    with pytest.raises(InputError, match="normals: no stage of method hull uses it") as caught:
        reconstruct(ball_orbit(), method=HULL, normals=lambda images: images)
    assert caught.value.hint == "--method sv3d"
    with pytest.raises(InputError, match="--lpips: no stage of method hull uses it"):
        reconstruct(ball_orbit(), ReconstructConfig(lpips=tmp_path / "vgg.safetensors"), method=HULL)
    with pytest.raises(ValueError, match="a reconstruction method hull already"):
        register_method(replace(HULL, stages=(*HULL.stages, Stage("more", carve))))


@dataclass(frozen=True, kw_only=True)
class CarveConfig:
    resolution: int = RESOLUTION


@dataclass(frozen=True, kw_only=True)
class CarveRecipe:
    carve: CarveConfig = CarveConfig()


def test_a_method_has_settings_and_presets_of_its_own(monkeypatch, tmp_path):
    (tmp_path / "fast.toml").write_text("[carve]\nresolution = 12\n")
    seen = []

    def carve_as_told(context: Context, state: State) -> State:
        seen.append(context.recipe.carve.resolution)
        return carve(context, state)

    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    presets = {"fast": tmp_path / "fast.toml"}
    register_method(Method("carve", (Stage("carve", carve_as_told),), presets, CarveRecipe))
    for recipe in ({}, {"carve": {"resolution": 16}}):
        reconstruct(ball_orbit(), ReconstructConfig(method="carve", recipe=recipe))
    assert seen == [12, 16]
    settings = {"method": "carve", "orbit_dir": tmp_path, "output": tmp_path}
    assert ReconstructVerbConfig(**settings).settings()["carve"] == {"resolution": 12}
    with pytest.raises(InputError, match="--steps: method carve has no such setting"):
        ReconstructConfig(method="carve", steps=5)
    with pytest.raises(InputError, match="carve: unknown key resolutoin"):
        ReconstructConfig(method="carve", recipe={"carve": {"resolutoin": 3}})
    with pytest.raises(InputError, match="unknown key carve"):
        ReconstructConfig(recipe={"carve": {"resolution": 3}})


def test_the_stages_of_sv3d_are_those_of_the_paper():
    sv3d = methods.find_method("sv3d")
    assert [stage.name for stage in sv3d.stages] == ["coarse", "surface", "fine", "bake"]
    assert sv3d.stops == ["coarse", "fine", "bake", "all"]
    whole = ["load", "compile", "coarse", "surface", "compile", "fine", "bake", "write"]
    assert sv3d.progress_stages(ReconstructConfig().resolve()) == whole
    preview = ReconstructConfig(preset="preview").resolve()
    assert sv3d.progress_stages(preview) == ["load", "compile", "coarse", "surface", "bake", "write"]
    assert [stage.name for stage in sv3d.stages_until("all", preview)] == ["coarse", "surface", "bake"]
    for stop in ("coarse", "fine"):  # there is no fine stage in this preset
        assert [stage.name for stage in sv3d.stages_until(stop, preview)] == ["coarse", "surface"]


def test_it_is_stages_that_say_what_they_use_whatever_their_name(tmp_path):
    """Neither a stage `refine` that uses an orbit model is refused it, nor takes one `fine` that does not any."""
    refine = replace(HULL, stages=(Stage("refine", carve, uses=("sds",)),))
    ReconstructConfig().require_use("sds", refine)
    fine = replace(HULL, stages=(Stage("fine", carve),))
    with pytest.raises(InputError, match="--sds: no stage of method hull uses it"):
        ReconstructConfig().require_use("sds", fine)


@pytest.mark.parametrize(
    ("settings", "cause", "hint"),
    [
        ({"preset": "preview"}, "in --preset preview", "--preset fast or --preset quality"),
        ({"preset": "fast", "fine_steps": 0}, "with --fine-steps 0", "a number above 0, or none"),
        ({"mesh": {"num_steps": 0}}, r"with num_steps = 0 under \[mesh\]", "a number above 0, or none"),
    ],
)
def test_the_reason_why_there_is_no_fine_stage_is_named(settings, cause, hint):
    config = ReconstructConfig(**settings)
    with pytest.raises(InputError, match=f"--sds: there is no fine stage {cause}$") as caught:
        config.require_use("sds")
    assert caught.value.hint == hint
    with pytest.raises(InputError, match=f"--lpips: there is no fine stage {cause}$"):
        replace(config, lpips="vgg.safetensors")


def test_a_run_cannot_end_with_a_stage_that_it_does_not_have():
    with pytest.raises(
        InputError, match="--stage fine: there is no fine stage in --preset preview"
    ) as caught:
        reconstruct(ball_orbit(), ReconstructConfig(preset="preview"), stage="fine")
    assert caught.value.hint.endswith("stages there are: coarse, bake, all")


# The runner


def counting(name, ran, keeps=True):
    """A stage that adds its name to the facts and a vertex to the mesh, and says that it ran."""

    def run(context, state):
        ran.append(name)
        vertices = np.zeros((0, 3)) if state.mesh is None else state.mesh.vertices
        mesh = Mesh(np.concatenate([vertices, [[len(vertices), 0, 0]]]), np.zeros((0, 3), int))
        return replace(state, mesh=mesh, facts=state.facts | {name: len(mesh.vertices)})

    def pack(state):
        return {"vertices": state.mesh.vertices, "facts": state.facts}

    def unpack(context, state, kept):
        return replace(state, mesh=Mesh(kept["vertices"], np.zeros((0, 3), int)), facts=kept["facts"])

    return Stage(name, run, pack, unpack) if keeps else Stage(name, run)


@pytest.fixture(scope="module")
def views():
    return prepare_views(ball_orbit(16, num_frames=2))[0]


def context_in(views, scratch) -> Context:
    return Context(ReconstructConfig().resolve(), views, 0, scratch=scratch)


def test_stages_that_were_kept_are_not_run_again(views, tmp_path):
    ran = []
    stages = [counting("one", ran), counting("two", ran, keeps=False), counting("three", ran)]
    early = run_stages(context_in(views, tmp_path), stages[:2])
    assert early.facts == {"one": 1, "two": 2} and ran == ["one", "two"]
    state = run_stages(context_in(views, tmp_path), stages)
    assert ran == ["one", "two", "two", "three"] and state.facts == {"one": 1, "two": 2, "three": 3}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.npz", "three.npz"]
    ran.clear()
    again = run_stages(context_in(views, tmp_path), stages)
    assert ran == ["two"] and again.mesh.vertices.tolist() == state.mesh.vertices.tolist()


def test_a_stage_that_keeps_none_is_not_run_again(views, tmp_path):
    ran = []
    kept_of = {
        "pack": lambda state: None,
        "unpack": lambda context, state, kept: replace(state, facts={"of": kept}),
    }
    nothing = replace(counting("one", ran), **kept_of)
    for _ in range(2):
        assert run_stages(context_in(views, tmp_path), [nothing, counting("two", [])]).facts["of"] is None
    assert ran == ["one"]


def test_without_a_folder_nothing_is_kept(views):
    ran = []
    for _ in range(2):
        state = run_stages(context_in(views, None), [counting("one", ran)])
    assert ran == ["one", "one"] and state.facts == {"one": 1}


def test_a_cancelled_stage_is_run_again_and_those_before_it_are_not(views, tmp_path):
    ran = []

    def cancel(context, state):
        raise Cancelled

    with pytest.raises(Cancelled):
        run_stages(context_in(views, tmp_path), [counting("one", ran), Stage("two", cancel)])
    state = run_stages(context_in(views, tmp_path), [counting("one", ran), counting("two", ran)])
    assert ran == ["one", "two"] and state.facts == {"one": 1, "two": 2}


def test_a_fit_that_is_done_is_not_repeated_where_its_result_could_not_be_kept(views, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    steps, ran = [], []

    def run(context, state):
        hooks = FitHooks(callback=lambda info: steps.append(info.step))
        save = context.unfinished_fit("one")
        fit(lambda x, data, key: (x + 1, {}), jnp.zeros(()), None, 4, jax.random.key(0), hooks, 2, save)
        return counting("one", ran).run(context, state)

    def die(*_):
        raise KeyboardInterrupt

    stage = replace(counting("one", ran), run=run)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("sv3d_jax.recon.runner.save_tree", die)
        run_stages(context_in(views, tmp_path), [stage])
    run_stages(context_in(views, tmp_path), [stage])
    assert steps == [2, 4] and ran == ["one", "one"]
    assert [file.name for file in tmp_path.iterdir()] == ["one.npz"]


def test_time_is_told_by_stage(views, tmp_path):
    context = context_in(views, tmp_path)
    run_stages(context, [counting("one", []), counting("two", [])])
    assert list(context.clock.seconds) == ["one", "two"]


def test_a_method_without_a_mesh_says_so(views):
    with pytest.raises(SV3DError, match="stage none left no mesh"):
        run_stages(context_in(views, None), [Stage("none", lambda context, state: state)])


def test_a_kept_tree_comes_back_as_it_was(tmp_path):
    tree = {"layers": [{"kernel": np.eye(2)}], "pair": (np.arange(3), None), "factor": 0.1, "log": "text"}
    save_tree(tmp_path / "kept.npz", tree)
    back = load_tree(tmp_path / "kept.npz")
    assert back["factor"] == 0.1 and back["log"] == "text" and back["pair"][1] is None
    np.testing.assert_array_equal(back["layers"][0]["kernel"], np.eye(2))
    assert isinstance(back["pair"], tuple) and back["pair"][0].dtype == tree["pair"][0].dtype
    np.savez(tmp_path / "other.npz", np.eye(2))
    assert load_tree(tmp_path / "other.npz") is None and load_tree(tmp_path / "absent.npz") is None
