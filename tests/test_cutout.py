import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sv3d_jax import cutout
from sv3d_jax.cutout import Remover, cut_by_box, cut_out, fitted_mask, key_border, ways, ways_out
from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.io.images import Mask, Picture
from sv3d_jax.preprocess import prepare_image

FIGURE = Path(__file__).parents[1] / "examples" / "figure.png"
SIDE = 256
Y, X = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
RADIUS = np.hypot(X, Y)
GRADIENTS = {
    "from top to bottom": 200 + 30 * Y,
    "from corner to corner": 150 + 55 * (X * 0.6 + Y * 0.8),
    "round a light": 235 - 35 * RADIUS**2,
    "round a light at the side": 240 - 25 * np.hypot(X - 0.3, Y + 0.5) ** 2,
    "spot": 120 + 110 * np.exp(-((RADIUS / 0.8) ** 2)),
    "vignette": 220 / (1 + (0.55 * RADIUS) ** 2) ** 2,
    "sweep of paper": 225 - 60 / (1 + np.exp(-(Y - 0.3) / 0.12)),
}


def figure():
    """Colours (h, w, 3) and coverage (h, w) of the example figure, rendered over white."""
    rgb = np.asarray(Image.open(FIGURE))
    cut, _ = key_border(rgb)
    return cut[..., :3].astype(float), cut[..., 3] / 255.0


