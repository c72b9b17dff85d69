"""From a picture to an orbit: condition on the picture, sample latents, decode frames."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.cameras.orbit import CameraPath, custom_orbit
from sv3d_jax.conditioning import condition_on, frame_values, frame_vector
from sv3d_jax.cutout import Remover
from sv3d_jax.devices import memory_in_use
from sv3d_jax.diffusion.denoiser import Conditioning, Denoise
from sv3d_jax.diffusion.guidance import SCALES
from sv3d_jax.diffusion.sampler import Method, run_programs, sample_with_callback
from sv3d_jax.diffusion.schedule import karras_sigmas
from sv3d_jax.errors import InputError
from sv3d_jax.io.images import Mask, Picture, read_mask, read_picture
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.fast.attention import kernel_name
from sv3d_jax.models.fast.quantize import FORMATS
from sv3d_jax.models.vae import decode, encode_moments
from sv3d_jax.plan import Plan, check_size, default_decode_chunk, memory_advice, plan_orbit
from sv3d_jax.preprocess import PreparedImage, prepare_for
from sv3d_jax.programs import load_or_compile
from sv3d_jax.progress import NullProgress, Progress
from sv3d_jax.sampling import UNetSampler

OUTPUT_TYPES = ("pil", "np", "jax", "latent")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class StepInfo:
    """What a callback is told after every step; the latents stay on the device until they are looked at."""

    step: int  # steps done
    total: int
    sigma: float  # noise level reached
    latents: Float[Array, "b f h w c"]


@dataclass(frozen=True)
class Orbit:
    """Views of the object in one picture; the last is the picture itself."""

    frames: (
        Any  # a list of PIL images, float32 (f, h, w, 3) in [0, 1], or with output_type "latent" the latents
    )
    cameras: CameraPath
    latents: Float[Array, "f h w c"]
    seed: int
    timings: dict[str, float]  # seconds by stage, shared by the pictures of a batch
    picture: np.ndarray  # uint8 (h, w, 3): the picture as the model saw it
    notes: list[str] = field(default_factory=list)  # what was done to the picture on the way

    def frames_uint8(self) -> np.ndarray:
        """Frames (f, h, w, 3) in 8 bits, cut off and not rounded, as published; the last is exactly `picture`."""
        if isinstance(self.frames, list):
            return np.stack([np.asarray(frame) for frame in self.frames])
        if np.shape(self.frames)[1:] != self.picture.shape:
            raise InputError(
                "this orbit was left in latents", hint='ask for output_type "pil", "np" or "jax"'
            )
        return _to_uint8(np.asarray(self.frames), self.picture)

    def save(self, directory: str | Path, video: str = "mp4") -> list[Path]:
        """Write an orbit folder: frames, cameras.json, contact.png, input.png and orbit.<video>.

        video is mp4, gif, webp, or png for none. Returns the files written.
        """
        from sv3d_jax.io.images import write_png
        from sv3d_jax.io.orbits import CAMERAS_FILE, frame_file, write_orbit
        from sv3d_jax.io.video import available_format, contact_sheet, frame_labels, write_video

        directory, frames = Path(directory), self.frames_uint8()
        write_orbit(directory, frames, self.cameras)
        labels = frame_labels(self.cameras.azimuths_deg.tolist(), self.cameras.elevations_deg.tolist())
        write_png(directory / "contact.png", contact_sheet(frames, labels))
        write_png(directory / "input.png", self.picture)
        files = [*map(frame_file, range(len(frames))), CAMERAS_FILE, "contact.png", "input.png"]
        if video != "png":
            files.append(f"orbit.{available_format(video)}")
            write_video(directory / files[-1], frames)
        return [directory / file for file in files]


class Pipeline:
    """An image-to-orbit model ready to run.

    Compiled programs are kept per shape, so a second picture starts at once. `reference` computes in the plain form
    that the published modules are compared with, and decodes the last frame although the picture takes its place.
    With `low_memory` parameters wait on the host until their part is run, and the branches of the guidance are computed
    one after the other: the same orbit up to rounding, in less memory and more time. `quantize` "int8" or "fp8" rounds
    what goes into the UNet's linear layers to 8 bits, an approximation.

    The first axis of a `mesh` divides the pictures of a batch. One orbit is divided by an axis named "cfg" of size 2,
    between the branches of the guidance, and by one named "frames"; with that alone the branches follow each other.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        dtype: str = "auto",
        mesh: Mesh | None = None,
        reference: bool = False,
        weights: dict[str, str] | None = None,
        low_memory: bool = False,
        quantize: str | None = None,
    ):
        if quantize not in (None, *FORMATS):
            raise InputError(f"quantize={quantize!r}: unknown", hint=f"one of {', '.join(FORMATS)}, or None")
        if quantize and reference:
            raise InputError(
                "the reference form has no linear layers in 8 bits: leave out reference or quantize"
            )
        self.config, self.low_memory = config, low_memory
        self.weights = weights or {}  # where they came from: source, path, sha256
        self.dtype = resolve_dtype(dtype)
        sizes = mesh.shape if mesh is not None else {}
        # The network lays branches and frames along one axis, of which a device can have whole branches only.
        in_turn = low_memory or (sizes.get("frames", 1) > 1 and sizes.get("cfg", 1) == 1)
        self.compute = Compute(DTYPES[self.dtype], reference, fold=not (reference or in_turn))
        self.mesh = mesh
        self.remover = Remover()
        self.quantize = quantize
        self.unet = UNetSampler(config.unet, replace(self.compute, quantize=quantize), in_turn, self._spread)
        self.params = {part: self._placed(part, tree) for part, tree in params.items()}
        self.programs: dict[Any, Callable] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        variant: str = "auto",
        dtype: str = "auto",
        mesh: Mesh | None = None,
        reference: bool = False,
        low_memory: bool = False,
        quantize: str | None = None,
    ) -> "Pipeline":
        """A model from the shipped "mini", an Orbax folder, a .safetensors file or a hub id.

        variant "u" or "p" insists on that model. dtype "auto" is float32 on a CPU, bfloat16 elsewhere. With a mesh,
        the pictures of a batch are divided over its first axis.
        """
        from sv3d_jax.weights.hub import load_weights

        params, config, weights = load_weights(source, variant)
        return cls(params, config, dtype, mesh, reference, weights, low_memory, quantize)

    def __call__(
        self,
        image: Any,
        *,
        elevations_deg: float | Sequence[float] = 10.0,
        azimuths_deg: Sequence[float] | None = None,
        cameras: CameraPath | None = None,
        num_frames: int | None = None,
        num_steps: int | None = None,
        cfg: tuple[float, float] | None = None,
        guidance: str = "triangular",
        method: Method = Method(),
        seed: int | Sequence[int] = 23,
        size: int | None = None,
        background: str = "auto",
        frame_ratio: float | None = None,
        mask: Any = None,
        box: Sequence[int] | Sequence[Sequence[int]] | None = None,
        decode_chunk: int | None = None,
        output_type: str = "pil",
        callback: Callable[[StepInfo], None] | None = None,
        progress: Progress | None = None,
    ) -> Orbit | list[Orbit]:
        """Orbit around the object in a picture, or one each for a list of pictures.

        image: a path, a PIL image, uint8 (h, w, 3 or 4), or a `Picture` or `PreparedImage`. Elevations are absolute,
        azimuths relative to the picture's view, which is the last frame; `cameras` takes the place of both. What is
        None is the model's own default. A seed per picture, or one for all. cfg: lowest and highest guidance scale.
        mask: what the object is, as a path, a PIL image, a `Mask`, or uint8 or bool (h, w), white where it is; box:
        where it is, x0, y0, x1, y1 in pixels of the upright picture. Of a list of pictures, a list of either.
        `method`: the solver, churn, where there is guidance, and cached levels. After every step callback gets a
        `StepInfo`; it may raise `Cancelled`.
        """
        images = image if isinstance(image, list) else [image]
        seeds = [int(seed)] * len(images) if np.ndim(seed) == 0 else [int(value) for value in seed]
        size = size or self.config.native_size
        num_steps = num_steps or self.config.num_steps
        _check(len(images), seeds, num_steps, guidance, output_type)
        masks = _one_each("masks", mask, len(images), isinstance(image, list))
        boxes = _one_each("boxes", box, len(images), isinstance(image, list))
        check_size(self.config, size)
        if cameras is None:
            cameras = custom_orbit(azimuths_deg, elevations_deg, num_frames or self.config.num_frames)
        plan = self.plan(len(images), len(cameras), num_steps, size, decode_chunk)
        stages = _TimedProgress(progress or NullProgress())
        if plan.is_full_size:
            stages.note(str(plan))

        stages.stage("preprocess", total=len(images))
        prepared = []
        for one, its_mask, its_box in zip(images, masks, boxes, strict=True):
            how = (background, frame_ratio, _mask(its_mask), its_box, self.remover)
            prepared.append(_prepared(self.config, one, size, how))
            stages.advance()
        pixels = np.stack([picture.pixels for picture in prepared]).astype(np.float32) / 255 * 2 - 1
        noise, pixel_noise, keys = self.noise(seeds, len(cameras), size)
        scaling = (guidance, len(cameras), *(cfg or (self.config.cfg_min, self.config.cfg_max)))
        scale = self._compiled(partial(SCALES[guidance], *scaling[1:]), ("guidance", *scaling), split=False)()

        with memory_advice(plan, memory_in_use()):
            stages.stage("compile")
            condition = self.condition(pixels, pixel_noise, cameras)
            after_step = (
                None if callback is None and progress is None else _reporter(callback, stages, num_steps)
            )
            sigmas = self.sigmas(num_steps)
            run = self.sampler(noise, condition, scale, sigmas, method, keys, after_step)
            stages.stage("sample", total=num_steps)
            latents = jax.block_until_ready(run())
            frames = latents
            if output_type != "latent":
                frames = self._frames(latents, pixels, plan.decode_chunk, stages)
        timings = stages.finish()

        orbits = [
            Orbit(
                frames=_as_output(frames[i], prepared[i].pixels, output_type),
                cameras=cameras,
                latents=latents[i],
                seed=seeds[i],
                timings=timings,
                picture=prepared[i].pixels,
                notes=prepared[i].notes,
            )
            for i in range(len(images))
        ]
        return orbits if isinstance(image, list) else orbits[0]

    def plan(
        self,
        batch: int = 1,
        num_frames: int | None = None,
        num_steps: int | None = None,
        size: int | None = None,
        decode_chunk: int | None = None,
    ) -> Plan:
        """Memory and arithmetic of sampling a batch with this model in its dtype."""
        return plan_orbit(
            self.config,
            num_frames,
            num_steps,
            size,
            batch,
            self._itemsize,
            decode_chunk,
            self.low_memory,
            quantized=self.quantize is not None,
        )

    def sigmas(self, num_steps: int) -> np.ndarray:
        """Noise levels of the model's sampler."""
        config = self.config
        return karras_sigmas(num_steps, config.sigma_min, config.sigma_max, config.rho)

    def noise(self, seeds: Sequence[int], num_frames: int, size: int) -> tuple[Array, Array, Array]:
        """Unit noise of the latents `b f h w c` and of the pictures `b h w 3`, and keys `b` for churn.

        Each depends on its own seed and shape alone, not on its place in a batch or on the number of devices.
        """
        side, channels = size // self.config.vae.downsampling, self.config.vae.latent_channels

        def draw(seeds):
            keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(seeds)
            normal = jax.vmap(jax.random.normal, (0, None))
            latents = normal(keys[:, 0], (num_frames, side, side, channels))
            return latents, normal(keys[:, 1], (size, size, 3)), keys[:, 2]

        given = self._over_batch(np.asarray(seeds, np.uint32))
        return self._compiled(draw, ("noise", num_frames, size), given)(given)

    def condition(
        self, pixels: Float[Array, "b h w 3"], noise: Float[Array, "b h w 3"], cameras: CameraPath
    ) -> Conditioning:
        """What the denoiser is told: pictures in [-1, 1], unit noise to be added to them, and the cameras."""

        def run(params, pixels, noise, values):
            vector = frame_vector(*values)
            vector = jnp.broadcast_to(vector, (len(pixels), *vector.shape))
            return condition_on(params, self.config, pixels, noise, vector, self.compute)

        params = {part: self._ready(part) for part in ("image_tower", "vae_encoder")}
        values = jax.tree.map(self._everywhere, frame_values(self.config, cameras))
        inputs = (params, *map(self._over_batch, (pixels, noise)), values)
        return self._compiled(run, "condition", *inputs)(*inputs)

    def denoiser(self, params: Params, condition: Conditioning, scale: Float[Array, "f"]) -> Denoise:
        """The denoiser with guidance; `params` of the UNet are handed in, so that no program holds a copy of them."""
        return self.unet.denoiser(params, condition, scale)

    def encode(self, params: Params, pixels: Float[Array, "n h w 3"]) -> Float[Array, "n h8 w8 c"]:
        """The model's latents of pictures in [-1, 1]; `params` of the encoder, which computes in float32."""
        mean, _ = encode_moments(params, self.config.vae, pixels, Compute(reference=self.compute.reference))
        return mean * np.asarray(self.config.latent_factor, np.float32)

    def sampler(
        self,
        noise: Float[Array, "b f h w c"],
        condition: Conditioning,
        scale: Float[Array, "f"],
        sigmas: Float[Array, "steps_plus_1"],
        method: Method = Method(),
        keys: Array | None = None,
        after_step: Callable[[int, float, Array], None] | None = None,
    ) -> Callable[[], Float[Array, "b f h w c"]]:
        """The sampler, compiled: call it for the latents.

        One scan or, with `after_step`, a loop over one step that calls after_step(steps done, sigma, latents).
        """
        kinds, levels = method.kinds(sigmas), self._everywhere(np.asarray(sigmas, np.float32))
        fixed = (self._ready("unet"), condition, self._everywhere(scale))
        state = self._compiled(method.initial_state, ("begin", method), noise, levels)(noise, levels)

        @cache  # traced only where something is compiled
        def program(kind):
            return self.unet.program(kind, method, len(kinds), fixed, state, keys)

        if after_step is None:

            def all_steps(*inputs):
                programs = {kind: program(kind) for kind in dict.fromkeys(kinds)}
                return run_programs(programs, kinds, method, *inputs)

            whole = self._compiled(all_steps, ("sample", method, tuple(kinds)), fixed, noise, levels, keys)
            return lambda: whole(fixed, noise, levels, keys)

        def one_step(kind):
            def prepare(*inputs):
                return program(kind).prepare(*inputs)

            def step(*inputs):
                return program(kind).step(*inputs)

            prepared = self._compiled(prepare, ("prepare", method, kind), fixed, levels, split=False)
            inputs = (fixed, levels, prepared(fixed, levels))
            entering = jax.tree.map(self._split_shape, self.unet.entering(kind, state))
            return partial(
                self._compiled(step, ("step", method, kind), *inputs, np.int32(0), entering, keys), *inputs
            )

        steps = {kind: one_step(kind) for kind in dict.fromkeys(kinds)}

        def run_step(index, state, keys):
            kind = kinds[index]
            return steps[kind](index, kind.entering(state), keys)

        return lambda: sample_with_callback(run_step, state, sigmas, after_step, keys)

    def decode(
        self,
        latents: Float[Array, "b f h w c"],
        chunk: int | None = None,
        advance: Callable[[int], None] = lambda frames: None,
    ) -> np.ndarray:
        """Pixels (b, f, h, w, 3), about [-1, 1], of latents; `chunk` frames at a time on the device."""
        config, factor = self.config, np.asarray(self.config.latent_factor, np.float32)
        b, f, side = latents.shape[:3]
        size = side * config.vae.downsampling
        chunk = chunk or default_decode_chunk(config, size, self._itemsize, b * f)
        chunk = -(-min(chunk, b * f) // self._devices) * self._devices

        def run(params, latents):
            return decode(params, config.vae, latents / factor, self.compute)

        flat = np.asarray(latents).reshape(b * f, *latents.shape[2:])
        padded = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % chunk, axis=0)])
        pixels = np.empty((len(padded), size, size, 3), np.float32)
        params = self._ready("vae_decoder")
        for start in range(0, len(flat), chunk):
            part = slice(start, start + chunk)
            inputs = (params, self._over_batch(padded[part]))
            pixels[part] = self._compiled(run, "decode", *inputs)(*inputs)
            advance(min(chunk, len(flat) - start))
        return pixels[: len(flat)].reshape(b, f, size, size, 3)

    def _frames(self, latents: Array, pixels: Array, chunk: int, progress: Progress) -> np.ndarray:
        """Float32 frames in [0, 1]. The last is the picture, so it is decoded in reference mode only."""
        wanted = latents if self.compute.reference else latents[:, :-1]
        progress.stage("decode", total=wanted.shape[0] * wanted.shape[1])
        decoded = self.decode(wanted, chunk, progress.advance)[:, : latents.shape[1] - 1]
        frames = np.concatenate([decoded, np.asarray(pixels)[:, None]], axis=1)
        return np.clip((frames + 1) / 2, 0, 1)

    def _compiled(self, function: Callable, name: Any, *inputs: Any, split: bool = True) -> Callable:
        """The program of a function for inputs of these shapes; compiled apart from its first run, once, or loaded
        from an earlier start.

        Parameters are inputs too: captured ones would be copied into the program. What it returns is split over the
        devices by its first axis, or as the compiler likes.
        """
        leaves, structure = jax.tree.flatten(inputs)
        key = (name, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self.programs:
            jitted = jax.jit(function, out_shardings=self._sharding(split=True) if split else None)
            compile_now = lambda: jitted.lower(*inputs).compile()  # noqa: E731
            if self.mesh is None:
                how = (self.unet.compute, self.compute.target, kernel_name(self.compute), self.unet.in_turn)
                self.programs[key] = load_or_compile((self.config.to_dict(), *how, key), compile_now, leaves)
            else:
                self.programs[key] = compile_now()
        return self.programs[key]

    def _placed(self, part: str, tree: Params) -> Params:
        """Parameters where they are kept, matrices in the dtype of computing, vectors in float32.

        The encoder stays in float32 altogether, as published.
        """
        matrix = jnp.float32 if part == "vae_encoder" else self.compute.dtype

        def place(leaf):
            dtype = matrix if leaf.ndim > 1 else jnp.float32
            # On the host, or a conversion is compiled for each shape.
            leaf = leaf.astype(dtype) if isinstance(leaf, jax.Array) else np.asarray(leaf, dtype)
            return np.asarray(leaf) if self.low_memory else self._everywhere(leaf)

        return jax.tree.map(place, tree)

    def _ready(self, part: str) -> Params:
        """Parameters on the device, for as long as the caller holds them."""
        return jax.tree.map(self._everywhere, self.params[part]) if self.low_memory else self.params[part]

    def _everywhere(self, x: Array | np.ndarray | np.float32) -> Array:
        return jax.device_put(x, self._sharding(split=False))

    def _over_batch(self, x: Array | np.ndarray) -> Array:
        if len(x) % self._devices:
            raise InputError(f"{len(x)} pictures cannot be divided over {self._devices} devices")
        return jax.device_put(x, self._sharding(split=True))

    def _spread(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Branches, pictures and frames of the network's input, in this order, over the axes that are for them."""
        if self.mesh is None:
            return x
        pictures, *axes = self.mesh.axis_names
        rows = ("cfg", pictures) if "cfg" in axes else (pictures,)
        if len(x) % math.prod(self.mesh.shape[axis] for axis in rows):
            rows = (pictures,)  # one branch, of a step without guidance
        spec = PartitionSpec(rows, "frames" if "frames" in axes else None)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def _sharding(self, split: bool) -> NamedSharding | None:
        if self.mesh is None:
            return None
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]) if split else PartitionSpec())

    def _split_shape(self, x: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        """Shapes lie on the devices as what a program returns; arrays lie where they are."""
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding(split=True))
        return x

    @property
    def _devices(self) -> int:
        """Devices that a batch is divided over."""
        return self.mesh.shape[self.mesh.axis_names[0]] if self.mesh is not None else 1

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self.compute.dtype).itemsize


