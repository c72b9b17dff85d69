"""From a picture to an orbit: condition on the picture, sample latents, decode frames."""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.cameras.orbit import CameraPath, custom_orbit
from sv3d_jax.conditioning import FrameValues, condition_on, frame_values
from sv3d_jax.config import one_config
from sv3d_jax.cutout import Remover
from sv3d_jax.describe import describe
from sv3d_jax.devices import memory_in_use
from sv3d_jax.diffusion.config import SamplingConfig, renamed
from sv3d_jax.diffusion.denoiser import Conditioning, Denoise
from sv3d_jax.diffusion.guidance import guidance_scale
from sv3d_jax.diffusion.sampler import Correct, Correction, Sampler
from sv3d_jax.diffusion.schedule import model_sigmas
from sv3d_jax.errors import CameraError
from sv3d_jax.inputs import PictureBatch
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.vae import decode, encode_moments
from sv3d_jax.orbit import Callback, Orbit, StepInfo, check_output_type, checked_latents, make_orbits
from sv3d_jax.plan import (
    Plan,
    check_decode_chunk,
    checked_size,
    default_decode_chunk,
    memory_advice,
    plan_orbit,
)
from sv3d_jax.preprocess import PreparedImage
from sv3d_jax.programs import loading_ahead
from sv3d_jax.progress import NullProgress, Progress, TimedProgress, shown
from sv3d_jax.runner import ComputeConfig, Runner
from sv3d_jax.sampling import SamplingInputs, SamplingSteps, UNetDenoiser, sampling_loop
from sv3d_jax.weights.hub import MINI_NOTE, load_weights

STAGES = ("preprocess", "compile", "sample", "decode")


