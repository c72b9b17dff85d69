"""Material libraries of OBJ files (MTL) and their textures."""

import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from sv3d_jax.colors import linear_from_srgb
from sv3d_jax.errors import InputError
from sv3d_jax.io.names import outside_reason
from sv3d_jax.io.surfaces import Material, Source, outside_error
from sv3d_jax.io.textures import decode_picture

MAX_LIBRARY_BYTES = 1 << 26
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")
# Options of texture statements and their number of values; those with three may have fewer.
_OPTIONS = {
    "-blendu": 1,
    "-blendv": 1,
    "-cc": 1,
    "-clamp": 1,
    "-bm": 1,
    "-boost": 1,
    "-texres": 1,
    "-imfchan": 1,
    "-type": 1,
    "-colorspace": 1,
    "-mm": 2,
    "-o": 3,
    "-s": 3,
    "-t": 3,
}


class MtlMaterial(NamedTuple):
    """A material of an MTL file; its texture is sampled at `uv * scale + offset`."""

    material: Material = Material()
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    has_color: bool = False  # whether the MTL file gives a colour or a texture


DEFAULT_MATERIAL = MtlMaterial()  # for faces without a material, and for names that no MTL file defines


class _Map(NamedTuple):
    """A texture statement of a material."""

    name: str
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    clamps: bool = False


@dataclass
class _Record:
    """The statements of one material."""

    name: str
    library: str
    colors: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # kd, ke
    numbers: dict[str, float] = field(default_factory=dict)  # d, tr
    maps: dict[str, _Map] = field(default_factory=dict)  # map_kd, map_d, map_ke


