"""Losses of the reconstruction: means in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import reduce

from sv3d_jax.arrays import Array, Float, Int, PRNGKeyArray, Scalar
from sv3d_jax.errors import InputError

CHROMATICITY_STD = 0.015  # of r, g and b over their sum, within one paint
CHROMATICITY_DARKEST = 0.1  # pixels whose largest channel is below have no reliable chromaticity
CHROMATICITY_PIXELS = 2**13  # random ones, which are compared
CHROMATICITY_PARTNERS = 4  # pixels that each pixel is compared with


def photometric_loss(rendered: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> Scalar:
    """Mean squared error of composited colours."""
    return jnp.mean(jnp.square(rendered - target))


def mask_loss(opacity: Float[Array, "*n"], mask: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Scalar:
    """Weighted mean squared error of coverage."""
    return jnp.mean(weights * jnp.square(opacity - mask))


def distortion_loss(
    weights: Float[Array, "n s"], depths: Float[Array, "n s"], lengths: Float[Array, "n s"]
) -> Scalar:
    """The distortion loss of mip-NeRF 360 (eq. 15), mean over rays: how far a ray's weights are spread in depth.

    In places of uniform colour, semi-transparent fog explains the views as well as a surface does; this prefers the
    surface. Samples are in order along the ray.
    """
    # sum_ij w_i w_j |t_i - t_j| is twice the sum over pairs with t_j < t_i.
    weight_before = jnp.cumsum(weights, axis=-1) - weights
    moment = weights * depths
    moment_before = jnp.cumsum(moment, axis=-1) - moment
    between = 2.0 * jnp.sum(weights * (depths * weight_before - moment_before), axis=-1)
    within = jnp.sum(jnp.square(weights) * lengths, axis=-1) / 3.0
    return jnp.mean(between + within)


def nearness_loss(
    weights: Float[Array, "n s"], depths: Float[Array, "n s"], entries: Float[Array, "n"]
) -> Scalar:
    """Mean over rays of the distance from where they enter the hull to the expected termination depth.

    In places of uniform colour the views agree with any surface inside the hull; this prefers the hull.
    """
    return jnp.mean(jnp.sum(weights * (depths - entries[:, None]), axis=-1))


def eroded(mask: Float[Array, "*f h w"]) -> Float[Array, "*f h w"]:
    """The least coverage in each pixel's 3x3 neighbourhood: the `valid` pixels of losses that compare neighbours."""
    window = (1,) * (mask.ndim - 2) + (3, 3)
    return jax.lax.reduce_window(mask, jnp.inf, jax.lax.min, window, (1,) * mask.ndim, "SAME")


def depth_smoothness_loss(
    depth: Float[Array, "*f h w"], opacity: Float[Array, "*f h w"], valid: Float[Array, "*f h w"]
) -> Scalar:
    """Mean squared step of depth to the right plus that to the lower neighbour (RegNeRF).

    `depth` is as composited; the expected depth is depth / opacity. A step counts where its first pixel is valid
    and both are more than half opaque.
    """
    solid = opacity > 0.5
    expected = jnp.where(solid, depth / jnp.where(solid, opacity, 1.0), 0.0)
    here, *neighbours = _with_neighbours(expected)
    solid_here, *solid_neighbours = _with_neighbours(solid)
    weights = valid[..., :-1, :-1] * solid_here
    pairs = zip(neighbours, solid_neighbours, strict=True)
    return sum(_mean(jnp.square(there - here), weights * solid_there) for there, solid_there in pairs)  # pyright: ignore[reportCallIssue]


def normal_loss(
    normals: Float[Array, "*f h w 3"], estimate: Float[Array, "*f h w 3"], valid: Float[Array, "*f h w"]
) -> Scalar:
    """Mean of 1 - n . n_bar over valid pixels; both unit and in the same axes."""
    return _mean(1.0 - jnp.sum(normals * estimate, axis=-1), valid)


def normals_in_camera(
    normals: Float[Array, "f h w 3"], camera_to_world: Float[Array, "f 4 4"]
) -> Float[Array, "f h w 3"]:
    """World normals in each camera's axes: x right, y up, z towards the viewer."""
    return jnp.einsum("fhwi,fij->fhwj", normals, camera_to_world[:, :3, :3], precision="highest")


def illumination_loss(
    shading: Float[Array, "*f h w"], images: Float[Array, "*f h w 3"], valid: Float[Array, "*f h w"]
) -> Scalar:
    """Mean squared distance of the shading from the largest channel of the picture (SV3D's L_illum)."""
    return _mean(jnp.square(jnp.max(images, axis=-1) - shading), valid)


class PaintPairs(NamedTuple):
    """Per random pixel pair, the log-differences that the priors on albedo and light need."""

    ratio: Float[Array, "n"]  # difference of log brightness over light
    light: Float[Array, "n"]  # difference of the log of the light
    alike: Float[Array, "n"]  # whether both have one chromaticity, in [0, 1]
    valid: Float[Array, "n"]