def photograph(rgb, alpha, background, quality=88):
    """The object over a background, with a little noise, as a JPEG."""
    mixed = rgb * alpha[..., None] + background * (1 - alpha[..., None])
    mixed += np.random.default_rng(0).normal(0, 1.5, mixed.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def overlap(found, true):
    return np.minimum(found, true).sum() / np.maximum(found, true).sum()


def ellipse(size=(120, 160), box=(40, 30, 110, 100)):
    """A mask (h, w) uint8 of an ellipse in a box."""
    image = Image.new("L", size[::-1])
    ImageDraw.Draw(image).ellipse(box, fill=255)
    return np.asarray(image)


def texture(size, seed=0):
    """Noise that does not count as a plain background."""
    return np.random.default_rng(seed).integers(60, 200, (*size, 3)).astype(np.uint8)


@pytest.fixture
def without_extras(monkeypatch):
    monkeypatch.setattr(cutout, "find_spec", lambda name: None)


@pytest.fixture
def with_rembg(tmp_path, monkeypatch):
    """A fake package rembg, which takes the middle of a picture as the object."""
    (tmp_path / "onnxruntime.py").write_text("")
    (tmp_path / "rembg.py").write_text(
        "sessions = []\n"
        "def new_session(name):\n"
        "    sessions.append(name)\n"
        "    return name\n"
        "def remove(image, session, alpha_matting):\n"
        "    assert session == 'u2net' and alpha_matting and image.mode == 'RGBA'\n"
        "    image.putalpha(0)\n"
        "    w, h = image.size\n"
        "    image.paste((9, 8, 7, 255), (w // 4, h // 4, w // 2, h // 2))\n"
        "    return image\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    yield tmp_path
    sys.modules.pop("rembg", None)
    sys.modules.pop("onnxruntime", None)


# Borders that change slowly


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_figure_before_a_studio_gradient_is_keyed(kind):
    rgb, alpha = figure()
    cut, what = key_border(photograph(rgb, alpha, GRADIENTS[kind][..., None]))
    assert what == "the slowly changing colours"
    assert overlap(cut[..., 3] / 255.0, alpha) > 0.98


def test_a_gradient_in_colours_is_keyed():
    rgb, alpha = figure()
    background = np.stack([200 - 30 * Y, 205 + 10 * X, 190 + 40 * Y], axis=-1)
    cut, _ = key_border(photograph(rgb, alpha, background))
    assert overlap(cut[..., 3] / 255.0, alpha) > 0.98


def test_edges_before_a_gradient_are_unmixed_from_the_colour_behind_them():
    alpha = (
        np.asarray(Image.fromarray(ellipse((512, 512), (120, 130, 380, 400))).resize((SIDE, SIDE))) / 255.0
    )
    red = np.broadcast_to([170.0, 40.0, 30.0], (SIDE, SIDE, 3))
    background = (150 + 80 * Y)[..., None]
    cut, _ = key_border(
        np.rint(red * alpha[..., None] + background * (1 - alpha[..., None])).astype(np.uint8)
    )
    rim = (alpha > 0.2) & (alpha < 0.95)
    assert np.abs(cut[..., :3] - red)[rim].max() < 12  # the background there runs from 90 to 210
    assert np.abs(cut[..., 3] / 255.0 - alpha).max() < 0.12


def test_an_object_that_the_frame_cuts_off_does_not_bend_the_gradient():
    rgb, alpha = figure()
    rgb, alpha = (np.concatenate([values[:1].repeat(90, 0), values[:-90]]) for values in (rgb, alpha))
    assert (alpha[-1] > 0).mean() > 0.3
    cut, _ = key_border(photograph(rgb, alpha, GRADIENTS["from top to bottom"][..., None]))
    assert overlap(cut[..., 3] / 255.0, alpha) > 0.98


@pytest.mark.parametrize("blur", [0, 2, 8])
def test_a_textured_border_is_refused(blur):
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(1).normal(0, 1, (SIDE, SIDE, 3)), (blur, blur, 0))
    rgb, alpha = figure()
    assert key_border(photograph(rgb, alpha, 150 + 16 * noise / noise.std())) is None


def test_a_border_of_two_colours_is_refused():
    rgb, alpha = figure()
    assert key_border(photograph(rgb, alpha, np.where(X < 0.1, 90.0, 200.0)[..., None])) is None


def test_a_uniform_border_stays_one_of_one_colour():
    rgb, alpha = figure()
    assert key_border(photograph(rgb, alpha, 214.0))[1] == "the uniform colour"
    ball = np.clip(250 - 60 * (RADIUS / 0.55) ** 2, 0, 255)[..., None].repeat(3, axis=-1)
    inside = (RADIUS < 0.55).astype(float)
    cut, what = key_border(photograph(ball, inside, 252.0))  # pale, and shaded as slowly as a gradient
    assert what == "the uniform colour" and overlap(cut[..., 3] / 255.0, inside) > 0.9


# Masks


def test_a_mask_is_the_alpha_of_the_picture():
    picture, mask = Picture(texture((120, 160))), ellipse()
    notes = []
    cut = cut_out(picture, "auto", notes, mask=Mask(mask))
    np.testing.assert_array_equal(cut, np.dstack([picture.rgb, mask]))
    assert notes == ["cut out by the mask that was given"]


def test_a_mask_of_truth_values_is_the_same_mask():
    picture, mask = Picture(texture((120, 160))), ellipse()
    np.testing.assert_array_equal(fitted_mask(picture, mask > 0, []), mask)


def test_a_picture_is_prepared_by_its_mask():
    mask = ellipse(box=(40, 30, 110, 100))
    prepared = prepare_image(Picture(texture((120, 160))), 80, mask=mask)
    assert prepared.bbox == (40, 30, 71, 71)
    assert (prepared.pixels[:15] == 255).all() and (prepared.pixels[30:50, 30:50] < 255).any()


def test_what_is_transparent_in_a_picture_is_so_under_a_mask():
    alpha = np.full((120, 160), 255, np.uint8)
    alpha[:, :75] = 0
    taken = fitted_mask(Picture(texture((120, 160)), alpha), ellipse(), [])
    assert not taken[:, :75].any() and (taken[:, 75:] == ellipse()[:, 75:]).all()


def test_a_mask_of_the_same_proportions_is_resized_and_this_is_said():
    notes = []
    taken = fitted_mask(Picture(texture((240, 320))), ellipse(), notes)
    assert taken.shape == (240, 320) and notes == ["the mask was resized from 160x120 to 320x240"]
    assert abs((taken > 127).mean() - (ellipse() > 127).mean()) < 0.005


def test_a_mask_of_other_proportions_is_refused_with_both_sizes():
    with pytest.raises(InputError, match="m.png is 160x120 pixels, cat.jpg 120x160"):
        fitted_mask(Picture(texture((160, 120)), name="cat.jpg"), Mask(ellipse(), "m.png"), [])


@pytest.mark.parametrize("level,said", [(0, "black everywhere"), (255, "white everywhere")])
def test_a_mask_that_tells_nothing_is_refused(level, said):
    with pytest.raises(InputError, match=f"m.png is {said}"):
        fitted_mask(Picture(texture((60, 60))), Mask(np.full((60, 60), level, np.uint8), "m.png"), [])


def test_what_is_nearly_black_or_white_in_a_mask_is_so():
    grey = np.where(ellipse() > 127, 243, 12).astype(np.uint8)
    grey[60, 70] = 128
    taken = fitted_mask(Picture(texture((120, 160))), grey, [])
    assert np.unique(taken).tolist() == [0, 128, 255] and (taken > 0).sum() == (ellipse() > 127).sum()


def test_a_mask_that_looks_inverted_is_said():
    notes = []
    fitted_mask(Picture(texture((120, 160))), 255 - ellipse(), notes)
    assert notes == ["the mask is white along most of the border: white marks the object"]


@pytest.mark.parametrize("shape,dtype", [((60, 60, 3), np.uint8), ((60, 60), np.float32)])
def test_a_mask_of_another_form_is_refused(shape, dtype):
    with pytest.raises(InputError, match="uint8 or bool"):
        fitted_mask(Picture(texture((60, 60))), np.ones(shape, dtype), [])


@pytest.mark.parametrize("more", [{"background": "keep"}, {"box": (1, 1, 30, 30)}])
def test_of_the_ways_to_cut_out_one_is_taken(more):
    with pytest.raises(InputError, match="give one of them"):
        prepare_image(Picture(texture((60, 60))), 64, mask=np.eye(60, dtype=bool), **more)


# Boxes


def bowl(size=(200, 260)):
    """A bright object of two colours over a dark texture, and its coverage."""
    alpha = np.asarray(Image.fromarray(ellipse((400, 520), (120, 90, 400, 330))).resize(size[::-1])) / 255.0
    inside = np.where(np.arange(size[0])[:, None, None] < 100, [220.0, 180.0, 60.0], [200.0, 60.0, 50.0])
    outside = texture(size) * np.array([0.2, 0.3, 0.5]) + 10
    rgb = inside * alpha[..., None] + outside * (1 - alpha[..., None])
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8), alpha


