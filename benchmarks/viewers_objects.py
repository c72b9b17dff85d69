"""Twelve GLBs that together use the features of glTF 2.0 and its common extensions for shape and base colour.

They are built without the package's reader and writer (glb_builder.py). No object is symmetric, so that a wrong
rotation or reflection shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from glb_builder import (
    CLAMP,
    LINEAR,
    MIRROR,
    NEAREST,
    REPEAT,
    TEXTURE_SIDE,
    Gltf,
    Shape,
    ball,
    bounds,
    box,
    gradient,
    paint,
    sparse,
    sparse_values,
)


def write_objects(folder: Path) -> list[Path]:
    """Writes <name>.glb for each of OBJECTS; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in OBJECTS.items():
        gltf = Gltf()
        make(gltf)
        (folder / f"{name}.glb").write_bytes(gltf.packed())
    return [folder / f"{name}.glb" for name in OBJECTS]


def factors(gltf: Gltf) -> None:
    """Several base colour factors, with and without textures; mirrored and instanced nodes."""
    first, second = gltf.picture(paint(1)), gltf.picture(paint(2, 4))
    painted = gltf.material([0.8, 0.4, 0.2, 1.0], {"index": first})
    bare = gltf.material([0.5, 0.25, 0.0625, 1.0])
    gltf.place(
        [gltf.primitive(box(1.2, 0.8, 0.5), painted), gltf.primitive(ball(0.3).moved([0, 0.7, 0]), bare)]
    )
    mesh = gltf.add(
        "meshes", {"primitives": [gltf.primitive(box(0.4, 0.5, 0.3), gltf.material(None, {"index": second}))]}
    )
    half = float(np.sqrt(0.5))
    gltf.root(mesh=mesh, translation=[1.0, -0.2, 0.3], scale=[-1.0, 1.5, 1.0])
    gltf.root(mesh=mesh, translation=[-1.0, 0.2, 0.0], rotation=[0.0, half, 0.0, half])
    gltf.uses("EXT_mesh_gpu_instancing", required=True)
    places = np.array([[0, -0.9, 0.4], [0.5, -0.8, -0.5], [-0.6, -0.9, 0]], "f4")
    turns = np.array([[0, 0, 0, 1], [0, half, 0, half], [half, 0, 0, half]], "f4")
    sizes = np.array([[1, 1, 1], [0.5, 1, 0.5], [1, 0.5, 0.7]], "f4")
    copies = {
        name: gltf.accessor(values, None)
        for name, values in (("TRANSLATION", places), ("ROTATION", turns), ("SCALE", sizes))
    }
    gltf.root(mesh=mesh, extensions={"EXT_mesh_gpu_instancing": {"attributes": copies}})


def colors(gltf: Gltf) -> None:
    """COLOR_0 of 8 and 16 bits or floats, with and without alpha, times factors and textures; and without material."""
    parts = [ball(0.5).moved([-0.7, 0.4, 0]), box(0.9, 0.7, 0.6).moved([0.5, 0.4, 0.2])]
    parts += [ball(0.4).moved([0.6, -0.6, 0]), box(0.7, 0.5, 0.4).moved([-0.5, -0.6, 0.1])]
    eight = np.round(255 * gradient(parts[0], 1, 4)).astype("u1")
    sixteen = np.round(65535 * gradient(parts[1], 2)).astype("u2")
    real, four = gradient(parts[2], 3).astype("f4"), gradient(parts[3], 4, 4).astype("f4")
    painted = gltf.material([1.0, 0.9, 0.8, 1.0], {"index": gltf.picture(paint(3))})
    gltf.place(
        [
            gltf.primitive(
                parts[0], gltf.material([0.9, 1.0, 0.5, 1.0]), COLOR_0=gltf.accessor(eight, normalized=True)
            ),
            gltf.primitive(parts[1], None, COLOR_0=gltf.accessor(sixteen, normalized=True)),
            gltf.primitive(parts[2], painted, COLOR_0=gltf.accessor(real)),
            gltf.primitive(parts[3], gltf.material(), COLOR_0=gltf.accessor(four)),
        ]
    )