def paint_pairs(
    shading: Float[Array, "*f h w"],
    images: Float[Array, "*f h w 3"],
    valid: Float[Array, "*f h w"],
    key: PRNGKeyArray,
) -> PaintPairs:
    """Random pairs of valid pixels; those with a nearly black one do not count, for black has no chromaticity."""
    pixel_key, shift_key = jax.random.split(key)
    ends = jnp.cumsum(valid.ravel() > 0)
    ranks = jax.random.randint(pixel_key, (CHROMATICITY_PIXELS,), 0, jnp.maximum(ends[-1], 1))
    pixel = jnp.minimum(jnp.searchsorted(ends, ranks, side="right"), ends.size - 1)
    shading, images, valid = (
        jnp.asarray(leaf)[pixel] for leaf in (shading.ravel(), images.reshape(-1, 3), valid.ravel())
    )
    brightness = jnp.max(images, axis=-1)
    light = jnp.log(jnp.maximum(shading, 1e-3))
    ratio = jnp.log(jnp.maximum(brightness, 1e-3)) - light
    hue = images / jnp.maximum(jnp.sum(images, axis=-1, keepdims=True), 1e-3)
    bright = valid * (brightness > CHROMATICITY_DARKEST)
    pixels = jnp.stack([ratio, light, *jnp.moveaxis(hue, -1, 0), bright], axis=-1)
    shifts = jax.random.randint(shift_key, (CHROMATICITY_PARTNERS,), 1, len(pixels))
    partners = jnp.stack([jnp.roll(pixels, shift, axis=0) for shift in shifts])
    step = (pixels - partners).reshape(-1, 6)
    alike = jnp.exp(-jnp.sum(jnp.square(step[:, 2:5]), axis=-1) / (2 * CHROMATICITY_STD**2))
    return PaintPairs(step[:, 0], step[:, 1], alike, (pixels[:, 5] * partners[..., 5]).ravel())


def same_chromaticity_probability(pairs: PaintPairs) -> Scalar:
    """The probability that two random pixels have the same chromaticity: 1 for an object of one paint."""
    return _mean(pairs.alike, pairs.valid)


def chromaticity_loss(pairs: PaintPairs) -> Scalar:
    """Mean absolute difference of log(brightness / light) between pixels of the same chromaticity.

    Pixels of the same chromaticity are taken for the same paint, anywhere on the object, so that their brightness
    differs by the light alone. Absolute values tolerate exceptions (Shen, Tan and Lin 2008; Gehler et al. 2011).
    """
    return _mean(jnp.abs(pairs.ratio), pairs.alike * pairs.valid)


def evenness_loss(pairs: PaintPairs) -> Scalar:
    """Mean absolute difference of the log of the light.

    An absolute value, like the chromaticity loss, which has more weight: so the light is exactly even unless places of
    the same chromaticity contradict, and then follows those without a bias.
    """
    return _mean(jnp.abs(pairs.light), pairs.valid)


def bilateral_loss(
    normals: Float[Array, "*f h w 3"], images: Float[Array, "*f h w 3"], valid: Float[Array, "*f h w"]
) -> Scalar:
    """Edge-aware smoothness of normals: they may change where the picture does (SV3D, appendix).

    Mean of exp(-3 |grad I|) sqrt(1 + |grad n|) of picture I and normals n, where |grad n| is the norm of the forward
    differences of all components.
    """
    here, right, below = _with_neighbours(jnp.moveaxis(normals, -1, 0))
    squared = jnp.sum(jnp.square(right - here) + jnp.square(below - here), axis=0)
    bend = jnp.sqrt(squared + 1e-6)
    change = _sobel(images)[..., :-1, :-1]
    return _mean(jnp.exp(-3.0 * change) * jnp.sqrt(1.0 + bend), valid[..., :-1, :-1])


def nearby_points(points: Float[Array, "*n 3"], std: float, key: PRNGKeyArray) -> Float[Array, "*n 3"]:
    """Points moved by N(0, std^2 I); SV3D's albedo smoothness has std 0.01 where the object has size 1."""
    return points + std * jax.random.normal(key, points.shape)


def albedo_smoothness_loss(
    albedo: Float[Array, "*n 3"], nearby: Float[Array, "*n 3"], weights: Float[Array, "*n"]
) -> Scalar:
    """Weighted mean squared distance of the albedo at surface points and at points nearby."""
    return _mean(jnp.sum(jnp.square(albedo - nearby), axis=-1), weights)


def orientation_loss(
    weights: Float[Array, "n s"], normals: Float[Array, "n s 3"], directions: Float[Array, "n 3"]
) -> Scalar:
    """Mean over rays that hit something of sum w max(n . d, 0)^2 (Ref-NeRF, eq. 11): surfaces face the camera.

    The weights get no gradient, as in threestudio.
    """
    away = jnp.maximum(jnp.einsum("nsi,ni->ns", normals, directions, precision="highest"), 0.0)
    total = jnp.sum(jax.lax.stop_gradient(weights) * jnp.square(away))
    return total / jnp.maximum(jnp.sum(jnp.sum(weights, axis=-1) > 0), 1)


