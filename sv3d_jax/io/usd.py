"""Writing USDZ files."""

import os
import tempfile
from pathlib import Path

import numpy as np

from sv3d_jax.errors import InputError
from sv3d_jax.geometry.mesh import Mesh
from sv3d_jax.io.outputs import write_atomic
from sv3d_jax.io.surfaces import check_writable, png, y_up

_USDZ_TIME = 946_728_000  # 1 January 2000, noon: zip archives cannot store times before 1980


def write_usdz(path: str | Path, mesh: Mesh, normals: np.ndarray) -> None:
    """Write a textured mesh as USDZ with y up. The same mesh gives the same bytes.

    Raises InputError if the mesh has no texture or the extra `usd` is not installed.
    """
    check_writable(path, mesh, normals)
    try:
        from pxr import Sdf  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"{path} cannot be written without usd-core", hint='pip install "sv3d_jax[usd]"'
        ) from None
    if mesh.texture is None:
        raise InputError(f"{path} cannot be written: the mesh has no texture", hint="bake one first")
    with tempfile.TemporaryDirectory() as folder:
        scene, picture, package = (Path(folder) / name for name in ("mesh.usdc", "mesh.png", "mesh.usdz"))
        picture.write_bytes(png(mesh.texture))
        _write_usd(scene, mesh, normals, f"./{picture.name}")
        for file in (scene, picture):
            os.utime(file, (_USDZ_TIME, _USDZ_TIME))  # modification times are stored in the package
        with Sdf.ZipFileWriter.CreateNew(str(package)) as writer:
            for file in (scene, picture):  # the scene must be the first
                writer.AddFile(str(file), file.name)
        write_atomic(path, package.read_bytes())


def _write_usd(path: Path, mesh: Mesh, normals: np.ndarray, picture: str) -> None:
    """Write a USD scene of one mesh with a material; `picture` is the path of its texture relative to the scene."""
    from pxr import Sdf, Usd, UsdGeom, UsdShade, Vt  # pyright: ignore[reportMissingImports]

    stage, types = Usd.Stage.CreateInMemory(), Sdf.ValueTypeNames
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/object").GetPrim())
    vertices = y_up(mesh.vertices).astype(np.float32)
    surface = UsdGeom.Mesh.Define(stage, "/object/mesh")
    surface.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    surface.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vertices))
    surface.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([vertices.min(0), vertices.max(0)])))
    surface.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(y_up(normals).astype(np.float32)))
    surface.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    surface.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)))
    surface.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.ravel()))
    uv = UsdGeom.PrimvarsAPI(surface).CreatePrimvar("st", types.TexCoord2fArray, UsdGeom.Tokens.vertex)
    uv.Set(Vt.Vec2fArray.FromNumpy(mesh.uv))

    material, nodes = UsdShade.Material.Define(stage, "/object/material"), {}
    for name, kind in (
        ("surface", "UsdPreviewSurface"),
        ("texture", "UsdUVTexture"),
        ("uv", "UsdPrimvarReader_float2"),
    ):
        nodes[name] = UsdShade.Shader.Define(stage, f"/object/material/{name}")
        nodes[name].CreateIdAttr(kind)
    nodes["surface"].CreateInput("roughness", types.Float).Set(1.0)
    nodes["surface"].CreateInput("metallic", types.Float).Set(0.0)
    nodes["texture"].CreateInput("file", types.Asset).Set(picture)
    nodes["texture"].CreateInput("sourceColorSpace", types.Token).Set("sRGB")
    nodes["uv"].CreateInput("varname", types.String).Set("st")
    material.CreateSurfaceOutput().ConnectToSource(nodes["surface"].ConnectableAPI(), "surface")
    for user, key, kind, source, output in (
        ("surface", "diffuseColor", types.Color3f, "texture", "rgb"),
        ("texture", "st", types.Float2, "uv", "result"),
    ):
        nodes[user].CreateInput(key, kind).ConnectToSource(nodes[source].ConnectableAPI(), output)
    UsdShade.MaterialBindingAPI.Apply(surface.GetPrim()).Bind(material)
    stage.GetRootLayer().Export(str(path))
