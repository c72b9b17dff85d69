"""Sharding of a model's arrays, and compilation of its programs, for `Pipeline`."""

import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sv3d_jax.arrays import Array, Float, Params
from sv3d_jax.errors import InputError
from sv3d_jax.models.compute import Compute
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.models.fast.quantize import FORMATS
from sv3d_jax.precision import DTYPES, best_dtype, compute_in
from sv3d_jax.programs import Programs, in_background


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model computes. Raises InputError for values that are unknown or do not go together.

    dtype: "float32", "bfloat16", a dtype of these names such as jnp.bfloat16, or "auto": float32 on a CPU, unless it
    multiplies 16-bit factors faster and the UNet is wide enough to gain by it, and bfloat16 elsewhere. `precision.py`
    says what bfloat16 is on a CPU.
    reference: compute in the plain form that the published modules are compared with, and decode the input frame
    although the picture takes its place.
    low_memory: CPU offloading: each part's parameters are moved to the device only while it runs; and the branches of
    the guidance are computed one after the other (sequential classifier-free guidance). The orbit is the same up to
    rounding, in less memory and more time.
    quantize: "int8" or "fp8" rounds what goes into the UNet's linear layers to 8 bits, an approximation.
    mesh: the devices. The first axis is always the batch axis. Later axes split one orbit: "cfg" (size 2) over the
    guidance branches, "frames" over frames, e.g. ("data", "cfg", "frames"). With "frames" but no "cfg", guidance is
    sequential.
    """

    dtype: Any = "auto"
    reference: bool = False
    low_memory: bool = False
    quantize: str | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        if not isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", _dtype_name(self.dtype))
        if self.dtype not in ("auto", *DTYPES):
            raise InputError(f"dtype must be auto, {' or '.join(DTYPES)}, got {self.dtype!r}")
        if self.quantize not in (None, *FORMATS):
            raise InputError(
                f"quantize={self.quantize!r}: unknown", hint=f"one of {', '.join(FORMATS)}, or None"
            )
        if self.quantize and self.reference:
            raise InputError(
                "the reference form has no linear layers in 8 bits: leave out reference or quantize"
            )
        axes = dict(self.mesh.shape) if self.mesh is not None else {}
        if {"cfg", "frames"} & set(list(axes)[:1]) or axes.get("cfg", 2) not in (1, 2):
            raise InputError(
                f"mesh has the axes {axes}: the first divides pictures, an axis cfg has size 1 or 2",
                hint='for example jax.make_mesh((1, 2, 3), ("data", "cfg", "frames"))',
            )

    def resolve(self, model: ModelConfig) -> "ComputeConfig":
        """The same with the dtype that "auto" means for a model on the default device."""
        if self.dtype != "auto":
            return self
        return replace(self, dtype=best_dtype(model.unet.model_channels))

    @property
    def sequential_cfg(self) -> bool:
        """Whether the branches of the guidance are computed one after the other.

        The UNet flattens branches and frames into one axis, and a shard must not straddle two branches: division by
        frames needs an axis "cfg" of 2 as well, or branches in sequence.
        """
        sizes = self.mesh.shape if self.mesh is not None else {}
        return self.low_memory or (sizes.get("frames", 1) > 1 and sizes.get("cfg", 1) == 1)

    @property
    def itemsize(self) -> int:
        """Bytes of a value of the activations. This and what follows need a dtype that is not "auto"."""
        return jnp.dtype(self.compute().dtype).itemsize

    @property
    def param_itemsize(self) -> int:
        """Bytes of a parameter."""
        return jnp.dtype(DTYPES[self.dtype]).itemsize

    def compute(self) -> Compute:
        """The `Compute` options for the network layers."""
        fold = not (self.reference or self.sequential_cfg)
        return compute_in(self.dtype, reference=self.reference, fold=fold)


def _dtype_name(dtype: Any) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:  # no dtype at all
        return reprlib.repr(dtype)


@dataclass(frozen=True)
class Placement:
    """How arrays lie on the devices of a mesh, or on one device where there is none."""

    mesh: Mesh | None = None

    @property
    def num_batch_devices(self) -> int:
        """Devices that a batch is divided over."""
        return self.mesh.shape[self.mesh.axis_names[0]] if self.mesh is not None else 1

    def sharding(self, split: bool) -> NamedSharding | None:
        """Split over the devices by the first axis, or whole on each of them."""
        if self.mesh is None:
            return None
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]) if split else PartitionSpec())

    def everywhere(self, x: Array | np.ndarray | np.float32) -> Array:
        """An array that is whole on every device."""
        return jax.device_put(x, self.sharding(split=False))

    def over_batch(self, x: Array | np.ndarray) -> Array:
        """An array whose first axis, of pictures, is divided over the devices. Raises InputError if it cannot be."""
        if len(x) % self.num_batch_devices:
            raise InputError(f"{len(x)} pictures cannot be divided over {self.num_batch_devices} devices")
        return jax.device_put(x, self.sharding(split=True))

    def split_shape(self, x: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        """ShapeDtypeStructs get the output sharding; arrays pass unchanged."""
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding(split=x.ndim > 0))
        return x

    def output_shardings(self, function: Callable, inputs: Iterable[Any]) -> Any:
        """Shardings of a function's outputs: arrays are split by their first axis, scalars are replicated."""
        if self.mesh is None:
            return None
        return jax.tree.map(lambda x: self.sharding(split=x.ndim > 0), jax.eval_shape(function, *inputs))

    def branches_and_frames(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """The network's input, constrained to the mesh axes cfg, batch and frames."""
        if self.mesh is None:
            return x
        pictures, *axes = self.mesh.axis_names
        rows = ("cfg", pictures) if "cfg" in axes else (pictures,)
        if len(x) % math.prod(self.mesh.shape[axis] for axis in rows):
            rows = (pictures,)  # one branch, of a step without guidance
        spec = PartitionSpec(rows, "frames" if "frames" in axes else None)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


class Runner:
    """A model's parameters on their devices, and its programs, each compiled once for the shapes of its inputs."""

    def __init__(self, params: Params, config: ComputeConfig):
        self.config = config
        self.compute = self.config.compute()
        self.placement = Placement(config.mesh)
        self.params = {part: self._placed(part, tree) for part, tree in params.items()}
        self.programs = Programs(effort=1)

    def part(self, name: str) -> Params:
        """Parameters of a part on the device; with low_memory a fresh device copy, freed when the caller drops it."""
        params = self.params[name]
        return jax.tree.map(self.placement.everywhere, params) if self.config.low_memory else params

    def compile(self, function: Callable, *inputs: Any, split: bool = True) -> Callable:
        """The program of a function for these input shapes, compiled ahead of time once per key, or loaded from disk.

        What tells programs apart is said at `Programs.compile`. Parameters are inputs too: captured ones would be
        copied into the program. Outputs are sharded over the batch axis, or with split=False left to the compiler.
        """
        return self.programs.compile(
            function,
            *inputs,
            environment=(self.compute.program_key(), split),
            out_shardings=partial(self.placement.output_shardings, function, inputs) if split else None,
        )

    def run(self, function: Callable, *inputs: Any, split: bool = True) -> Any:
        """What the compiled function returns for these inputs."""
        return self.compile(function, *inputs, split=split)(*inputs)

    def compile_ahead(self, function: Callable, part: str, *inputs: jax.ShapeDtypeStruct) -> None:
        """Compile in the background what `run` will compute from a part and arrays of these shapes; see there.

        On one device, and with parameters that stay there.
        """
        if self.config.mesh is None and not self.config.low_memory:
            in_background(lambda: self.compile(function, self.part(part), *inputs))

    def _placed(self, part: str, tree: Params) -> Params:
        """Parameters where they are kept: arrays of rank > 1 in the config's dtype, biases and norm scales in float32.

        The VAE encoder stays in float32 altogether, as published.
        """
        matrix = jnp.float32 if part == "vae_encoder" else DTYPES[self.config.dtype]

        def place(leaf):
            dtype = matrix if leaf.ndim > 1 else jnp.float32
            if isinstance(leaf, jax.Array) and not self.config.low_memory:
                return self.placement.everywhere(leaf.astype(dtype))
            leaf = np.asarray(leaf, dtype)  # cast with numpy: a jax cast would compile once per shape
            return leaf if self.config.low_memory else self.placement.everywhere(leaf)

        return jax.tree.map(place, tree)