def test_a_box_cuts_out_the_object_in_it():
    rgb, alpha = bowl()
    cut = cut_by_box(rgb, (52, 38, 210, 172))
    assert overlap(cut[..., 3] / 255.0, alpha) > 0.98
    assert len(np.unique(cut[..., 3])) > 10  # the edge is soft


def test_a_box_gives_the_same_cut_out_each_time():
    rgb, _ = bowl()
    np.testing.assert_array_equal(cut_by_box(rgb, (52, 38, 210, 172)), cut_by_box(rgb, (52, 38, 210, 172)))


def test_a_box_is_in_pixels_of_the_picture_and_not_of_its_small_copy():
    rgb, _ = bowl()
    large = Picture(np.asarray(Image.fromarray(rgb).resize((1300, 1000))))
    prepared = prepare_image(large, 64, box=(260, 190, 1050, 860))
    scale = cutout.CUTOUT_SIDE / 1300
    expected = np.array([60 * 5, 45 * 5, 140 * 5, 120 * 5]) * scale
    np.testing.assert_allclose(prepared.bbox, expected, atol=8)  # the enlarged edge is five pixels wide
    assert prepared.notes == ["cut out of the box 260 190 1050 860 by GrabCut"]


@pytest.mark.parametrize(
    "box", [(0, 0, 161, 50), (0, 0, 50, 121), (50, 0, 50, 20), (60, 0, 50, 20), (-1, 0, 9, 9)]
)
def test_a_box_outside_the_picture_is_refused_with_the_size_of_the_picture(box):
    with pytest.raises(InputError, match="does not lie in cat.jpg, which is 160x120 pixels"):
        prepare_image(Picture(texture((120, 160)), name="cat.jpg"), 64, box=box)


def test_a_box_without_background_around_it_is_refused():
    with pytest.raises(InputError, match="is all of cat.jpg, 160x120"):
        prepare_image(Picture(texture((120, 160)), name="cat.jpg"), 64, box=(0, 0, 160, 120))


def test_a_box_of_two_corners_too_few_is_refused():
    with pytest.raises(InputError, match="four numbers"):
        prepare_image(Picture(texture((120, 160))), 64, box=(1, 2))


def test_a_box_without_opencv_names_the_install_line(without_extras):
    with pytest.raises(InputError) as error:
        prepare_image(Picture(texture((120, 160))), 64, box=(20, 20, 100, 100))
    assert error.value.hint == 'pip install "sv3d_jax[photos]"'


