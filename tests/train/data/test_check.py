"""The verb `data check` finds and names every defect."""

import json

import numpy as np
import pytest
from PIL import Image

from sv3d_jax.errors import InputError
from sv3d_jax.progress import NullProgress
from sv3d_jax.train.data.check import run_check
from sv3d_jax.train.data.config import CheckConfig
from tests.train.data.packed import (
    flip_byte_of_record,
    numbered_record,
    write_colored_orbit,
    write_masked_orbit,
    write_shards,
)

VIEWS = 6


def check(folder):
    result = run_check(CheckConfig(folder=folder), NullProgress())
    assert result["ok"] == (not result["defects"])
    return result["defects"]


@pytest.fixture
def packed(tmp_path):
    write_shards(tmp_path, [numbered_record(n, VIEWS) for n in range(10)])
    return tmp_path


@pytest.fixture
def orbit(tmp_path):
    write_colored_orbit(tmp_path / "orbits" / "one")
    write_colored_orbit(tmp_path / "orbits" / "deeper" / "two")
    return tmp_path / "orbits" / "one"


def edit_cameras(orbit, change):
    path = orbit / "cameras.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_whole_shards_and_orbits_have_none(packed, orbit):
    assert check(packed) == check(orbit.parent) == check(orbit) == []


def test_every_damaged_record_is_named(packed):
    for number in (1, 6):
        flip_byte_of_record(packed, number, VIEWS)
    defects = "\n".join(check(packed))
    assert "orbits-00000.arrayrecord record 1 (object1 white)" in defects
    assert "orbits-00001.arrayrecord record 2 (object6 white)" in defects
    assert "object2" not in defects


@pytest.mark.parametrize("place", [5, 70_000, -5])
def test_any_flipped_byte_of_a_shard_is_found(packed, place):
    file = packed / "orbits-00000.arrayrecord"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    assert any(
        "orbits-00000.arrayrecord has changed since it was written" in defect for defect in check(packed)
    )


def test_missing_truncated_and_unknown_shards_are_named(packed):
    (packed / "orbits-00000.arrayrecord").unlink()
    file = packed / "orbits-00001.arrayrecord"
    file.write_bytes(file.read_bytes()[:-1000])
    (packed / "orbits-00009.arrayrecord").write_bytes(b"")
    defects = check(packed)
    assert any("orbits-00000.arrayrecord is missing" in defect for defect in defects)
    assert any("orbits-00001.arrayrecord has" in defect and "were written" in defect for defect in defects)
    assert any("orbits-00009.arrayrecord is not in the index" in defect for defect in defects)


def test_a_folder_that_was_not_packed_to_the_end_is_named(packed):
    (packed / "index.json").unlink()
    [defect] = check(packed)
    assert "index.json does not exist" in defect


def test_wrong_content_is_named_although_the_checksums_fit(tmp_path):
    good, bad, short = (numbered_record(n, VIEWS) for n in range(3))
    latents = np.array(bad.latents)
    latents[3, 0, 0, 0] = np.nan
    write_shards(tmp_path, [good, bad._replace(latents=latents), short._replace(tokens=short.tokens[:-1])])
    first, second = check(tmp_path)
    assert "(object1 white): latents has values that are not finite" in first
    assert "(object2 white): tokens has shape (5, 8), expected (6, 8)" in second


def test_defects_of_frames_are_all_named(orbit):
    (orbit / "frames" / "002.png").unlink()
    (orbit / "frames" / "003.png").write_bytes((orbit / "frames" / "003.png").read_bytes()[:60])
    Image.new("RGBA", (16, 16), "red").save(orbit / "frames" / "004.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(orbit / "frames" / "005.png")
    defects = check(orbit.parent)
    expected = {
        "002.png": "",
        "003.png": "",
        "004.png": "has 16x16 pixels",
        "005.png": "alpha is 0 everywhere",
    }
    assert len(defects) == 4
    for defect, (file, text) in zip(defects, expected.items(), strict=True):
        assert f"one/frames/{file}" in defect and text in defect


def test_defects_of_alphas_beside_frames_are_all_named(tmp_path):
    write_masked_orbit(tmp_path / "one")
    assert check(tmp_path) == []
    alphas = tmp_path / "one" / "alphas"
    (alphas / "001.png").unlink()
    Image.new("L", (16, 16)).save(alphas / "002.png")
    Image.new("L", (32, 32)).save(alphas / "003.png")
    Image.new("RGB", (32, 32), "red").save(alphas / "004.png")
    edit_cameras(tmp_path / "one", lambda document: document["frames"][5].pop("alpha_file"))
    edit_cameras(tmp_path / "one", lambda document: document["frames"][6].update(alpha_file="../a.png"))
    expected = [
        "alphas/001.png does not exist",
        "alphas/002.png has 16x16 pixels, 002.png has 32x32",
        "alphas/003.png is 0 where 003.png is not white",
        "alphas/004.png is not an alpha",
        "frames[5] has no alpha_file, others have one",
        "frames[6].alpha_file lies outside the folder",
    ]
    defects = check(tmp_path)
    assert len(defects) == len(expected)
    assert all(text in defect for text, defect in zip(expected, defects, strict=True))


def test_cameras_that_contradict_themselves_are_named(orbit):
    def turn(document):
        document["frames"][3]["azimuth_deg"] += 5.0

    edit_cameras(orbit, turn)
    [defect] = check(orbit)
    assert "frames[3] has a camera_to_world that does not match its angles" in defect


def test_cameras_at_different_distances_are_named(orbit):
    def move(document):
        for row in document["frames"][3]["camera_to_world"][:3]:
            row[3] *= 1.5
        document["frames"][3]["radius"] *= 1.5

    edit_cameras(orbit, move)
    [defect] = check(orbit)
    assert "distances to the origin differ, 2 to 3" in defect


def test_a_missing_frame_of_cameras_and_a_begun_orbit_are_named(orbit):
    (orbit / ".stages.json").write_text("{}")
    edit_cameras(orbit, lambda document: document["frames"][1].pop("file"))
    defects = check(orbit)
    assert any("not finished" in defect for defect in defects)
    assert any("frames[1] names no file" in defect for defect in defects)


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds neither shards nor orbits"):
        check(tmp_path)


def test_an_elevation_that_no_camera_has_is_a_defect(tmp_path):
    write_colored_orbit(tmp_path / "one")
    edit_cameras(tmp_path / "one", lambda document: document["frames"][4].update(elevation_deg=4000.0))
    (defect,) = check(tmp_path)
    assert "cameras.json: frames[4].elevation_deg is 4000, outside [-90, 90]" in defect
