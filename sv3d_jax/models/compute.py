"""How a network computes: the precision, and what the program is compiled for."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Compute:
    """Precision and form of a network. Activations are in `dtype`; norms and softmax are float32 whatever it is.

    `reference` asks for the plain form of every layer, to which the fast forms are compared (`models/fast/choose.py`
    decides between them; both share parameters and agree up to rounding). With `remat`, the gradient keeps the inputs
    of the UNet's blocks and computes their inside again. With `fold`, kernels are joined and scaled before they are
    used, which leaves fewer products: for callers that run this part once for many steps, see `hoist.py`.
    Products of at least `work_in_16_bit` multiplications have factors rounded to bfloat16; their sums and all
    activations stay in `dtype`, float32: for CPUs with instructions for such products.
    """

    dtype: Any = jnp.float32
    reference: bool = False
    remat: bool = False
    fold: bool = False
    quantize: str | None = None  # 8-bit format of the linear layers that allow it: int8 or fp8
    work_in_16_bit: int | None = None
    platform: str | None = None  # cpu, gpu or tpu, where it is not the device in use

    def program_key(self) -> Any:
        """What tells programs apart: the fields, the platform, and the kernel that was found to work there."""
        from sv3d_jax.models.fast.attention import kernel_name

        return *(getattr(self, field.name) for field in fields(self)), self.target, kernel_name(self)

    @property
    def target(self) -> str:
        """Platform that is compiled for."""
        return self.platform or jax.default_backend()

    @property
    def on_one_cpu(self) -> bool:
        """Whether one CPU runs the whole program.

        Only there may a layer work through its input in parts that fit a cache: an array that is divided over
        several devices would have to be gathered for each part.
        """
        return self.target == "cpu" and jax.device_count() == 1

    def multiplies_in_16_bit(self, work: int) -> bool:
        """Whether a product of so many multiplications has 16-bit factors: in the plain form none has."""
        return self.work_in_16_bit is not None and work >= self.work_in_16_bit and not self.reference

    @property
    def precision(self) -> str | None:
        """Precision of products, as jax takes it: that of the device, the highest one in the plain form."""
        return "highest" if self.reference else None
