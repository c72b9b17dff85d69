"""What is left behind when a run gives up: enough to see where the numbers went wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sv3d_jax.train.debug import debug_report, part_norms, write_debug_bundle

PARAMS = {
    "unet": {"in": {"kernel": jnp.full((3, 4), 2.0)}, "out": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
}


def loss(params, batch, key):
    return (batch["x"] @ params["unet"]["in"]["kernel"]).sum() + params["unet"]["out"]["bias"].sum()


def test_norms_are_of_whole_parts():
    norms = {name: float(norm) for name, norm in part_norms(PARAMS).items()}
    assert norms == pytest.approx({"unet/in": 12**0.5 * 2, "unet/out": 2.0})


def test_the_bundle_shows_where_the_batch_is_not_finite(tmp_path):
    batch = {"x": np.array([[1.0, np.nan, -3.0]], np.float32)}
    report = debug_report(loss, PARAMS, PARAMS, batch, jax.random.key(7), {"loss": np.float32("nan")})
    path = write_debug_bundle(tmp_path, {"step": 5} | report, batch)
    found = json.loads(path.read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    assert found["step"] == 5 and found["key"] == [0, 7] and found["metrics"] == {"loss": "nan"}
    assert found["batch"]["x"] == {"shape": [1, 3], "min": -3.0, "max": 1.0, "not_finite": 1}
    assert found["norms"]["gradient"]["unet/in"] == "nan"
    assert found["norms"]["gradient"]["unet/out"] == pytest.approx(2**0.5)
    np.testing.assert_array_equal(np.load(tmp_path / "not_finite.npz")["x"], batch["x"])