def transforms(gltf: Gltf) -> None:
    """KHR_texture_transform with rotation: several over one texture, and one that selects TEXCOORD_1."""
    gltf.uses("KHR_texture_transform", required=True)
    texture = gltf.picture(paint(4))
    ways = [
        {"offset": [0.25, 0.5], "scale": [0.5, 0.25]},
        {"rotation": 0.6, "offset": [0.1, 0.3], "scale": [0.7, 0.4]},
        {"rotation": -1.2, "scale": [-1.0, 0.5], "texCoord": 1},
    ]
    shapes = [
        box(0.8, 0.9, 0.5).moved([-0.6, 0, 0]),
        box(0.7, 0.6, 0.8).moved([0.6, 0.3, 0]),
        ball(0.35).moved([0.5, -0.5, 0.1]),
    ]
    primitives = []
    for way, shape in zip(ways, shapes, strict=True):
        info = {"index": texture, "extensions": {"KHR_texture_transform": way}}
        more = {}
        if "texCoord" in way:
            more["TEXCOORD_1"] = gltf.accessor((shape.uv * [0.5, 1.0] + [0.2, 0.1]).astype("f4"))
        primitives.append(gltf.primitive(shape, gltf.material(None, info), **more))
    gltf.place(primitives, rotation=[0.0, 0.2588190451, 0.0, 0.9659258263])


def wraps(gltf: Gltf) -> None:
    """Wrap modes: repeat, mirror, clamp, and different ones along u and v."""
    picture = gltf.picture(paint(5, 4), (REPEAT, REPEAT), (LINEAR, LINEAR))
    pairs = [(REPEAT, REPEAT), (MIRROR, MIRROR), (CLAMP, CLAMP), (REPEAT, MIRROR), (CLAMP, REPEAT)]
    primitives = []
    for number, wrap in enumerate(pairs):
        texture = picture if wrap == (REPEAT, REPEAT) else gltf.texture(0, wrap, (LINEAR, LINEAR))
        shape = box(0.7, 0.8, 0.6).with_uv([2.5, 1.8], [-0.8, -0.3])
        where = [0.5 * np.sin(1.3 * number), 0.4 * number - 0.8, 0.5 * np.cos(1.3 * number)]
        primitives.append(gltf.primitive(shape.moved(where, 0.8), gltf.material(None, {"index": texture})))
    gltf.place(primitives)


def coordinates(gltf: Gltf) -> None:
    """TEXCOORD_1, normalized coordinates of 8 and 16 bits, NEAREST filter, strips, fans and no indices."""
    texture = gltf.picture(paint(6))
    hard = gltf.picture(paint(7, 8, 8), (CLAMP, CLAMP), (NEAREST, NEAREST))
    one, two, three = (
        box(0.8, 0.6, 0.6).moved([-0.5, 0.3, 0]),
        ball(0.4).moved([0.5, 0.3, 0]),
        box(0.5, 0.5, 0.7).moved([-0.3, -0.5, 0]),
    )
    second = np.round(65535 * (one.uv * [0.4, 0.6] + [0.3, 0.2])).astype("u2")
    primitives = [
        gltf.primitive(
            one,
            gltf.material(None, {"index": texture, "texCoord": 1}),
            TEXCOORD_1=gltf.accessor(second, normalized=True),
        ),
        gltf.primitive(
            two,
            gltf.material(None, {"index": texture}),
            TEXCOORD_0=gltf.accessor(np.round(65535 * two.uv).astype("u2"), normalized=True),
        ),
        gltf.primitive(
            three,
            gltf.material(None, {"index": hard}),
            TEXCOORD_0=gltf.accessor(np.round(255 * three.uv).astype("u1"), normalized=True),
        ),
    ]
    wave = np.array([[0.1 * i, 0.12 * (i % 2), 0.05 * np.sin(i)] for i in range(12)]) + [0.2, -0.7, 0.3]
    strip = Shape(wave, [[0, 0, 1.0]] * 12, wave[:, :2], np.arange(12), mode=5)
    turn = np.linspace(0, 2 * np.pi, 9)
    wheel = np.concatenate([[[0, 0, 0.1]], np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)]) * 0.3 + [
        0.8,
        -0.4,
        0.3,
    ]
    fan = Shape(wheel, [[0, 0, 1.0]] * 10, wheel[:, :2], np.arange(10), mode=6)
    both = gltf.material([0.1, 0.5, 0.9, 1.0], None, doubleSided=True)
    primitives += [gltf.primitive(strip, both), gltf.primitive(fan, both)]
    plain = box(0.3, 0.3, 0.3).moved([-0.9, -0.6, 0.2])
    corner = plain.indices.ravel()
    plain = Shape(plain.positions[corner], plain.normals[corner], plain.uv[corner], np.arange(36))
    unindexed = gltf.primitive(plain, gltf.material([0.7, 0.1, 0.3, 1.0], {"index": texture}))
    del unindexed["indices"]
    gltf.document["accessors"].pop()
    gltf.document["bufferViews"].pop()
    gltf.place([*primitives, unindexed])