def resolve_dtype(dtype: str) -> str:
    """ "auto" becomes float32 on a CPU, where bfloat16 is no faster, and bfloat16 elsewhere."""
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise InputError(f"dtype must be auto, {' or '.join(DTYPES)}, got {dtype!r}")
    return dtype


class _TimedProgress(Progress):
    """Hands everything on and keeps the seconds of every stage."""

    def __init__(self, inner: Progress):
        self._inner, self._seconds, self._name = inner, {}, None

    def stage(self, name: str, total: int | None = None) -> None:
        self.finish()
        self._name, self._start = name, time.monotonic()
        self._inner.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        self._inner.advance(steps)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def finish(self) -> dict[str, float]:
        if self._name is not None:
            self._seconds[self._name] = round(time.monotonic() - self._start, 3)
        return self._seconds


def _reporter(
    callback: Callable[[StepInfo], None] | None, progress: Progress, num_steps: int
) -> Callable[[int, float, Array], None]:
    """Tells the progress and the callback of every step."""

    def after_step(step, sigma, latents):
        progress.advance()
        if callback is not None:
            callback(StepInfo(step, num_steps, sigma, latents))

    return after_step


def _check(pictures: int, seeds: list[int], num_steps: int, guidance: str, output_type: str) -> None:
    if not pictures:
        raise InputError("no picture was given")
    if len(seeds) != pictures:
        raise InputError(f"got {len(seeds)} seeds for {pictures} pictures")
    if bad := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise InputError(f"a seed lies between 0 and {2**32 - 1}, got {bad[0]}")
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1, got {num_steps}")
    if guidance not in SCALES:
        raise InputError(f"guidance must be one of {', '.join(SCALES)}, got {guidance!r}")
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def _one_each(what: str, given: Any, pictures: int, several: bool) -> list:
    """What was given with one picture or with a list of them, as a list."""
    if given is None:
        return [None] * pictures
    values = list(given) if several else [given]
    if len(values) != pictures:
        raise InputError(f"got {len(values)} {what} for {pictures} pictures, one each is needed")
    return values


