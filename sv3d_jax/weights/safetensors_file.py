"""Safetensors files by plain reads and writes, one tensor in memory at a time; headers are checked for every fault.

The format: eight bytes hold the header's length, the header is JSON (name -> dtype, shape, begin and end), then
the tensors follow without gaps. Memory maps would count the whole file as resident, so tensors are read one by one.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from sv3d_jax.errors import WeightsError
from sv3d_jax.io.documents import parse_json
from sv3d_jax.io.reading import open_file

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
WIDER_FILE = "take the bfloat16 or float16 file of these weights"
_FLOAT8 = [DTYPES[code] for code in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")]
_NARROW_CODES = ("F4", "F6", "I4", "U4")  # several values share a byte
_CODES = {dtype: code for code, dtype in DTYPES.items()}
# The format allows headers of 100 MB: a million empty tensors, a minute and gigabytes. SV3D has 2,500 tensors
# in a header of 0.4 MB; a trainer's file may hold them several times, with pages of metadata.
MAX_HEADER_BYTES, MAX_TENSORS = 25_000_000, 50_000
_PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or another RIFF file"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"glTF", "a GLB mesh"),
    (b"ply\n", "a PLY mesh"),
    (b"ply\r\n", "a PLY mesh"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model, which is quantized"),
    (b"\x7fELF", "a program"),
)
GET_SV3D = (
    "SV3D's own weights, whose licence is accepted at https://huggingface.co/stabilityai/sv3d: hf auth login && "
    "hf download stabilityai/sv3d sv3d_p.safetensors --local-dir ."
)
_DOWNLOAD_AGAIN = "the file is damaged or was not fetched whole: download it again"


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of one tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_float8(info: TensorInfo) -> bool:
    """Whether values are 8-bit floats, each of which bfloat16 holds exactly."""
    return info.dtype in _FLOAT8


class SafetensorsFile:
    """A file whose header has been checked: `tensors`, `metadata`, and `read` for the values."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        refuse_pickle(self.path)
        try:
            with open_file(self.path) as file:
                self._parse(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise WeightsError(f"cannot read {self.path}: {error.strerror}") from None

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor."""
        info = self.tensors[name]
        data = np.empty(info.nbytes, np.uint8)
        try:
            with open_file(self.path) as file:
                file.seek(self._begin[name])
                count = file.readinto(memoryview(data))
        except OSError as error:
            raise WeightsError(f"cannot read {name} of {self.path}: {error.strerror}") from None
        if count != info.nbytes:
            raise WeightsError(f"{self.path} ended while {name} was read", hint=_DOWNLOAD_AGAIN)
        return data.view(info.dtype).reshape(info.shape)

    def _parse(self, file, size: int) -> None:
        start = file.read(512)
        self._sniff(start)
        if len(start) < 8:
            raise self._fault(f"it holds {size} bytes, not even a header", _DOWNLOAD_AGAIN)
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise self._fault(
                f"its header would be {length} bytes long, up to {MAX_HEADER_BYTES} are read"
                " (the format allows 100000000)"
            )
        if length > size - 8:
            raise self._fault(f"its header needs {8 + length} bytes, it holds {size}", _DOWNLOAD_AGAIN)
        file.seek(8)
        header = self._header(file.read(length))
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        if len(header) > MAX_TENSORS:
            raise self._fault(f"its header names {len(header)} tensors, more than {MAX_TENSORS}")
        self.tensors: dict[str, TensorInfo] = {}
        self._begin: dict[str, int] = {}
        for name, entry in header.items():
            self.tensors[name], self._begin[name] = self._entry(name, entry)
        self._check_layout(8 + length, size)
        self._begin = {name: 8 + length + begin for name, begin in self._begin.items()}

    def _sniff(self, start: bytes) -> None:
        """Refuse, by name, what people most often have in place of a weights file."""
        text = start.lstrip().lower()
        kind = next((kind for mark, kind in _SIGNATURES if start.startswith(mark)), None)
        if kind is not None and start[8:9] != b"{":  # else the mark is the length of a header
            raise WeightsError(f"{self.path} is {kind}, not a file of weights", GET_SV3D)
        if start.startswith(b"version https://git-lfs"):
            raise self._fault("it is a Git LFS pointer, not the file itself", "fetch the file: git lfs pull")
        if text.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise self._fault(
                "it is a web page, perhaps that of a login",
                "log in (hf auth login), accept the licence on the model's page, then download it again",
            )
        if start.startswith(b"PK\x03\x04"):
            raise self._fault("it is a zip archive, as torch.save writes, and is not opened", _CONVERT_PICKLE)
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{":
            raise self._fault("it is a Python pickle, and is not opened", _CONVERT_PICKLE)
        if text.startswith(b'{"'):
            raise self._fault("it is a JSON text, perhaps the answer of a server", _DOWNLOAD_AGAIN)

    def _header(self, text: bytes) -> dict:
        if not text.startswith(b"{"):
            raise self._fault("its header is not a table of tensors", _DOWNLOAD_AGAIN)
        where = self._fault("its header").message
        return parse_json(text, where, _DOWNLOAD_AGAIN, WeightsError)

    def _metadata(self, metadata: object) -> dict[str, str]:
        if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()):
            return metadata
        raise self._fault("its metadata are not a table of strings")

    def _entry(self, name: str, entry: object) -> tuple[TensorInfo, int]:
        match entry:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end]}:
                pass
            case _:
                raise self._fault(f"the header's entry of {name!r} lacks a dtype, a shape or two offsets")
        if code not in DTYPES and code.startswith(_NARROW_CODES):
            raise self._fault(
                f"{name!r} is quantized as {code}; of narrow types only 8-bit floats (fp8) are read",
                WIDER_FILE,
            )
        if code not in DTYPES:
            raise self._fault(f"{name!r} has the unknown dtype {code!r}")
        if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
            raise self._fault(f"{name!r} has a shape or offset that is not a count: {shape}, {begin}, {end}")
        info = TensorInfo(DTYPES[code], tuple(shape))
        if info.nbytes != end - begin:
            raise self._fault(
                f"{name!r} of shape {shape} needs {info.nbytes} bytes, its offsets give {end - begin}"
            )
        return info, begin

    def _check_layout(self, data_start: int, size: int) -> None:
        end = 0
        for name in sorted(self.tensors, key=lambda name: (self._begin[name], self.tensors[name].nbytes)):
            if self._begin[name] != end:
                fault = (
                    "overlaps the tensor before it" if self._begin[name] < end else "leaves a hole before it"
                )
                raise self._fault(f"{name!r} {fault}", _DOWNLOAD_AGAIN)
            end += self.tensors[name].nbytes
        if data_start + end != size:
            fault = "is truncated" if size < data_start + end else "has bytes after its last tensor"
            raise self._fault(f"it {fault}: expected {data_start + end} bytes, got {size}", _DOWNLOAD_AGAIN)

    def _fault(self, what: str, hint: str | None = None) -> WeightsError:
        return WeightsError(f"{self.path} is not a usable safetensors file: {what}", hint)


_CONVERT_PICKLE = (
    "a pickle can run any program when opened, so it is refused; where you trust it, write its state dict as"
    " safetensors (safetensors.torch.save_file), or download the .safetensors release"
)


def refuse_pickle(path: Path) -> None:
    """Raise a WeightsError for a file whose suffix says pickle."""
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise WeightsError(
            f"{path} is a pickle by its suffix {path.suffix}, and is not opened", _CONVERT_PICKLE
        )


def write_safetensors(
    path: Path | str,
    infos: Mapping[str, TensorInfo],
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a file tensor by tensor; `tensors` come in the order of `infos`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, info in infos.items():
        header[name] = {
            "dtype": _CODES[info.dtype],
            "shape": info.shape,
            "data_offsets": (end, end + info.nbytes),
        }
        end += info.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, info), tensor in zip(infos.items(), tensors, strict=True):
            if (tensor.dtype, tensor.shape) != (info.dtype, info.shape):
                raise ValueError(f"{name}: announced {info}, got {tensor.dtype} {tensor.shape}")
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
