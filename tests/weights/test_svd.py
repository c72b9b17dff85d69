"""Stable Video Diffusion as weights to start from."""

from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sv3d_jax.errors import WeightsError
from sv3d_jax.models.embeddings import sinusoidal
from sv3d_jax.models.families import FAMILIES
from sv3d_jax.models.video_unet import VideoUNet
from sv3d_jax.weights.key_map import PREFIXES, model_parameters
from sv3d_jax.weights.safetensors_file import SafetensorsFile
from sv3d_jax.weights.source import open_weights
from sv3d_jax.weights.svd import VECTOR_WIDTH, adapt_vector, is_svd, read_svd_unet
from tests.reference_weights import reference_params, reference_tensor
from tests.tiny_model import CONFIG
from tests.weights.files import write_shapes, write_tensors

SVD = replace(CONFIG, unet=replace(CONFIG.unet, vector_width=VECTOR_WIDTH))
TEMPORAL_DECODER = f"{PREFIXES['vae_decoder']}conv_out.time_mix_conv.weight"


@pytest.fixture
def svd_file(tmp_path):
    """A small SVD: UNet and a tensor of the decoder that mixes frames."""
    tensors = {p.name: reference_tensor(p.name, p.shape) for p in model_parameters(SVD, ["unet"])}
    tensors[TEMPORAL_DECODER] = np.zeros((3, 3, 3, 1, 1), np.float32)
    return write_tensors(tmp_path / "svd.safetensors", tensors)


def answer(unet, params, vector):
    random = np.random.default_rng(0)
    x, context = (random.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 4, 4, 8), (1, 1, 8)))
    return VideoUNet(unet).apply({"params": params}, x, jnp.zeros(1), context, vector)


@pytest.mark.parametrize("variant", ("u", "p"))
def test_the_adapted_unet_answers_as_svd_without_rate_and_motion(svd_file, variant):
    width = FAMILIES[variant].vector_width
    noise = sinusoidal(jnp.full((1, 2), 0.02), 256)
    params = read_svd_unet(svd_file, CONFIG)
    expected = answer(SVD.unet, params, jnp.concatenate([jnp.zeros((1, 2, 512)), noise], -1))
    label = {
        **params["label_emb_0_0"],
        "kernel": adapt_vector(params["label_emb_0_0"]["kernel"], FAMILIES[variant]),
    }
    camera = jnp.ones((1, 2, width - 256))
    adapted = answer(
        replace(CONFIG.unet, vector_width=width),
        {**params, "label_emb_0_0": label},
        jnp.concatenate([noise, camera], -1),
    )
    np.testing.assert_allclose(adapted, expected, atol=1e-6)  # sums of more terms


def test_kernels_of_sv3d_keep_what_fits():
    u, p = np.ones((256, 3), np.float32), np.arange(3840, dtype=np.float32).reshape(1280, 3)
    np.testing.assert_array_equal(adapt_vector(p, FAMILIES["p"]), p)
    np.testing.assert_array_equal(adapt_vector(p, FAMILIES["u"]), p[:256])
    np.testing.assert_array_equal(adapt_vector(u, FAMILIES["u"]), u)
    svd = np.arange(2304, dtype=np.float32).reshape(768, 3)
    np.testing.assert_array_equal(adapt_vector(svd, FAMILIES["v3d"]), svd)
    np.testing.assert_array_equal(adapt_vector(svd, FAMILIES["u"]), svd[512:])
    with pytest.raises(WeightsError, match="reads 100 numbers"):
        adapt_vector(svd[:100], FAMILIES["u"])
    np.testing.assert_array_equal(adapt_vector(u, FAMILIES["p"]), np.concatenate([u, np.zeros((1024, 3))]))


def test_unet_is_read_under_its_paths(svd_file):
    params = read_svd_unet(svd_file, CONFIG)
    expected = reference_params(CONFIG, parts=["unet"])["unet"]
    np.testing.assert_array_equal(params["out_2"]["kernel"], expected["out_2"]["kernel"])


def test_svd_is_read_as_trainers_and_8_bit_programs_write_it(svd_file, tmp_path):
    file = SafetensorsFile(svd_file)
    name = f"{PREFIXES['unet']}out.2.weight"
    tensors = {f"module.{key}": file.read(key) for key in file.tensors}
    tensors[f"module.{name}"] = narrow = file.read(name).astype(ml_dtypes.float8_e4m3fn)
    path = write_tensors(tmp_path / "wrapped.safetensors", tensors)
    assert is_svd(path)
    kernel = read_svd_unet(path, CONFIG)["out_2"]["kernel"]
    np.testing.assert_array_equal(kernel, narrow.astype(np.float32).transpose(2, 3, 1, 0))


def test_svd_is_known_by_its_vector(svd_file, tmp_path):
    other = write_shapes(tmp_path / "p.safetensors", {f"{PREFIXES['unet']}label_emb.0.0.weight": (8, 1280)})
    assert is_svd(svd_file) and not is_svd(other) and not is_svd(tmp_path)


def test_a_unet_of_other_widths_is_refused(svd_file):
    wide = replace(CONFIG, unet=replace(CONFIG.unet, model_channels=32))
    with pytest.raises(WeightsError, match=r"time_embed.0.weight should have the shape \(128, 32\)"):
        read_svd_unet(svd_file, wide)


def test_as_a_model_the_file_is_refused_with_its_decoder_named(svd_file):
    with pytest.raises(
        WeightsError, match="Stable Video Diffusion .*decoder mixes frames; only sv3d train --initial"
    ):
        open_weights(svd_file)
