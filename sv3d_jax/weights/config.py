"""Settings of `sv3d convert`."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sv3d_jax.config import POSITIONAL, CommonConfig
from sv3d_jax.models.families import Variant


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(CommonConfig):
    """Convert weights between a safetensors file with published names and an Orbax folder."""

    input: Annotated[Path, POSITIONAL]
    """a .safetensors file, a folder of weights or of shards, that of a training run of the UNet, or `mini`"""
    output: Annotated[Path, POSITIONAL]
    """what to write: a file if it ends in .safetensors, else a folder"""
    variant: Variant = "auto"
    """which model the input must be: u without cameras, p with cameras, auto takes either"""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """type of the written weights (default: each tensor keeps its own)"""
    ema: bool = False
    """take the averages (EMA) that a trainer stored beside the weights"""
    verify: bool = False
    """read the result back and compare every value"""

    def check_inputs(self) -> None:
        """Raise WeightsError for an input that is absent, or a file without weights."""
        from sv3d_jax.weights.source import open_weights

        if not self.input.is_dir() and self.input != Path("mini"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks are made when the weights are converted
                open_weights(self.input, ema=self.ema)