def test_pieces_that_are_large_stay_and_small_ones_and_small_holes_go(tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text(
        "GC_BGD, GC_PR_FGD, GC_INIT_WITH_MASK = 0, 3, 1\n"
        "def setRNGSeed(seed): pass\n"
        "def grabCut(image, label, rectangle, back, front, rounds, mode):\n"
        "    label[label == 3] = 2\n"
        "    label[20:80, 20:80] = 3\n"  # the object
        "    label[45:50, 45:50] = 2\n"  # a hole of 0.7 %
        "    label[25:40, 55:75] = 2\n"  # one of 8 %
        "    label[85:100, 30:70] = 3\n"  # a piece of 18 %
        "    label[20:30, 100:110] = 3\n"  # one of 3 %
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    alpha = cut_by_box(texture((120, 160)), (10, 10, 150, 110))[..., 3]
    sys.modules.pop("cv2")
    assert alpha[47, 47] == 255 and alpha[32, 65] == 0
    assert alpha[92, 50] == 255 and alpha[25, 105] == 0


# The remover


def test_one_session_serves_many_pictures(with_rembg):
    remover = Remover()
    for seed in range(3):
        prepare_image(Picture(texture((64, 64), seed)), 64, "remove", remover=remover)
    assert sys.modules["rembg"].sessions == ["u2net"]


def test_the_model_of_the_remover_is_named_in_the_notes(with_rembg):
    notes = prepare_image(Picture(texture((64, 64))), 64).notes
    assert notes == ["the background was removed by rembg with its model u2net"]


def test_an_absent_model_that_cannot_be_downloaded_is_named_with_its_place(with_rembg, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(with_rembg / "models"))
    with open(with_rembg / "rembg.py", "a") as file:
        file.write("def new_session(name): raise OSError('no route')\n")
    with pytest.raises(WeightsError) as error:
        prepare_image(Picture(texture((64, 64))), 64, "remove")
    place = with_rembg / "models"
    for part in ("u2net.onnx", "176 MB", str(place)):
        assert part in error.value.message
    assert f'-o "{place / "u2net.onnx"}" https://' in error.value.hint
    assert error.value.exit_code == 3


def test_a_damaged_model_is_named(with_rembg, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(with_rembg))
    (with_rembg / "u2net.onnx").write_text("cut off")
    with open(with_rembg / "rembg.py", "a") as file:
        file.write("def new_session(name): raise RuntimeError('protobuf')\n")
    with pytest.raises(WeightsError, match="damaged") as error:
        prepare_image(Picture(texture((64, 64))), 64, "remove")
    assert str(with_rembg / "u2net.onnx") in error.value.message and "remove it" in error.value.hint


@pytest.mark.parametrize(
    "variables,place",
    [
        ({}, ".rembg/models/u2net/u2net.onnx"),
        ({}, ".u2net/u2net.onnx"),
        ({"XDG_DATA_HOME": "data"}, "data/.u2net/u2net.onnx"),
        ({"XDG_DATA_HOME": "data"}, "data/rembg/models/u2net/u2net.onnx"),
        ({"REMBG_HOME": "mine"}, "mine/models/u2net/u2net.onnx"),
        ({"U2NET_HOME": "old"}, "old/u2net.onnx"),
    ],
)
def test_the_model_is_looked_for_where_rembg_keeps_it(tmp_path, monkeypatch, variables, place):
    for name in ("XDG_DATA_HOME", "REMBG_HOME", "U2NET_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert cutout.remover_file() is None
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("")
    assert cutout.remover_file() == tmp_path / place


# What is said


@pytest.mark.usefixtures("command_line")
def test_the_hint_names_every_way_its_cost_and_what_to_add(without_extras):
    with pytest.raises(InputError) as error:
        prepare_image(Picture(texture((120, 160)), name="shots/cat.jpg"), 64)
    assert error.value.message == "shots/cat.jpg has neither an alpha channel nor a uniform border"
    for part in (
        "transparent background",
        "--mask cat_mask.png",
        "--box 20 15 140 105",
        'pip install "sv3d_jax[photos]" (Apache-2.0, 150 MB',
        "--background remove",
        'pip install "sv3d_jax[rembg]" (MIT, 300 MB',
        "u2net (Apache-2.0, 176 MB)",
        "--background keep",
    ):
        assert part in error.value.hint


def test_the_hint_says_what_is_installed(monkeypatch):
    monkeypatch.setattr(cutout, "find_spec", lambda name: name == "cv2")
    hint = ways_out(Picture(texture((120, 160))))
    assert "OpenCV: installed" in hint and "sv3d_jax[photos]" not in hint and "sv3d_jax[rembg]" in hint


def test_the_ways_say_how_to_get_what_is_not_installed(without_extras):
    assert ways() == {
        "alpha, plain border, --mask": "always",
        "--box": 'pip install "sv3d_jax[photos]"',
        "--background remove": 'pip install "sv3d_jax[rembg]"',
        "HEIC": 'pip install "sv3d_jax[photos]"',
    }


@pytest.mark.parametrize("background", ["alpha", "keep", "auto"])
def test_messages_about_a_picture_name_its_file(background):
    clear = Picture(texture((64, 64)), np.zeros((64, 64), np.uint8), name="shots/cat.png")
    with pytest.raises(InputError, match="shots/cat.png is transparent everywhere"):
        prepare_image(clear, 64, background)


def test_the_picture_without_a_cut_out_the_blank_and_the_wide_one_are_named():
    blank = Picture(np.full((64, 64, 3), 255, np.uint8), name="cat.png")
    wide = Picture(np.zeros((32, 20_000, 3), np.uint8), np.ones((32, 20_000), np.uint8), name="cat.png")
    with pytest.raises(InputError, match="cat.png has no cut-out"):
        prepare_image(blank, 64, "alpha")
    with pytest.raises(InputError, match="nothing of cat.png is left"):
        prepare_image(blank, 64)
    with pytest.raises(InputError, match="padding cat.png to a square"):
        prepare_image(wide, 64)


def test_importing_what_cuts_out_imports_no_extra():
    code = (
        "import sys, sv3d_jax.cutout; sys.exit(bool({'cv2', 'rembg', 'pi_heif', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
