"""Pictures by Blender: `python viewers_blender.py JOB.json`, by a Python that has bpy.

`viewers.py` writes the job and reads what comes back: for every view a file of float32 RGBA in linear light,
premultiplied, lowest row first, and one line of JSON on stdout for every mesh. Every surface emits its base colour.
"""

import contextlib
import json
import os
import sys
import tempfile

import bpy  # pyright: ignore[reportMissingImports]
import numpy as np
from mathutils import Matrix  # pyright: ignore[reportMissingImports]

SAMPLES = 4  # to each of the points that a pixel is made of


def main() -> None:
    with open(sys.argv[1]) as file:
        job = json.load(file)
    for item in job:
        with quiet():
            low, high = show(item)
        print(json.dumps({"name": item["name"], "low": low, "high": high}), flush=True)


@contextlib.contextmanager
def quiet():
    """Blender and its importers write to the process's stdout; here it goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def show(item):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    load(os.path.join(item["folder"], item["file"]))
    bpy.context.view_layer.update()
    low, high = bounds()
    for material in bpy.data.materials:
        shine(material) if item["look"] == "colors" else show_normals(material)
    for thing in [thing for thing in bpy.data.objects if thing.type == "MESH"]:
        if not thing.material_slots:
            thing.data.materials.append(None)
        for slot in thing.material_slots:
            slot.material = slot.material or plain(thing, item["look"])
    anchor = bpy.data.objects.new("world", None)
    bpy.context.scene.collection.objects.link(anchor)
    for thing in bpy.data.objects:
        if thing.parent is None and thing is not anchor:
            thing.parent = anchor
    anchor.matrix_world = Matrix(item["world_from_viewer"])
    scene = prepared(item["side"])
    for view in item["views"]:
        place_camera(scene, view, item["side"])
        np.asarray(picture(scene), "<f4").tofile(view["output"])
    return low, high


def load(path):
    match path.rsplit(".", 1)[1]:
        case "glb":
            bpy.ops.import_scene.gltf(filepath=path)
        case "obj":
            bpy.ops.wm.obj_import(filepath=path)
        case "ply":
            bpy.ops.wm.ply_import(filepath=path)
        case "usdz":
            bpy.ops.wm.usd_import(filepath=path)


def bounds():
    """The box of all surfaces where Blender put them."""
    graph = bpy.context.evaluated_depsgraph_get()
    points = []
    for instance in graph.object_instances:
        if instance.object.type == "MESH":
            mesh = instance.object.to_mesh()
            places = np.empty(3 * len(mesh.vertices), np.float32)
            mesh.vertices.foreach_get("co", places)
            matrix = np.array(instance.matrix_world)
            points.append(places.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
    points = np.concatenate(points)
    return points.min(0).tolist(), points.max(0).tolist()


def shine(material):
    """A material then emits its base colour, or its emission if that is black; culled faces stay clear."""
    if not material.use_nodes:
        return
    tree = material.node_tree
    output = next(node for node in tree.nodes if node.type == "OUTPUT_MATERIAL")
    body = next((node for node in tree.nodes if node.type == "BSDF_PRINCIPLED"), None)
    if body is None:
        return  # unlit: shines already
    base, glow = body.inputs["Base Color"], body.inputs["Emission Color"]
    black = not base.is_linked and not any(base.default_value[:3])
    lamp = tree.nodes.new("ShaderNodeEmission")
    lamp.inputs["Strength"].default_value = body.inputs["Emission Strength"].default_value if black else 1.0
    follow(tree, glow if black else base, lamp.inputs["Color"])
    clear, mix = tree.nodes.new("ShaderNodeBsdfTransparent"), tree.nodes.new("ShaderNodeMixShader")
    seen, geometry = tree.nodes.new("ShaderNodeMath"), tree.nodes.new("ShaderNodeNewGeometry")
    seen.operation = "MULTIPLY"
    follow(tree, body.inputs["Alpha"], seen.inputs[0])
    seen.inputs[1].default_value = 1.0
    if material.use_backface_culling:
        front = tree.nodes.new("ShaderNodeMath")
        front.operation, front.inputs[0].default_value = "SUBTRACT", 1.0
        tree.links.new(geometry.outputs["Backfacing"], front.inputs[1])
        tree.links.new(front.outputs[0], seen.inputs[1])
    tree.links.new(seen.outputs[0], mix.inputs[0])
    tree.links.new(clear.outputs[0], mix.inputs[1])
    tree.links.new(lamp.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], output.inputs["Surface"])


def follow(tree, source, target):
    """Link `target` to the same input as `source`."""
    if source.is_linked:
        tree.links.new(source.links[0].from_socket, target)
    else:
        target.default_value = source.default_value


def show_normals(material):
    """Emission of the shading normal, from [-1, 1] to [0, 1]."""
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    lamp, output = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeOutputMaterial")
    geometry, half = tree.nodes.new("ShaderNodeNewGeometry"), tree.nodes.new("ShaderNodeVectorMath")
    half.operation = "MULTIPLY_ADD"
    half.inputs[1].default_value = half.inputs[2].default_value = (0.5, 0.5, 0.5)
    tree.links.new(geometry.outputs["Normal"], half.inputs[0])
    tree.links.new(half.outputs[0], lamp.inputs["Color"])
    tree.links.new(lamp.outputs[0], output.inputs["Surface"])


def plain(thing, look):
    """The material of a surface without one: its colours, else white."""
    material = bpy.data.materials.new("plain")
    if look == "normals":
        show_normals(material)
        return material
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    lamp, output = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeOutputMaterial")
    lamp.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    if thing.data.color_attributes:
        colors = tree.nodes.new("ShaderNodeVertexColor")
        colors.layer_name = thing.data.color_attributes[0].name
        tree.links.new(colors.outputs[0], lamp.inputs["Color"])
    tree.links.new(lamp.outputs[0], output.inputs["Surface"])
    return material


def prepared(side):
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.samples = "CPU", SAMPLES
    scene.cycles.use_denoising = scene.cycles.use_adaptive_sampling = False
    scene.cycles.pixel_filter_type = "BOX"
    scene.cycles.max_bounces, scene.cycles.transparent_max_bounces = 0, 32
    scene.render.film_transparent = True
    scene.render.resolution_x = scene.render.resolution_y = side
    scene.render.resolution_percentage = 100
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_mode, scene.render.image_settings.color_depth = "RGBA", "32"
    scene.world = None
    return scene


def place_camera(scene, view, side):
    if scene.camera is None:
        scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        scene.collection.objects.link(scene.camera)
    camera = scene.camera.data
    camera.sensor_fit, camera.sensor_width = "HORIZONTAL", 36.0
    camera.lens = 36.0 * view["focal"][0] / side
    camera.shift_x, camera.shift_y = 0.5 - view["center"][0] / side, view["center"][1] / side - 0.5
    camera.clip_start, camera.clip_end = 0.05, 1000.0
    scene.camera.matrix_world = Matrix(view["camera_to_world"])


def picture(scene):
    """Float pixels (side side 4), lowest row first."""
    with tempfile.TemporaryDirectory() as folder:
        scene.render.filepath = os.path.join(folder, "picture.exr")
        bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(scene.render.filepath)
        image.colorspace_settings.name = "Non-Color"
        image.alpha_mode = "PREMUL"
        pixels = np.empty(len(image.pixels), np.float32)
        image.pixels.foreach_get(pixels)
        bpy.data.images.remove(image)
    return pixels


main()