class Libraries:
    """The materials of all MTL files that an OBJ file names. Textures are read when a material is asked for.

    Colours are taken as sRGB, as exporters write them. With a texture (map_Kd), Kd is ignored, as in Blender and most
    viewers, because exporters leave it at a default that is often black. The specification and three.js multiply the
    two, so a Kd other than white is reported as a remark. Alpha is d, or else 1 - Tr, times map_d, and is blended;
    without these the alpha channel of map_Kd is ignored. Where Kd is black or absent, the emission (Ke, map_Ke) is used
    as colour. illum, Ka, Ks, bump maps and others are ignored.
    """

    def __init__(self, source: Source):
        self.source = source
        self._records: dict[str, _Record] = {}
        self._folded: dict[str, _Record] = {}  # by case-folded name
        self._materials: dict[str, MtlMaterial] = {}
        self._folders: dict[str, list[str]] = {}  # files in each folder
        self._pictures: dict[str, np.ndarray] = {}
        self._read: set[str] = set()
        self._absent: list[str] = []
        self._cut: dict[str, np.ndarray] = {}  # textures combined with an alpha map, by the names of both
        self._not_multiplied: list[str] = []

    def read(self, name: str) -> bool:
        """Read the materials of an MTL file; False if there is no such file."""
        located = self._located(name, "")
        if located is None:
            return False
        if located not in self._read:
            self._read.add(located)
            data = self.source.beside(located)
            if len(data) > MAX_LIBRARY_BYTES:
                raise InputError(f"{shown(name)} has {len(data)} bytes, more than {MAX_LIBRARY_BYTES}")
            self._parse(data, located)
        return True

    def knows(self, name: str) -> bool:
        """Whether a material of that name was read; upper and lower case count as equal."""
        return self._record(name) is not None

    def material(self, name: str) -> MtlMaterial:
        """The material of that name; the default one, white, if no MTL file defines it."""
        record = self._record(name)
        if record is None:
            self._absent.append(shown(name))
            return DEFAULT_MATERIAL
        if record.name not in self._materials:
            self._materials[record.name] = self._made(record)
        return self._materials[record.name]

    def remark(self) -> None:
        """Record what was ignored in all materials asked for, as remarks of the source."""
        for names, what in (
            (self._absent, "materials that no MTL file defines are drawn white"),
            (self._not_multiplied, "Kd is ignored where there is a texture"),
        ):
            if names:
                others = f" and {len(names) - 3} others" if len(names) > 3 else ""
                self.source.remark(f"{what}: {', '.join(names[:3])}{others}")

    def _record(self, name: str) -> _Record | None:
        return self._records.get(name) or self._folded.get(name.casefold())

    def _parse(self, data: bytes, library: str) -> None:
        record = None
        data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\\\r\n", b"  \n").replace(b"\\\n", b"  \n")
        for number, line in enumerate(data.splitlines(), 1):
            words = decoded(line).strip().split(None, 1)
            if not words or words[0].startswith("#"):
                continue
            keyword, rest = words[0].lower(), words[1] if len(words) > 1 else ""
            where = f"{shown(library)} is damaged: line {number}"
            if keyword == "newmtl":
                name = unquoted(rest)
                record = self._records[name] = self._folded[name.casefold()] = _Record(name, library)
            elif record is None:
                continue
            elif keyword in ("kd", "ke"):
                if color := self._color(rest, where, record):
                    record.colors[keyword] = color
            elif keyword in ("d", "tr"):
                values = [word for word in rest.split() if word.lower() != "-halo"]
                record.numbers[keyword] = _number(values[0] if values else "", where)
            elif keyword in ("map_kd", "map_d", "map_ke"):
                picture = _map(rest, where)
                if picture.name:
                    record.maps[keyword] = picture
                if "-mm" in rest.lower().split():
                    self.source.remark(f"{shown(record.name)}: base and gain of a texture (-mm) are ignored")

    def _color(self, text: str, where: str, record: _Record) -> tuple[float, float, float] | None:
        words = text.split("#")[0].split()
        if words and words[0].lower() in ("spectral", "xyz"):
            self.source.remark(f"{shown(record.name)}: a colour as {words[0].lower()} is not read")
            return None
        values = [_number(word, where) for word in words[:3]] or [_number("", where)]
        return tuple(np.clip((values * 3)[:3] if len(values) == 1 else (values + [0.0, 0.0])[:3], 0.0, 1.0))

    def _made(self, record: _Record) -> MtlMaterial:
        kd, ke = record.colors.get("kd"), record.colors.get("ke")
        base, picture = self._picture(record, "map_kd")
        emits = bool(ke and any(ke)) or "map_ke" in record.maps
        if base is None and emits and not (kd and any(kd)):
            base, picture = self._picture(record, "map_ke")
            kd = ke if ke and any(ke) else kd
        elif ke and any(ke):
            self.source.remark(f"{shown(record.name)}: emission (Ke) is ignored")
        has_color = kd is not None or picture is not None
        color = kd or (1.0, 1.0, 1.0)
        if picture is not None:
            if color != (1.0, 1.0, 1.0):
                self._not_multiplied.append(shown(record.name))
            color = (1.0, 1.0, 1.0)
        alpha = self._alpha(record)
        is_blended = alpha < 1 or "map_d" in record.maps
        mask_map, mask = self._picture(record, "map_d")
        if mask is not None:
            names = [self._located(m.name, posixpath.dirname(record.library)) for m in (base, mask_map) if m]
            if (pair := str(names)) not in self._cut:
                self._cut[pair] = _masked(picture, mask)
            picture = self._cut[pair]
            if base is not None and mask_map[1:] != base[1:]:
                self.source.remark(f"{shown(record.name)}: map_d is placed as map_Kd is")
        placed = base or mask_map or _Map("")
        material = Material(
            color=(*linear_from_srgb(np.array(color, np.float64)).tolist(), alpha),
            picture=picture,
            wrap=("clamp", "clamp") if placed.clamps else ("repeat", "repeat"),
            alpha="blend" if is_blended else "opaque",
        )
        return MtlMaterial(material, placed.scale, placed.offset, has_color)

    def _alpha(self, record: _Record) -> float:
        alpha = record.numbers.get("d")
        if alpha is None:
            alpha = 1.0 - record.numbers.get("tr", 0.0)
            if alpha <= 0.0:  # many exporters write Tr 1 for opaque materials
                self.source.remark(
                    f"{shown(record.name)}: Tr {record.numbers['tr']:g} without d is taken as opaque"
                )
                alpha = 1.0
        return float(np.clip(alpha, 0.0, 1.0))

    def _picture(self, record: _Record, kind: str) -> tuple[_Map | None, np.ndarray | None]:
        """A texture statement of a material and its texture; None for both where the file is missing."""
        line = record.maps.get(kind)
        if line is None:
            return None, None
        located = self._located(line.name, posixpath.dirname(record.library))
        if located is None:
            self.source.remark(f"{shown(line.name)} is missing: {shown(record.name)} is drawn without it")
            return None, None
        if located not in self._pictures:
            among = len({line.name for record in self._records.values() for line in record.maps.values()})
            data = self.source.beside(located)
            self._pictures[located] = decode_picture(data, shown(located), self.source, among)
        return line, self._pictures[located]

    def _located(self, name: str, folder: str) -> str | None:
        """The path of a file that an MTL file in `folder` names, relative to the mesh file; None if it is missing.

        Case may differ. As in Blender, the name is also tried relative to the mesh, with spaces for underscores, and
        without its folders. Raises InputError for names that lead out of the mesh's folder.
        """
        given, name = name, name.replace("\\", "/")
        if outside_reason(name, climb=len(PurePosixPath(folder).parts)):
            raise outside_error(given)
        plain = posixpath.normpath(posixpath.join(folder, name))
        others = [
            posixpath.normpath(name),
            plain.replace("_", " "),
            posixpath.join(folder, posixpath.basename(name)),
        ]
        for candidate in (plain, *others):
            if candidate.split("/")[0] != ".." and (located := self._present(candidate)) is not None:
                return located
        return None

    def _present(self, name: str) -> str | None:
        """The spelling on disk of a file's path, ignoring case; None if there is no such file."""
        folder = os.fspath(self.source.path.parent)
        if os.path.isfile(os.path.join(folder, name)):
            return name
        top, spelled = os.path.realpath(folder), []
        for part in name.split("/"):
            here = os.path.join(folder, *spelled)
            if os.path.commonpath([top, os.path.realpath(here)]) != top:
                return None
            if here not in self._folders:
                try:
                    self._folders[here] = sorted(os.listdir(here))
                except (OSError, ValueError):
                    self._folders[here] = []
            entries = self._folders[here]
            match = [part] if part in entries else [e for e in entries if e.casefold() == part.casefold()]
            if not match:
                return None
            spelled.append(min(match))
        return "/".join(spelled) if os.path.isfile(os.path.join(folder, *spelled)) else None