def quantized(gltf: Gltf) -> None:
    """KHR_mesh_quantization: short positions under a node's scale, byte normals, raw short texture coordinates."""
    gltf.uses("KHR_mesh_quantization", required=True)
    gltf.uses("KHR_texture_transform", required=True)
    shape, other = box(1.0, 0.6, 0.8), ball(0.4)
    grey = gltf.picture(paint(8), (CLAMP, CLAMP))
    dequantized = {"KHR_texture_transform": {"scale": [1 / 4095, 1 / 4095]}}
    positions = np.round(32767 * shape.positions).astype("i2")
    primitive = gltf.primitive(
        shape,
        gltf.material(None, {"index": grey, "extensions": dequantized}),
        POSITION=gltf.accessor(positions, normalized=True, **bounds(positions)),
        NORMAL=gltf.accessor(np.round(127 * shape.normals).astype("i1"), normalized=True),
        TEXCOORD_0=gltf.accessor(np.round(4095 * shape.uv).astype("u2")),
    )
    gltf.place([primitive], scale=[0.9, 1.1, 1.0], translation=[-0.3, 0.0, 0.0])
    raw = np.round(1000 * other.positions + 500).astype("u2")
    primitive = gltf.primitive(
        other,
        gltf.material([0.9, 0.8, 1.0, 1.0], {"index": grey}),
        POSITION=gltf.accessor(raw, **bounds(raw)),
        NORMAL=gltf.accessor(np.round(32767 * other.normals).astype("i2"), normalized=True),
        COLOR_0=gltf.accessor(np.round(255 * gradient(other, 5)).astype("u1"), normalized=True),
    )
    gltf.place([primitive], scale=[1e-3] * 3, translation=[0.2, -0.2, -0.1])


def morphs(gltf: Gltf) -> None:
    """Morph targets with the weights of the mesh and of a node; sparse accessors with and without a buffer view."""
    shape = ball(0.5)
    texture = gltf.material(None, {"index": gltf.picture(paint(9))})
    lifted = np.flatnonzero(shape.positions[:, 1] > 0.2)
    raised = {
        "POSITION": sparse(gltf, len(shape.positions), lifted, np.tile([0.0, 0.6, 0.0], (len(lifted), 1)))
    }
    widened = {
        "POSITION": gltf.accessor(pulled := (shape.positions * [1.0, 0, 0.3]).astype("f4"), **bounds(pulled))
    }
    dent = np.flatnonzero(shape.positions[:, 2] > 0.35)
    flat = shape.positions.copy()
    flat[dent, 2] = 0.35
    base = gltf.accessor(shape.positions.astype("f4"), **bounds(flat))
    gltf.document["accessors"][base]["sparse"] = sparse_values(gltf, dent, flat[dent])
    primitive = gltf.primitive(shape, texture, POSITION=base) | {"targets": [raised, widened]}
    mesh = gltf.add("meshes", {"primitives": [primitive], "weights": [0.7, 0.2]})
    gltf.root(mesh=mesh, translation=[-0.6, 0.0, 0.0])
    gltf.root(mesh=mesh, translation=[0.7, 0.1, 0.2], weights=[0.0, 0.5])


