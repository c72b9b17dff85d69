"""Widths of a model's networks and defaults of its sampler: plain values, importable without JAX.

The defaults are those of the published SV3D. A model stores its own beside its weights, as `model.toml` in a
folder and as `__metadata__` in a safetensors file.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sv3d_jax.cameras.config import Frames
from sv3d_jax.config import Settings, build, checked, within
from sv3d_jax.errors import InputError, WeightsError
from sv3d_jax.io.documents import MAX_TOML_BYTES, parse_json, parse_toml
from sv3d_jax.io.reading import read_file, reading
from sv3d_jax.models.families import FAMILIES, ModelFamily

METADATA_KEY = "sv3d_jax.model"
_HINT = "fetch or write it again; configs/model/mini.toml is one that can be read"

# The image encoder was first called a tower. Names that files hold stay as they are, so that older ones can be read:
# the table `tower` of a model, the part `image_tower` of a parameter tree, and the objective `tower` of a training run.
_STORED_NAMES = {"image_encoder": "tower"}

Width = Annotated[int, within(1, 2**16)]
Count = Annotated[int, within(1, 256)]
Side = Annotated[int, within(1, 4096)]
Positive = Annotated[float, within(1e-9, 1e9)]
GuidanceScale = Annotated[float, within(0, 100)]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Settings):
    """Widths of the spatio-temporal UNet. The middle block always has a transformer."""

    PREFIX: ClassVar[str] = "unet."

    model_channels: Width = 320
    channel_mult: tuple[Count, ...] = (1, 2, 4, 4)
    num_res_blocks: Count = 2
    attention_levels: tuple[Annotated[int, within(0, 256)], ...] = (0, 1, 2)
    head_width: Width = 64
    context_width: Width = 1024
    vector_width: Width = 1280  # conditioning noise and camera; 256 in sv3d_u, which is told no camera
    in_channels: Width = 8  # those of the noisy latents, then those of the conditioning latents
    out_channels: Width = 4
    ff_mult: Count = 4
    norm_groups: Width = 32

    def __post_init__(self):
        super().__post_init__()
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(
                f"channel_mult needs one positive value per level of the UNet, got {self.channel_mult}"
            )
        if not set(self.attention_levels) <= set(range(len(self.channel_mult))):
            raise ValueError(
                f"attention_levels {self.attention_levels} outside the {len(self.channel_mult)} levels"
            )

    @property
    def embedding_width(self) -> int:
        """Width of the time and vector embedding that enters every residual block."""
        return 4 * self.model_channels


@dataclass(frozen=True, kw_only=True)
class VAEConfig(Settings):
    """Widths of the autoencoder; the decoder has one residual block per level more than the encoder."""

    PREFIX: ClassVar[str] = "vae."

    channels: Width = 128
    channel_mult: tuple[Count, ...] = (1, 2, 4, 4)
    num_res_blocks: Count = 2
    latent_channels: Width = 4
    norm_groups: Width = 32
    post_quant_conv: bool = False  # the decoder begins with a 1x1 convolution, as Stable Diffusion's own does

    def __post_init__(self):
        super().__post_init__()
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(
                f"channel_mult needs one positive value per level of the autoencoder, got {self.channel_mult}"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(Settings):
    """The OpenCLIP vision transformer that turns the picture into one context token."""

    PREFIX: ClassVar[str] = "tower."

    image_size: Side = 224
    patch: Side = 14
    width: Width = 1280
    layers: Count = 32
    head_width: Width = 80
    output_width: Width = 1024
    mlp_ratio: Count = 4

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """One image-to-orbit model: networks, latent scale, noise range and default guidance."""

    PREFIX: ClassVar[str] = ""

    name: str = "sv3d_p"
    variant: str = "p"  # of `families.FAMILIES`
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    latent_factor: tuple[Positive, ...] = (0.18215,)  # one for all latent channels, or one each
    native_size: Side = 576
    num_frames: Frames = 21
    sigma_min: Positive = 0.002
    sigma_max: Positive = 700.0
    rho: Annotated[float, within(0.1, 1000)] = 7.0
    num_steps: Annotated[int, within(1, 1000)] = 50
    cfg_min: GuidanceScale = 1.0
    cfg_max: GuidanceScale = 2.5
    cond_aug: Annotated[float, within(0, 1e3)] = 1e-5
    training: dict[str, Any] = field(default_factory=dict, compare=False)  # record of how it was trained

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in FAMILIES:
            known = ", ".join(f'"{variant}"' for variant in FAMILIES)
            raise ValueError(f"variant is one of {known}, got {self.variant!r}")
        if len(self.latent_factor) not in (1, self.vae.latent_channels):
            raise ValueError(
                f"latent_factor needs 1 or {self.vae.latent_channels} values, got {self.latent_factor}"
            )
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")

    def program_key(self) -> Any:
        """What a compiled program depends on: the values, and the family that `variant` names."""
        return json.dumps(self.to_dict(), sort_keys=True), self.family

    @property
    def family(self) -> ModelFamily:
        """What this model shares with others of its variant."""
        return FAMILIES[self.variant]

    @classmethod
    def published(cls, variant: str) -> "ModelConfig":
        """The published model of a variant."""
        family = FAMILIES[variant]
        own = {
            name: getattr(family, name)
            for name in ("name", "native_size", "num_frames", "num_steps", "cfg_min", "cfg_max", "cond_aug")
        }
        return cls(variant=variant, unet=UNetConfig(vector_width=family.vector_width), **own)

    @classmethod
    def named(cls, name: str) -> "ModelConfig":
        """The published model of that name, as "sv3d_p"."""
        [variant] = (variant for variant, family in FAMILIES.items() if family.name == name)
        return cls.published(variant)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; tuples become lists. `post_quant_conv` is left out where it is off, as published."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        values = {_STORED_NAMES.get(name, name): value for name, value in values.items()}
        if not self.vae.post_quant_conv:
            del values["vae"]["post_quant_conv"]
        return values

    @classmethod
    def from_dict(cls, values: Any, where: str = "model") -> "ModelConfig":
        """Inverse of `to_dict`; missing fields take the defaults, sv3d_p's.

        Raises WeightsError, which begins with `where`, for invalid values.
        """
        checked_values = checked(cls, values, where, WeightsError, _STORED_NAMES)
        try:
            return build(cls, checked_values)
        except (ValueError, InputError) as error:
            raise WeightsError(f"{where}: {error}") from None

    def to_toml(self) -> str:
        """The text of `model.toml`."""
        return _toml_table(self.to_dict())

    @classmethod
    def from_toml(cls, text: bytes | str, where: str = "the description of the model") -> "ModelConfig":
        """Inverse of `to_toml`; messages of WeightsErrors begin with `where`."""
        return cls.from_dict(parse_toml(text, where, _HINT, WeightsError), where)

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """The model that a `model.toml` describes. Raises WeightsError, which names the file."""
        with reading(path, "is no model's description", _HINT, WeightsError):
            text = read_file(path, MAX_TOML_BYTES, WeightsError)
        return cls.from_toml(text, str(path))

    def to_metadata(self) -> dict[str, str]:
        """String pairs for the `__metadata__` of a safetensors file."""
        return {METADATA_KEY: json.dumps(self.to_dict(), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "ModelConfig | None":
        """The model that a safetensors file of ours describes, None if it says nothing."""
        if METADATA_KEY not in metadata:
            return None
        where = "the model description in the file's metadata"
        return cls.from_dict(parse_json(metadata[METADATA_KEY], where, error=WeightsError), where)


def _toml_table(values: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """TOML text: plain values first, then the nested tables, so that each key belongs to the right header."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(map(_toml_key, path))}]"] if path else []
    lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items() if value is not None]
    tables = [
        _toml_table(value, (*path, key)) for key, value in values.items() if isinstance(value, dict) and value
    ]
    return "\n".join([*lines, *(f"\n{table}".rstrip("\n") for table in tables)]) + "\n"


def _toml_key(key: str) -> str:
    bare = key and key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    # TOML writes integers, booleans and strings as JSON does, except for the delete character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
