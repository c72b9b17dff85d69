"""Materials of a glTF document: base colour, textures, alpha and emission, for the renderer (glTF 2.0, 3.9)."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sv3d_jax.colors import linear_from_srgb, srgb_from_linear
from sv3d_jax.errors import InputError
from sv3d_jax.io.gltf_data import Document, as_object, extensions_of, known, number, numbers, whole
from sv3d_jax.io.surfaces import Material, to_uint8

_WRAP = {10497: "repeat", 33071: "clamp", 33648: "mirror"}
_NEAREST = 9728


class TexturedMaterial(NamedTuple):
    """A glTF material, with the set of texture coordinates that its texture uses and their transform."""

    material: Material
    set: int  # n of TEXCOORD_n
    transform: np.ndarray  # (3, 3), applied to (u, v, 1), v pointing down


class MaterialReader:
    """Converts one glTF material."""

    def __init__(self, document: Document, material: dict[str, Any], where: str, num_pictures: int):
        self.document, self.material, self.where = document, material, where
        self.num_pictures = num_pictures
        self.extensions = extensions_of(material, where)

    def read(self) -> TexturedMaterial:
        """The material as the renderer uses it."""
        factor, texture = self._base()
        textured = self._textured(Material(color=tuple(np.clip(factor, 0.0, 1.0))), texture)
        textured = self._with_emission(textured)
        alpha = self.material.get("alphaMode", "OPAQUE")
        if alpha in ("MASK", "BLEND"):
            cutoff = number(self.material, "alphaCutoff", self.where, 0.5)
            one_sided = self.material.get("doubleSided") is not True
            changes = {"alpha": alpha.lower(), "cutoff": cutoff, "one_sided": one_sided}
            textured = textured._replace(material=replace(textured.material, **changes))
        for name in ("KHR_materials_transmission", "KHR_materials_diffuse_transmission"):
            share = as_object(self.extensions.get(name, {}), self.where)
            if any(share.get(key) for key in ("transmissionFactor", "diffuseTransmissionFactor")):
                self.document.source.remark(f"{name}: transmission is not rendered, the surface is opaque")
        return textured

    def _base(self) -> tuple[np.ndarray, Any]:
        """Base colour factor and textureInfo; with KHR_materials_pbrSpecularGlossiness, the diffuse ones."""
        name = "KHR_materials_pbrSpecularGlossiness"
        if name in self.extensions:
            values, where = as_object(self.extensions[name], self.where), f"{self.where}.{name}"
            return numbers(values, "diffuseFactor", where, [1.0] * 4), values.get("diffuseTexture")
        values = as_object(self.material.get("pbrMetallicRoughness", {}), self.where)
        return numbers(values, "baseColorFactor", self.where, [1.0] * 4), values.get("baseColorTexture")

    def _with_emission(self, textured: TexturedMaterial) -> TexturedMaterial:
        """The material with emission as its colour where the base colour is black; emission elsewhere is ignored."""
        factor = np.clip(numbers(self.material, "emissiveFactor", self.where, [0.0] * 3), 0.0, None)
        strength = as_object(self.extensions.get("KHR_materials_emissive_strength", {}), self.where)
        factor = np.clip(factor * number(strength, "emissiveStrength", self.where, 1.0), 0.0, 1.0)
        if not factor.any():
            return textured
        base = textured.material
        emission = self._textured(
            Material(color=(*factor, base.color[3])), self.material.get("emissiveTexture")
        )
        glow = emission.material.picture
        if glow is not None and not glow[..., :3].any():
            return textured
        is_black = not any(base.color[:3]) or (base.picture is not None and not base.picture[..., :3].any())
        if is_black and (base.picture is None or base.picture.shape[2] == 3):
            return emission
        merged = _merged_emission(textured, emission)
        if merged is None:
            self.document.source.remark(f"{self.where}: emission is ignored, the base colour is used")
        return merged or textured

    def _textured(self, material: Material, info: Any) -> TexturedMaterial:
        """The material with the texture of a textureInfo; without one if `info` is None."""
        if info is None:
            return TexturedMaterial(material, 0, np.eye(3))
        info = as_object(info, f"{self.where}: its texture")
        texture = self.document.item("textures", info.get("index"), self.where)
        where = f"textures[{info.get('index')}]"
        transform = as_object(extensions_of(info, where).get("KHR_texture_transform", {}), where)
        coordinates = whole(transform, "texCoord", where, whole(info, "texCoord", where, 0))
        sampler = {}
        if "sampler" in texture:
            sampler = self.document.item("samplers", texture["sampler"], where)
        wrap = tuple(known(_WRAP, sampler.get(name)) or "repeat" for name in ("wrapS", "wrapT"))
        picture = self.document.picture(_picture_index(texture, where), where, self.num_pictures)
        nearest = sampler.get("magFilter") == _NEAREST
        material = replace(material, picture=picture, wrap=wrap, nearest=nearest)
        return TexturedMaterial(material, coordinates, _texture_transform(transform, where))


def _merged_emission(base: TexturedMaterial, emission: TexturedMaterial) -> TexturedMaterial | None:
    """The base with emission in its black texels; None if the two textures do not match texel by texel."""
    ours, theirs = base.material.picture, emission.material.picture
    if ours is None or theirs is None or ours.shape[:2] != theirs.shape[:2]:
        return None
    alike = base.set == emission.set and np.array_equal(base.transform, emission.transform)
    black = (ours[..., :3] == 0).all(axis=2)
    if (
        not alike
        or base.material.wrap != emission.material.wrap
        or base.material.color[:3] != (1.0, 1.0, 1.0)
    ):
        return None
    linear = linear_from_srgb(theirs[black][:, :3].astype(np.float32) / 255) * emission.material.color[:3]
    if not linear.any():
        return None
    picture = ours.copy()
    picture[black, :3] = to_uint8(srgb_from_linear(linear))
    return base._replace(material=replace(base.material, picture=picture))


def _picture_index(texture: dict[str, Any], where: str) -> Any:
    """Index of a texture's image: WebP or AVIF of an extension if there is one, else the ordinary one."""
    extensions = extensions_of(texture, where)
    for name in ("EXT_texture_webp", "EXT_texture_avif"):
        if name in extensions:
            return as_object(extensions[name], where).get("source")
    if "source" not in texture:
        names = {"KHR_texture_basisu": "KTX2"}
        found = (
            ", ".join(f"{names[n]} ({n})" if n in names else n for n in map(str, extensions)) or "no picture"
        )
        raise InputError(f"{where} holds {found}, which is not read", hint="export with PNG, JPEG or WebP")
    return texture["source"]