def skin(gltf: Gltf) -> None:
    """A pole bent by two joints, whose own node transform must be ignored; an object parented to the upper joint."""
    texture = gltf.picture(paint(10))
    rings = 13
    pole = Shape(
        [
            [0.2 * a, y, 0.2 * b]
            for y in np.linspace(0, 2, rings)
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1))
        ],
        [
            [a * 0.70710678, 0, b * 0.70710678]
            for _ in range(rings)
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1))
        ],
        [[k / 4, y] for y in np.linspace(0, 1, rings) for k in range(5)],
        [
            face
            for ring in range(rings - 1)
            for k in range(4)
            for i in [5 * ring + k]
            for face in ([i, i + 1, i + 6], [i, i + 6, i + 5])
        ],
    )
    upper = np.clip(pole.positions[:, 1] - 0.5, 0, 1)
    weights = np.stack([1 - upper, upper, 0 * upper, 0 * upper], 1).astype("f4")
    joints = np.tile(np.array([0, 1, 0, 0], "u1"), (len(weights), 1))
    joints[weights[:, 1] == 0] = 0
    primitive = gltf.primitive(
        pole,
        gltf.material(None, {"index": texture}, doubleSided=True),
        JOINTS_0=gltf.accessor(joints),
        WEIGHTS_0=gltf.accessor(weights),
    )
    mesh = gltf.add("meshes", {"primitives": [primitive]})
    held = gltf.add(
        "meshes", {"primitives": [gltf.primitive(box(0.5, 0.3, 0.6), gltf.material([0.2, 0.7, 0.1, 1.0]))]}
    )
    prop = gltf.add("nodes", {"mesh": held, "translation": [0.1, 1.0, 0.0]})
    bent = [0.0, 0.0, -float(np.sin(0.4)), float(np.cos(0.4))]
    elbow = gltf.add("nodes", {"translation": [0.0, 1.0, 0.0], "rotation": bent, "children": [prop]})
    foot = gltf.add(
        "nodes",
        {"rotation": [0.0, 0.3826834324, 0.0, 0.9238795325], "children": [elbow]},
    )
    inverse = np.stack([np.eye(4), np.eye(4)]).astype("f4")
    inverse[1, 3, 1] = -1.0  # columns: a move down by 1
    rig = gltf.add("skins", {"joints": [foot, elbow], "inverseBindMatrices": gltf.accessor(inverse, None)})
    armature = gltf.root(children=[foot])
    gltf.document["nodes"][armature]["translation"] = [0.3, -0.2, 0.1]
    gltf.root(mesh=mesh, skin=rig, translation=[5.0, 5.0, 5.0])


def holes(gltf: Gltf) -> None:
    """alphaMode MASK by textures and by factors, with cutoffs; opaque surfaces whose alpha must be ignored."""
    picture = paint(11)
    row, column = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE] - TEXTURE_SIDE / 2 + 0.5
    alpha = np.clip(128 + 8 * (np.hypot(row + 10, column) - 30), 0, 255)
    cut = np.dstack([picture, alpha]).astype(np.uint8)
    texture = gltf.picture(cut)
    gltf.place(
        [
            gltf.primitive(
                box(1.0, 1.0, 1.0),
                gltf.material(None, {"index": texture}, alphaMode="MASK", doubleSided=True),
            ),
            gltf.primitive(ball(0.3), gltf.material([0.9, 0.1, 0.05, 1.0])),
            gltf.primitive(
                box(0.5, 0.4, 0.5).moved([0.9, -0.2, 0.1]), gltf.material([1, 1, 1, 0.1], {"index": texture})
            ),
            gltf.primitive(
                box(0.4, 0.5, 0.5).moved([-0.9, 0.2, 0.1]),
                gltf.material(
                    [1, 1, 1, 0.8], {"index": texture}, alphaMode="MASK", alphaCutoff=0.7, doubleSided=True
                ),
            ),
        ]
    )