def decoded(text: bytes) -> str:
    """Text that is UTF-8 or, if it is not valid UTF-8, Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def unquoted(name: str) -> str:
    """A name without the quotes and the spaces around it."""
    name = name.strip()
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] == '"' else name


def shown(name: str) -> str:
    """A name for messages: shortened, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:200])


def _number(word: str, where: str) -> float:
    if not NUMBER.match(word):
        raise InputError(f"{where} has {shown(word)[:40] or 'nothing'} where a number is needed")
    return float(word)


def _map(text: str, where: str) -> _Map:
    """Parse a texture statement: options, then a file name, which may contain spaces."""
    placed: dict[str, list[float]] = {"-s": [1.0, 1.0], "-o": [0.0, 0.0], "-t": []}
    clamps, rest = False, text.strip()
    while (words := rest.split(None, 1)) and len(words) == 2 and words[0].lower() in _OPTIONS:
        option, rest = words[0].lower(), words[1]
        values: list[str] = []
        while len(values) < _OPTIONS[option] and len(words := rest.split(None, 1)) == 2:
            if option in placed and not NUMBER.match(words[0]):
                break
            values.append(words[0])
            rest = words[1]
        if option == "-clamp":
            clamps = values == ["on"]
        elif option in placed:
            numbers = [_number(value, where) for value in values[:2]]
            placed[option] = [*numbers, *placed[option][len(numbers) :]]
    return _Map(unquoted(rest), tuple(placed["-s"]), tuple(placed["-o"]), clamps)


def _masked(picture: np.ndarray | None, mask: np.ndarray) -> np.ndarray:
    """A texture (white if None) with an alpha map: the alpha channel of `mask` if it has one, else its brightness."""
    if mask.shape[2] == 4 and (mask[..., 3] < 255).any():
        alpha = mask[..., 3]
    elif picture is mask:
        return picture
    else:
        alpha = np.rint(mask[..., :3].mean(axis=2, dtype=np.float32)).astype(np.uint8)
    if picture is None:
        picture = np.full((*alpha.shape, 3), 255, np.uint8)
    if alpha.shape != picture.shape[:2]:
        from PIL import Image

        alpha = np.asarray(Image.fromarray(alpha).resize(picture.shape[1::-1]))
    return np.concatenate([picture[..., :3], alpha[..., None]], axis=2)