def _texture_transform(extension: dict[str, Any], where: str) -> np.ndarray:
    """KHR_texture_transform as a matrix (3 3): offset times rotation (counter-clockwise in the image) times scale."""
    offset, scale = (
        numbers(extension, "offset", where, [0.0, 0.0]),
        numbers(extension, "scale", where, [1.0, 1.0]),
    )
    angle = number(extension, "rotation", where, 0.0)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    matrix[:2, :2] = np.array([[cos, sin], [-sin, cos]]) * scale
    matrix[:2, 2] = offset
    return matrix


def count_pictures(document: Document) -> int:
    """Number of textures used for base colour, diffuse colour or emission, at least 1."""
    used = set()
    for index in range(document.count("materials")):
        material = document.item("materials", index)
        plain = material.get("pbrMetallicRoughness")
        extensions = material.get("extensions")
        glossy = (
            extensions.get("KHR_materials_pbrSpecularGlossiness") if isinstance(extensions, dict) else None
        )
        for owner, name in (
            (plain, "baseColorTexture"),
            (glossy, "diffuseTexture"),
            (material, "emissiveTexture"),
        ):
            info = owner.get(name) if isinstance(owner, dict) else None
            used.add(str(info.get("index")) if isinstance(info, dict) else None)
    return max(1, len(used - {None}))
