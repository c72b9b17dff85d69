#!/bin/sh
# trimesh 5.2.0 reads glTF vertex colours of 16 bits by their low byte.
#
# COLOR_0 may be normalized unsigned shorts (glTF 2.0, 3.7.2.1): 0x8040 of 0xFFFF is half, 128 of 255. trimesh casts to
# 8 bits without a division, so it gives 0x40 = 64; what is stored as 0xFF00 comes out black. Blender's exporter writes
# such colours. The file below is valid and holds one triangle. Exits with 0 while this is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check trimesh==5.2.0 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - "$folder/triangle.glb" <<'PYTHON'
import json
import struct
import sys

import numpy as np
import trimesh

positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes()
colors = np.full((3, 4), 0x8040, "<u2")
colors[:, 3] = 0xFFFF
binary = positions + colors.tobytes()
document = {
    "asset": {"version": "2.0"},
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}}]}],
    "buffers": [{"byteLength": len(binary)}],
    "bufferViews": [
        {"buffer": 0, "byteLength": 36, "target": 34962},
        {"buffer": 0, "byteOffset": 36, "byteLength": 24, "byteStride": 8, "target": 34962},
    ],
    "accessors": [
        {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
        {"bufferView": 1, "componentType": 5123, "count": 3, "type": "VEC4", "normalized": True},
    ],
}
text = json.dumps(document).encode()
text += b" " * (-len(text) % 4)
chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
open(sys.argv[1], "wb").write(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)

[mesh] = trimesh.load_scene(sys.argv[1]).geometry.values()
seen = mesh.visual.vertex_colors[0].tolist()
print(f"trimesh {trimesh.__version__}: stored 0x8040 of 0xFFFF, 128 of 255 expected, read {seen[:3]}")
sys.exit(0 if seen[:3] == [64, 64, 64] else 1)
PYTHON
