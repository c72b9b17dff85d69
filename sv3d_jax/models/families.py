"""The families of image-to-orbit models, as one table: what differs between them besides the widths of their networks.

A new family is an entry of `FAMILIES`: conditioning, sampling, training, reading of weights and the command line all
read this table (`decoder` alone is informative). Nothing here imports jax.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class VectorField:
    """One number per frame in the UNet's vector conditioning, embedded as sinusoids of the given width.

    source: where the number comes from: the noise on the conditioning picture, the polar angle (90 degrees minus the
    elevation) or the azimuth relative to the input frame, both in radians, or `value`, the same for all frames.
    """

    source: Literal["cond_aug", "polar_rad", "azimuth_rad", "constant"]
    width: int = 256
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """What the models of one family share; defaults of sampling are those of the published model."""

    name: str
    vector: tuple[VectorField, ...]
    """vector conditioning: its fields in the order in which they are joined"""
    input_frame: Literal["first", "last"] = "last"
    """place of the input picture among the frames of an orbit"""
    num_frames: int = 21
    native_size: int = 576
    """side of the frames in pixels"""
    num_steps: int = 50
    guidance: str = "triangular"
    """curve of the guidance scale over the frames, from cfg_min to cfg_max: a name in `diffusion.guidance.CURVES`"""
    cfg_min: float = 1.0
    cfg_max: float = 2.5
    cond_aug: float = 1e-5
    """deviation of the noise on the conditioning picture in [-1, 1]"""
    decoder: Literal["frame", "video"] = "frame"
    """whether the published decoder decodes per frame or over time (informative: ours decodes per frame)"""
    known_by_width: bool = False
    """recognise files without our metadata as this family by `vector_width`"""

    @property
    def vector_width(self) -> int:
        """Width of the vector conditioning."""
        return sum(field.width for field in self.vector)

    @property
    def has_cameras(self) -> bool:
        """Whether the model is conditioned on azimuth and elevation; otherwise it is treated as static-orbit only."""
        return {"polar_rad", "azimuth_rad"} <= {field.source for field in self.vector}


_NOISE = VectorField("cond_aug")
_CAMERA = (_NOISE, VectorField("polar_rad", 512), VectorField("azimuth_rad", 512))

FAMILIES: dict[str, ModelFamily] = {
    "u": ModelFamily(name="sv3d_u", vector=(_NOISE,), known_by_width=True),
    "p": ModelFamily(name="sv3d_p", vector=_CAMERA, known_by_width=True),
    # Cameras as in sv3d_p, trained without its first stage on static orbits (SV3D, section 3.1). Its weights were not
    # published, so a file with a vector of this width is taken for sv3d_p.
    "c": ModelFamily(name="sv3d_c", vector=_CAMERA),
    # V3D (arXiv 2403.06738) keeps the vector of Stable Video Diffusion with constants in it, and so its width.
    "v3d": ModelFamily(
        name="v3d",
        vector=(VectorField("constant", value=1.0), VectorField("constant", value=300.0), _NOISE),
        input_frame="first",
        num_frames=18,
        native_size=512,
        num_steps=25,
        guidance="linear",
        cfg_min=3.5,
        cfg_max=3.5,
        cond_aug=0.02,
        decoder="video",
    ),
}
"""Families by variant ("p"), which `--variant` takes and a model's description stores; the model's name is "sv3d_p"."""


def family_of_width(vector_width: int) -> str | None:
    """The variant of a published file with a vector of this width; None if no family is recognised by it."""
    found = (
        variant
        for variant, family in FAMILIES.items()
        if family.known_by_width and family.vector_width == vector_width
    )
    return next(found, None)


if TYPE_CHECKING:
    Variant = Model = str
else:
    Variant = Literal[("auto", *FAMILIES)]
    """What `--variant` takes."""
    Model = Literal[tuple(family.name for family in FAMILIES.values())]
    """Names of the published models."""