class Pipeline:
    """An image-to-orbit model ready to run.

    Compiled programs are kept per shape, so a second picture starts at once. How it computes is a `ComputeConfig`.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        compute: ComputeConfig | None = None,
        weights: dict[str, str] | None = None,
        **options: Any,
    ):
        """`options` are fields of `ComputeConfig`, in place of one."""
        self.config, self.weights = config, weights or {}  # provenance of the weights: source, path, sha256
        self.remover = Remover()
        self.runner = Runner(params, one_config(ComputeConfig, compute, options).resolve(config))
        how = self.runner.config
        self.compute = self.runner.compute
        self.unet = UNetDenoiser(
            config.unet,
            replace(self.compute, quantize=how.quantize),
            how.sequential_cfg,
            None if how.mesh is None else self.runner.placement.branches_and_frames,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        variant: str = "auto",
        compute: ComputeConfig | None = None,
        **options: Any,
    ) -> "Pipeline":
        """A model from the shipped "mini", an Orbax folder, a .safetensors file or a hub id.

        `variant="u"` or `"p"` raises WeightsError if the weights are of another model. `options` are fields of
        `ComputeConfig`, in place of one.
        """
        compute = one_config(ComputeConfig, compute, options)
        params, config, weights = load_weights(source, variant)
        return cls(params, config, compute, weights)

    def computing(self, compute: ComputeConfig) -> "Pipeline":
        """The same parameters on the same devices, with another `ComputeConfig`; weights are not read again.

        Parameters already cast to bfloat16 are not restored to float32.
        """
        compute = replace(compute, mesh=self.runner.config.mesh)
        return Pipeline(self.params, self.config, compute, self.weights)

    @property
    def params(self) -> dict[str, Params]:
        """Parameters by part, where they are kept."""
        return self.runner.params

    def __call__(
        self,
        image: Any,
        sampling: SamplingConfig | None = None,
        *,
        elevations_deg: float | Sequence[float] = 10.0,
        azimuths_deg: Sequence[float] | None = None,
        cameras: CameraPath | None = None,
        num_frames: int | None = None,
        correct: Correct | Correction | None = None,
        seed: int | Sequence[int] = 0,
        latents: Array | None = None,
        size: int | None = None,
        background: str = "auto",
        frame_ratio: float | None = None,
        mask: Any = None,
        box: Sequence[int] | Sequence[Sequence[int]] | None = None,
        decode_chunk: int | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
        progress: Progress | bool | None = None,
        **options: Any,
    ) -> Orbit | list[Orbit]:
        """Orbit around the object in a picture, or one each for a list of pictures. None means the model's default.

        image: a path, a PIL image, uint8 (h, w, 3 or 4), a `Picture` or a `PreparedImage`.
        sampling, options: a `SamplingConfig`, and fields of it that are replaced.
        elevations_deg: absolute; one value, or one per frame. azimuths_deg: relative to the input view, which is the
        model's last frame (V3D: the first). cameras: replaces both, and num_frames.
        correct: a function (denoised latents, noise level, index of the step) -> denoised latents, or a `Correction`.
        seed: one for all pictures, or one each. size: side of a frame in pixels. decode_chunk: frames decoded at once.
        latents: the noise to begin with, of unit variance: (f, h, w, c), or for several pictures (b, f, h, w, c).
        background, frame_ratio: how the object is cut out and framed, as the flags of `sv3d orbit`.
        mask: white where the object is, as a path, a PIL image, a `Mask`, uint8 or bool (h, w).
        box: x0, y0, x1, y1 in pixels of the upright picture. For a list of pictures, one mask or box per picture.
        output_type: "pil", "np", "jax" or "latent". callback: gets a `StepInfo` after every step; may raise `Cancelled`
        or return latents with which to go on. progress: a `Progress`, or whether to show the stages on stderr; None
        does in terminals and notebooks. With a callback or progress, steps run in a host loop, not in one scan.
        """
        sampling = one_config(SamplingConfig, sampling, renamed(options)).resolve(self.config)
        pictures = PictureBatch.of(image, seed, mask, box)
        check_output_type(output_type)
        size = checked_size(self.config, size)
        cameras = self._cameras(cameras, azimuths_deg, elevations_deg, num_frames)
        shape = {"batch": len(pictures.images), "num_frames": len(cameras), "size": size}
        plan = self.plan(**shape, decode_chunk=decode_chunk, sampling=sampling)
        with shown(progress, STAGES) as told:
            stages = TimedProgress(told)
            self._note(plan, size, stages, is_new=told is not progress)
            prepared, pixels = self._prepare(pictures, size, background, frame_ratio, stages)
            chunk = None if output_type == "latent" else plan.decode_chunk
            ahead = self._programs_ahead(sampling, pixels.shape, len(cameras), chunk)
            with ahead, memory_advice(plan, memory_in_use()):
                after_step = _reporter(callback, stages, plan.num_steps, isinstance(told, NullProgress))
                start = self._start(pictures.seeds, len(cameras), size, latents)
                sampled = self._sample(pixels, start, cameras, sampling, correct, after_step, stages)
                frames = sampled if chunk is None else self._frames(sampled, pixels, cameras, chunk, stages)
            seconds = stages.finish()
        orbits = make_orbits(frames, sampled, prepared, pictures.seeds, cameras, seconds, output_type)
        return orbits if isinstance(image, list) else orbits[0]

    def save(self, path: str | Path, dtype: str | None = None) -> None:
        """Write the model as one file if `path` ends in .safetensors, else as a folder; `from_pretrained` reads both.

        Tensors have the published names, and the types in which they are kept here, or `dtype`, as "float32". Raises
        OutputError where the file cannot be written.
        """
        from sv3d_jax.weights.convert import convert
        from sv3d_jax.weights.memory import TreeSource

        convert(TreeSource(self.params, self.config), path, dtype)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        frames, size = self.config.num_frames, self.config.native_size
        device = jax.default_backend() if (mesh := self.runner.config.mesh) is None else dict(mesh.shape)
        return (
            f"Pipeline({self.config.name}: {frames} frames of {size}x{size}, {count / 1e6:.4g} million parameters,"
            f" {self.runner.config.dtype}, {device})"
        )

    def plan(
        self,
        batch: int = 1,
        *,
        num_frames: int | None = None,
        size: int | None = None,
        decode_chunk: int | None = None,
        sampling: SamplingConfig = SamplingConfig(),
    ) -> Plan:
        """Memory and arithmetic of sampling a batch with this model in its dtype."""
        how = self.runner.config
        return plan_orbit(
            self.config,
            num_frames=num_frames,
            size=size,
            batch=batch,
            dtype_bytes=how.itemsize,
            param_bytes=how.param_itemsize,
            decode_chunk=decode_chunk,
            low_memory=how.low_memory,
            quantized=how.quantize is not None,
            sampling=sampling,
        )

    def sigmas(self, num_steps: int) -> np.ndarray:
        """Noise levels of the model's sampler."""
        return model_sigmas(self.config, num_steps)

    def noise(self, seeds: Sequence[int], num_frames: int, size: int) -> tuple[Array, Array, Array]:
        """Unit noise of the latents `b f h w c` and of the pictures `b h w 3`, and keys `b` for churn.

        Each depends on its own seed and shape alone, not on its place in a batch or on the number of devices.
        """
        side, channels = size // self.config.vae.downsampling, self.config.vae.latent_channels
        draw = partial(_draw_noise, (num_frames, side, side, channels), (size, size, 3))
        return self.runner.run(draw, self.runner.placement.over_batch(np.asarray(seeds, np.uint32)))

    def condition(
        self, pixels: Float[Array, "b h w 3"], noise: Float[Array, "b h w 3"], cameras: CameraPath
    ) -> Conditioning:
        """The conditioning, from pictures in [-1, 1], unit noise to be added to them, and the cameras."""
        placement = self.runner.placement
        params = {part: self.runner.part(part) for part in ("image_tower", "vae_encoder")}
        values = jax.tree.map(placement.everywhere, frame_values(self.config, cameras))
        inputs = (params, *map(placement.over_batch, (pixels, noise)), values)
        return self.runner.run(partial(_condition, self.config, self.compute), *inputs)

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
        sampling: SamplingConfig = SamplingConfig(),
        keys: Array | None = None,
        after_step: Callable[[int, float, Array], Array | None] | None = None,
        correct: Correct | Correction | None = None,
    ) -> Callable[[], Float[Array, "b f h w c"]]:
        """The sampler, compiled: call it for the latents.

        One scan or, with `after_step` or a correction on the host, a loop over one step that calls
        after_step(steps done, noise level reached, latents), and goes on with the latents that it returns, if any.
        """
        kinds = sampling.step_kinds(sigmas)
        steps = SamplingSteps(self.unet, Sampler.from_config(sampling, len(kinds), correct), tuple(kinds))
        levels = self.runner.placement.everywhere(np.asarray(sigmas, np.float32))
        inputs = SamplingInputs(self.runner.part("unet"), condition, self.runner.placement.everywhere(scale))
        if after_step is None and not steps.corrects_on_host:
            whole = self.runner.compile(steps.sample, inputs, noise, levels, keys)
            return lambda: whole(inputs, noise, levels, keys)
        return sampling_loop(self.runner, steps, inputs, noise, levels, keys, after_step)

    def decode(
        self,
        latents: Float[Array, "b f h w c"],
        chunk: int | None = None,
        advance: Callable[[int], None] = lambda frames: None,
    ) -> np.ndarray:
        """Pixels (b, f, h, w, 3), about [-1, 1], of latents; `chunk` frames at a time on the device."""
        config, placement = self.config, self.runner.placement
        check_decode_chunk(chunk)
        b, f, side = latents.shape[:3]
        size, chunk = side * config.vae.downsampling, self._decode_chunk(b * f, side, chunk)
        flat = np.asarray(latents).reshape(b * f, *latents.shape[2:])
        padded = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % chunk, axis=0)])
        pixels = np.empty((len(padded), size, size, 3), np.float32)
        params, run = self.runner.part("vae_decoder"), partial(_decode, config, self.compute)
        for start in range(0, len(flat), chunk):
            part = slice(start, start + chunk)
            pixels[part] = self.runner.run(run, params, placement.over_batch(padded[part]))
            advance(min(chunk, len(flat) - start))
        return pixels[: len(flat)].reshape(b, f, size, size, 3)

    def _decode_chunk(self, frames: int, side: int, chunk: int | None) -> int:
        """Frames decoded at a time, a multiple of the devices."""
        size, devices = side * self.config.vae.downsampling, self.runner.placement.num_batch_devices
        chunk = chunk or default_decode_chunk(self.config, size, self.runner.config.itemsize, frames)
        return -(-min(chunk, frames) // devices) * devices

    @contextmanager
    def _programs_ahead(
        self, sampling: SamplingConfig, pictures: tuple[int, ...], frames: int, chunk: int | None
    ) -> Iterator[None]:
        """Inside it, the programs of an orbit are loaded, and the decoder's is compiled, in the background."""
        course = describe((self.config, self.compute, sampling, pictures, frames))
        with loading_ahead(("Pipeline", course)):
            if chunk is not None:
                side = pictures[1] // self.config.vae.downsampling
                count = pictures[0] * (frames if self.compute.reference else frames - 1)
                shape = self._decode_chunk(count, side, chunk), side, side, self.config.vae.latent_channels
                decoder = partial(_decode, self.config, self.compute)
                self.runner.compile_ahead(decoder, "vae_decoder", jax.ShapeDtypeStruct(shape, np.float32))
            yield

    def _cameras(
        self,
        cameras: CameraPath | None,
        azimuths_deg: Sequence[float] | None,
        elevations_deg: float | Sequence[float],
        num_frames: int | None,
    ) -> CameraPath:
        """The cameras that were given, with the input view where the model has it."""
        place = self.config.family.input_frame
        if cameras is None:
            num_frames = self.config.num_frames if num_frames is None else num_frames
            return custom_orbit(azimuths_deg, elevations_deg, num_frames, place)
        if not isinstance(cameras, CameraPath):
            raise CameraError(
                f"cameras must be a CameraPath, got {reprlib.repr(cameras)}",
                hint="sv3d_jax.io.cameras_file.read_camera_path reads one from a cameras.json",
            )
        if cameras.input_frame != (0 if place == "first" else len(cameras) - 1):
            raise CameraError(
                f"{self.config.name} has its input view {place}, these cameras have it at frame"
                f" {cameras.input_frame} of {len(cameras)}",
                hint=f'cameras.with_input("{place}") begins the orbit there',
            )
        return cameras

    def _note(self, plan: Plan, size: int, progress: Progress, is_new: bool) -> None:
        """Say what a user should know before sampling; of mini, only where the caller has no progress of his own."""
        if plan.is_full_size:
            progress.note(str(plan))
        elif is_new and self.weights.get("source") == "mini":
            progress.note(MINI_NOTE.format(size=size))

    def _prepare(
        self,
        pictures: PictureBatch,
        size: int,
        background: str,
        frame_ratio: float | None,
        progress: Progress,
    ) -> tuple[list[PreparedImage], Float[np.ndarray, "b h w 3"]]:
        """The pictures cut out and framed, and as the model takes them, in [-1, 1]."""
        progress.stage("preprocess", total=len(pictures.images))
        how = (size, background, frame_ratio, self.remover, progress.advance)
        prepared = pictures.prepare(self.config, *how)
        return prepared, np.stack([x.pixels for x in prepared]).astype(np.float32) / 255 * 2 - 1

    def _start(
        self, seeds: list[int], num_frames: int, size: int, latents: Array | None
    ) -> tuple[Array, Array, Array]:
        """As `noise`, with the latents that were given. Raises InputError for those of another shape."""
        noise, pixel_noise, keys = self.noise(seeds, num_frames, size)
        if latents is None:
            return noise, pixel_noise, keys
        given = checked_latents(latents, noise.shape, "latents")
        return self.runner.placement.over_batch(given), pixel_noise, keys

    def _sample(
        self,
        pixels: np.ndarray,
        start: tuple[Array, Array, Array],
        cameras: CameraPath,
        sampling: SamplingConfig,
        correct: Correct | Correction | None,
        after_step: Callable[[int, float, Array], Array | None] | None,
        progress: Progress,
    ) -> Float[Array, "b f h w c"]:
        """Condition on the pictures, and sample; `start` is what `noise` draws."""
        noise, pixel_noise, keys = start
        curve = (sampling.guidance, len(cameras), sampling.cfg_min, sampling.cfg_max)
        scale = self.runner.run(partial(guidance_scale, *curve), split=False)
        progress.stage("compile")
        condition = self.condition(pixels, pixel_noise, cameras)
        sigmas = self.sigmas(sampling.num_steps)
        run = self.sampler(noise, condition, scale, sigmas, sampling, keys, after_step, correct)
        progress.stage("sample", total=sampling.num_steps)
        return jax.block_until_ready(run())

    def _frames(
        self, latents: Array, pixels: np.ndarray, cameras: CameraPath, chunk: int, progress: Progress
    ) -> np.ndarray:
        """Float32 frames in [0, 1].

        The input frame is replaced by the picture itself; its latent is decoded only in reference mode.
        """
        wanted, input_frame = np.asarray(latents), cameras.input_frame
        if not self.compute.reference:
            wanted = np.delete(wanted, input_frame, axis=1)
        progress.stage("decode", total=wanted.shape[0] * wanted.shape[1])
        frames = self.decode(wanted, chunk, progress.advance)
        if self.compute.reference:
            frames = np.delete(frames, input_frame, axis=1)
        frames = np.insert(frames, input_frame, pixels, axis=1)
        return np.clip((frames + 1) / 2, 0, 1)


def _draw_noise(
    latents: tuple[int, ...], picture: tuple[int, ...], seeds: Array
) -> tuple[Array, Array, Array]:
    """Unit noise of these shapes for each seed, and a key."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(seeds)
    normal = jax.vmap(jax.random.normal, (0, None))
    return normal(keys[:, 0], latents), normal(keys[:, 1], picture), keys[:, 2]


def _condition(
    config: ModelConfig, compute: Compute, params: Params, pixels: Array, noise: Array, values: FrameValues
) -> Conditioning:
    return condition_on(params, config, pixels, noise, values, compute)


def _decode(config: ModelConfig, compute: Compute, params: Params, latents: Array) -> Array:
    return decode(params, config.vae, latents / np.asarray(config.latent_factor, np.float32), compute)


def _reporter(
    callback: Callback | None, progress: Progress, num_steps: int, is_silent: bool
) -> Callable[[int, float, Array], Array | None] | None:
    """Tells the progress and the callback of every step; returns the latents that the callback did.

    None where nobody listens: then no step has to end before the next begins.
    """
    if callback is None and is_silent:
        return None

    def after_step(step, sigma, latents):
        progress.advance()
        changed: Any = None if callback is None else callback(StepInfo(step, num_steps, sigma, latents))
        if not np.shape(changed):  # nothing, or what a progress bar returns
            return None
        return checked_latents(changed, latents.shape, "the callback's latents")

    return after_step
