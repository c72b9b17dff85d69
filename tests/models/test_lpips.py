"""LPIPS against a plain NumPy network with the same seeded random weights, and the reading of its weights."""

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.metrics.perceptual import lpips, read_lpips_weights
from sv3d_jax.models.lpips import lpips_params, lpips_shapes

# torchvision's VGG16: channels of the convolutions, M a pooling; LPIPS looks before each pooling and at the end.
VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Half precision, as a file may hold them; heads are positive, as the published ones."""
    rng, tensors, channels, place = np.random.default_rng(0), {}, 3, 0
    for item in VGG16:
        if item != "M":
            kernel = rng.standard_normal((item, channels, 3, 3), np.float32) * np.sqrt(2 / (9 * channels))
            tensors[f"features.{place}.weight"] = kernel.astype(np.float16)
            tensors[f"features.{place}.bias"] = rng.normal(0, 0.1, item).astype(np.float16)
            channels = item
        place += 1 if item == "M" else 2  # a ReLU follows every convolution
    for head, features in enumerate((64, 128, 256, 512, 512)):
        tensors[f"lin{head}.model.1.weight"] = rng.random((1, features, 1, 1)).astype(np.float16)
    return tensors


@pytest.fixture(scope="module")
def params(tensors):
    return lpips_params(tensors)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).random((2, 2, 16, 19, 3)).astype(np.float32)


def plain_lpips(first, second, tensors) -> float:
    distance = 0.0
    for head, (x, y) in enumerate(
        zip(plain_features(first, tensors), plain_features(second, tensors), strict=True)
    ):
        x, y = (z / (np.sqrt((z**2).sum(0)) + 1e-10) for z in (x, y))
        weights = tensors[f"lin{head}.model.1.weight"].astype(np.float64)[0, :, 0, 0]
        distance += np.einsum("c,chw->hw", weights, (x - y) ** 2).mean()
    return distance


def plain_features(image, tensors):
    """Channels first, float64, as the network is written down."""
    mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x, place = ((2.0 * image.astype(np.float64) - 1.0 - mean) / deviation).transpose(2, 0, 1), 0
    for item in VGG16:
        if item == "M":
            yield x
            even = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
            x = even.reshape(len(x), even.shape[1] // 2, 2, -1, 2).max((2, 4))
            place += 1
        else:
            kernel = tensors[f"features.{place}.weight"].astype(np.float64)
            windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
            x = np.tensordot(kernel, windows, ([1, 2, 3], [0, 3, 4]))
            x = np.maximum(x + tensors[f"features.{place}.bias"].astype(np.float64)[:, None, None], 0.0)
            place += 2
    yield x


def test_agrees_with_a_plain_network(tensors, params, images):
    expected = [plain_lpips(x, y, tensors) for x, y in zip(*images, strict=True)]
    np.testing.assert_allclose(lpips(*images, params), expected, rtol=1e-4)  # float32, 13 layers


def test_of_equal_pictures_is_0(params, images):
    assert not np.any(lpips(images[0], images[0], params))


def test_gradient_is_finite_for_equal_pictures(params, images):
    gradient = jax.grad(lambda image: lpips(image, images[0, 0], params).sum())(images[0, 0])
    assert np.isfinite(gradient).all()


def test_features_that_are_all_zero_have_finite_gradients(params, images):
    dead = jax.tree.map(np.zeros_like, params)
    gradient = jax.grad(lambda image: lpips(image, images[1, 0], dead).sum())(images[0, 0])
    assert not np.any(gradient)


def test_pictures_too_small_for_four_poolings_are_refused(params):
    with pytest.raises(InputError, match="16 pixels a side, got 20x15"):
        lpips(np.zeros((15, 20, 3)), np.zeros((15, 20, 3)), params)


def test_names_and_shapes_are_those_of_the_published_files(tensors):
    assert lpips_shapes() == {name: tensor.shape for name, tensor in tensors.items()}


def test_a_file_with_the_classifier_too_is_read(tmp_path, tensors, params):
    save_file(tensors | {"classifier.6.bias": np.zeros(1000)}, tmp_path / "lpips.safetensors")
    read = read_lpips_weights(tmp_path / "lpips.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


def small_file(path, **changes):
    """All tensors but without their values, which are never reached."""
    shapes = lpips_shapes() | changes
    save_file({name: np.zeros(shape, np.uint8) for name, shape in shapes.items() if shape is not None}, path)
    return path


def test_a_missing_tensor_is_named(tmp_path):
    path = small_file(tmp_path / "x.safetensors", **{"features.17.bias": None})
    with pytest.raises(WeightsError, match=r"lacks 1 of LPIPS' 31 tensors: features\.17\.bias"):
        read_lpips_weights(path)


def test_a_trunk_without_heads_is_refused_by_their_names(tmp_path):
    heads = {f"lin{head}.model.1.weight": None for head in range(5)}
    with pytest.raises(WeightsError, match=r"lacks 5 .*: lin0\.model\.1\.weight") as caught:
        read_lpips_weights(small_file(tmp_path / "x.safetensors", **heads))
    assert "lpips" in caught.value.hint


def test_a_tensor_of_another_shape_is_named(tmp_path):
    path = small_file(tmp_path / "x.safetensors", **{"lin1.model.1.weight": (1, 192, 1, 1)})
    with pytest.raises(WeightsError, match=r"lin1\.model\.1\.weight should have the shape \(1, 128, 1, 1\)"):
        read_lpips_weights(path)