def opaque_loss(opacity: Float[Array, "*n"]) -> Scalar:
    """Mean binary entropy of opacity, smallest at 0 and 1 (threestudio)."""
    inside = jnp.clip(opacity, 1e-3, 1.0 - 1e-3)
    return -jnp.mean(inside * jnp.log(inside) + (1.0 - inside) * jnp.log1p(-inside))


def laplacian_loss(
    vertices: Float[Array, "v 3"], edge_vertices: Int[Array, "e 2"], edge_faces: Int[Array, "e 2"]
) -> Scalar:
    """Mean squared distance of a vertex from the mean of its neighbours (umbrella Laplacian).

    Edges whose faces are (-1, -1) are padding; vertices without an edge are ignored.
    """
    used = edge_faces[:, 0] >= 0
    first, second = edge_vertices[:, 0], edge_vertices[:, 1]
    step = jnp.where(used[:, None], vertices[second] - vertices[first], 0.0)
    total = jnp.zeros_like(vertices).at[first].add(step).at[second].add(-step)
    degree = jnp.zeros(len(vertices), jnp.int32).at[first].add(used).at[second].add(used)
    return _mean(jnp.sum(jnp.square(total / jnp.maximum(degree, 1)[:, None]), axis=-1), degree > 0)


def normal_consistency_loss(face_normals: Float[Array, "t 3"], edge_faces: Int[Array, "e 2"]) -> Scalar:
    """Mean of (1 - n_f . n_g) / 2 over edges with two faces; -1 stands for none."""
    first, second = (face_normals[edge_faces[:, side]] for side in (0, 1))
    return _mean(0.5 * (1.0 - jnp.sum(first * second, axis=-1)), edge_faces[:, 1] >= 0)


def sdf_sign_loss(sdf: Float[Array, "v"], edges: Int[Array, "e 2"]) -> Scalar:
    """Mean cross-entropy between each end's distance and the other end's sign, over edges that cross the surface.

    It pulls both ends to one side and so removes loose parts (nvdiffrec, section 3.1). Inside is sdf < 0.
    """
    first, second = sdf[edges[:, 0]], sdf[edges[:, 1]]
    outside_first, outside_second = first >= 0, second >= 0
    towards_second = jax.nn.softplus(first) - first * outside_second
    towards_first = jax.nn.softplus(second) - second * outside_first
    return _mean(towards_second + towards_first, outside_first != outside_second)


def perceptual_loss(rendered: Float[Array, "f h w 3"], target: Float[Array, "f h w 3"]) -> Scalar:
    """1 - SSIM plus the mean absolute error of pictures and of their halves, quarters and eighths.

    Used instead of LPIPS where its weights are not given. Raises InputError for sides below 11 pixels.
    """
    # That module reads files, for which a bare host lacks libraries.
    from sv3d_jax.metrics.images import SSIM_WINDOW, ssim

    height, width = rendered.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"structural similarity needs pictures of at least {SSIM_WINDOW} pixels a side, got {width}x{height}",
            hint="larger frames, or --fine-steps 0 for the coarse surface alone",
        )
    error = rendered - target
    errors = [jnp.mean(jnp.abs(error))]
    for _ in range(3):
        even = error[:, : error.shape[1] // 2 * 2, : error.shape[2] // 2 * 2]
        error = reduce(even, "f (h 2) (w 2) c -> f h w c", "mean")
        errors.append(jnp.mean(jnp.abs(error)))
    return 1.0 - jnp.mean(ssim(rendered, target)) + sum(errors) / len(errors)


def _mean(values: Array, weights: Array) -> Scalar:
    """Weighted mean; 0 where nothing has weight."""
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def _with_neighbours(x: Array) -> tuple[Array, Array, Array]:
    """Each pixel of `*f h w` but those of the last row and column, its right and its lower neighbour."""
    return x[..., :-1, :-1], x[..., :-1, 1:], x[..., 1:, :-1]


def _sobel(images: Float[Array, "*f h w c"]) -> Float[Array, "*f h w"]:
    """Absolute Sobel derivatives (kernel over 8), along x plus along y, mean over channels; borders are repeated."""
    x = jnp.moveaxis(images, -1, 0)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1)] * 2, mode="edge")
    across, down = x[..., 2:] - x[..., :-2], x[..., 2:, :] - x[..., :-2, :]
    along_x = across[..., :-2, :] + 2.0 * across[..., 1:-1, :] + across[..., 2:, :]
    along_y = down[..., :-2] + 2.0 * down[..., 1:-1] + down[..., 2:]
    return jnp.mean(jnp.abs(along_x) + jnp.abs(along_y), axis=0) / 8.0