def _prepared(config: ModelConfig, image: Any, size: int, how: tuple) -> PreparedImage:
    """The picture as the model sees it; `how`: what `prepare_for` takes after the size."""
    if isinstance(image, PreparedImage):
        if image.pixels.shape != (size, size, 3):
            raise InputError(f"the prepared picture has shape {image.pixels.shape}, size is {size}")
        return image
    return prepare_for(config, _picture(image), size, *how)


def _mask(mask: Any) -> Mask | None:
    if mask is None or isinstance(mask, Mask):
        return mask
    if isinstance(mask, (str, os.PathLike)):
        return read_mask(mask)
    return Mask(np.asarray(mask.convert("L") if hasattr(mask, "convert") else mask))


def _picture(image: Any) -> Picture:
    if isinstance(image, Picture):
        return image
    if isinstance(image, (str, os.PathLike)):
        return read_picture(image)
    if hasattr(image, "has_transparency_data"):  # a PIL image of any mode
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise InputError(f"a picture as an array is uint8 (h, w, 3 or 4), got {pixels.dtype} {pixels.shape}")
    alpha = pixels[..., 3] if pixels.shape[2] == 4 and (pixels[..., 3] < 255).any() else None
    return Picture(pixels[..., :3], alpha)


def _as_output(frames: Array, picture: np.ndarray, output_type: str) -> Any:
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(frame) for frame in _to_uint8(frames, picture)]
    return jnp.asarray(frames) if output_type == "jax" else frames


def _to_uint8(frames: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """255 times the frames, cut off as published; the last frame keeps the bytes of the picture."""
    cut = (frames * np.float32(255)).astype(np.uint8)
    cut[-1] = picture
    return cut