def shells(gltf: Gltf) -> None:
    """alphaMode BLEND: a nearly invisible shell, an invisible one, and patches that are nearly opaque."""
    picture = np.dstack(
        [paint(12), np.where(np.arange(TEXTURE_SIDE)[:, None] < 50, 26, 255) * np.ones((1, TEXTURE_SIDE))]
    )
    gltf.place(
        [
            gltf.primitive(box(0.7, 0.5, 0.6), gltf.material(None, {"index": gltf.picture(paint(13))})),
            gltf.primitive(
                box(1.0, 0.8, 0.9), gltf.material([0.2, 0.4, 1.0, 0.1], alphaMode="BLEND", doubleSided=True)
            ),
            gltf.primitive(ball(0.75), gltf.material([1, 1, 1, 0.0], alphaMode="BLEND", doubleSided=True)),
        ]
    )
    patched = gltf.material(
        None, {"index": gltf.picture(picture.astype(np.uint8))}, alphaMode="BLEND", doubleSided=True
    )
    gltf.place(
        [
            gltf.primitive(ball(0.3), patched),
            gltf.primitive(box(0.2, 0.4, 0.2), gltf.material([0.8, 0.6, 0.0, 1.0])),
        ],
        translation=[0.9, 0.2, 0.0],
    )


def glow(gltf: Gltf) -> None:
    """Emission over a black base colour, by a texture and by a factor; KHR_materials_unlit; no material."""
    gltf.uses("KHR_materials_unlit")
    shining = gltf.material(
        [0, 0, 0, 1], None, emissiveFactor=[1.0, 0.8, 0.6], emissiveTexture={"index": gltf.picture(paint(14))}
    )
    lamp = gltf.material([0, 0, 0, 1], None, emissiveFactor=[0.2, 0.05, 0.5])
    unlit = gltf.material(
        [0.6, 1.0, 0.7, 1.0], {"index": gltf.picture(paint(15))}, extensions={"KHR_materials_unlit": {}}
    )
    gltf.place(
        [
            gltf.primitive(box(0.8, 0.6, 0.7).moved([-0.5, 0.2, 0]), shining),
            gltf.primitive(ball(0.3).moved([0.5, 0.5, 0]), lamp),
            gltf.primitive(ball(0.4).moved([0.5, -0.3, 0.2]), unlit),
            gltf.primitive(box(0.4, 0.3, 0.5).moved([-0.4, -0.5, 0]), None),
        ]
    )


def specular(gltf: Gltf) -> None:
    """KHR_materials_pbrSpecularGlossiness: diffuse texture and factor, beside an ordinary material."""
    gltf.uses("KHR_materials_pbrSpecularGlossiness")
    diffuse, plain = gltf.picture(paint(16)), gltf.picture(paint(17))

    def surface(**values: Any) -> int:
        return gltf.material(
            extensions={"KHR_materials_pbrSpecularGlossiness": {"specularFactor": [0, 0, 0], **values}}
        )

    gltf.place(
        [
            gltf.primitive(
                box(0.9, 0.7, 0.5).moved([-0.4, 0, 0]),
                surface(diffuseFactor=[0.5, 0.9, 0.7, 1.0], diffuseTexture={"index": diffuse}),
            ),
            gltf.primitive(ball(0.35).moved([0.5, 0.2, 0]), surface(diffuseFactor=[0.7, 0.2, 0.1, 1.0])),
            gltf.primitive(box(0.4, 0.3, 0.6).moved([0.4, -0.5, 0]), gltf.material(None, {"index": plain})),
        ]
    )


OBJECTS: dict[str, Callable[[Gltf], None]] = {
    make.__name__: make
    for make in (
        factors, colors, transforms, wraps, coordinates, quantized, morphs, skin, holes, shells, glow, specular
    )
}  # fmt: skip
