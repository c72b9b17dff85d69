"""glTF files for tests: cases on disk, files built from arrays, and what the renderer shows of them."""

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from sv3d_jax.cameras.orbit import custom_orbit
from sv3d_jax.geometry.mesh import to_world
from sv3d_jax.io.meshes import read_mesh
from sv3d_jax.render.orbit import render_orbit

CASES = Path(__file__).parents[1] / "cases" / "meshes"


def views(path, size=48, frames=3, elevation=20.0):
    """Unlit colours (f h w 3) and alphas of views all around."""
    cameras = custom_orbit(None, elevation, frames)
    images, alphas = render_orbit(to_world(read_mesh(path)), cameras, size, background="transparent")
    return images, alphas


def seen(path, **settings):
    """The colours (n 3) of all fully covered pixels."""
    images, alphas = views(path, **settings)
    return images[alphas == 255]


def extents(path):
    """Sides of the box in the file's x, y, z."""
    mesh = read_mesh(path, up="z")
    return np.ptp(mesh.vertices[mesh.faces].reshape(-1, 3), axis=0)


class Builder:
    """Builds a GLB of one mesh from arrays."""

    def __init__(self):
        self.document = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": []}
        self.binary = b""

    def view(self, data):
        self.binary += bytes(-len(self.binary) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)}
        )
        self.binary += data
        return len(self.document["bufferViews"]) - 1

    def accessor(self, array, **fields):
        array = np.ascontiguousarray(array)
        kinds = {"<i1": 5120, "|i1": 5120, "|u1": 5121, "<i2": 5122, "<u2": 5123, "<u4": 5125, "<f4": 5126}
        widths = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
        width = 1 if array.ndim == 1 else array.shape[1]
        self.document["accessors"].append(
            {
                "bufferView": self.view(array.tobytes()),
                "componentType": kinds[array.dtype.str],
                "count": len(array),
                "type": widths[width],
                **fields,
            }
        )
        return len(self.document["accessors"]) - 1

    def picture(self, pixels):
        import io

        buffer = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
        images = self.document.setdefault("images", [])
        images.append({"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"})
        textures = self.document.setdefault("textures", [])
        textures.append({"source": len(images) - 1})
        return len(textures) - 1

    def finish(self, primitives, nodes=None, **fields):
        self.document |= {
            "meshes": [{"primitives": primitives}],
            "nodes": nodes or [{"mesh": 0}],
            "scenes": [{"nodes": list(range(len(nodes or [0])))}],
            "scene": 0,
        } | fields
        self.document["buffers"] = [{"byteLength": len(self.binary)}]
        return self

    def write(self, path):
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + bytes(-len(self.binary) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], "<f4")


QUAD_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "<f4")


QUAD_FACES = np.array([0, 1, 2, 0, 2, 3], "<u2")


def quad(material, tmp_path, uv=QUAD_UV, positions=QUAD, colors=None, builder=None, **fields):
    """The path of a square, whose material is made by `material(builder)`."""
    builder = builder or Builder()
    attributes = {"POSITION": builder.accessor(positions), "TEXCOORD_0": builder.accessor(uv)}
    if colors is not None:
        attributes["COLOR_0"] = builder.accessor(colors, normalized=colors.dtype.kind in "iu")
    primitive = {"attributes": attributes, "indices": builder.accessor(QUAD_FACES), "material": 0}
    builder.document["materials"] = [material(builder)]
    return builder.finish([primitive], **fields).write(tmp_path / "quad.glb")


def both_sides(path, size=64):
    """RGBA of the square, seen from its +z side and from its -z side."""
    cameras = custom_orbit([0.0, 180.0, 0.0], 0.0, 3)
    images, alphas = render_orbit(to_world(read_mesh(path)), cameras, size, background="transparent")
    pixels = np.concatenate([images, alphas[..., None]], axis=-1).astype(int)
    return pixels[-1], pixels[1]


def front(path, size=64):
    """RGBA of the square, seen from its +z side."""
    return both_sides(path, size)[0]


def square(pixels, margin=4):
    """The part of an image that the object covers, without its border."""
    rows, columns = np.nonzero(pixels[..., 3] == 255)
    return pixels[rows.min() + margin : rows.max() - margin, columns.min() + margin : columns.max() - margin]


FOUR = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]).repeat(8, 0).repeat(8, 1)


def textured(pixels=FOUR, transform=None, sampler=None, **fields):
    def material(builder):
        info = {"index": builder.picture(pixels)}
        if transform:
            info["extensions"] = {"KHR_texture_transform": transform}
        if sampler:
            builder.document["samplers"] = [sampler]
            builder.document["textures"][-1]["sampler"] = 0
        return {"pbrMetallicRoughness": {"baseColorTexture": info}, **fields}

    return material


def layers(builder, tmp_path):
    """The path of a square that is drawn once with each material of the builder."""
    attributes = {"POSITION": builder.accessor(QUAD), "TEXCOORD_0": builder.accessor(QUAD_UV)}
    materials = range(len(builder.document["materials"]))
    primitives = [{"attributes": attributes, "material": number} for number in materials]
    return builder.finish(primitives).write(tmp_path / "a.glb")


def corners(pixels):
    """Colours near the four corners: upper left, upper right, lower left, lower right."""
    part = square(pixels)[..., :3]
    h, w = part.shape[:2]
    return [tuple(int(c > 127) for c in part[r, c]) for r in (h // 8, -h // 8) for c in (w // 8, -w // 8)]


RED, GREEN, BLUE, YELLOW = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)
