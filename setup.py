"""Package mapping: the root folders train/, infer/, recon/ and configs/ are installed as sv3d_jax.<name>.

Everything else about the distribution is in pyproject.toml.
"""

from setuptools import find_packages, setup

AREAS = ("infer", "recon", "train")

# The committed links sv3d_jax/<area> are for static tools such as pyright; packages are taken from the root folders.
linked = [name for area in (*AREAS, "configs") for name in (f"sv3d_jax.{area}", f"sv3d_jax.{area}.*")]
packages = find_packages(include=["sv3d_jax", "sv3d_jax.*"], exclude=linked)
package_dir = {"sv3d_jax": "sv3d_jax", "sv3d_jax.configs": "configs"}
for area in AREAS:
    package_dir[f"sv3d_jax.{area}"] = area
    packages += [f"sv3d_jax.{area}"] + [f"sv3d_jax.{area}.{name}" for name in find_packages(area)]
packages.append("sv3d_jax.configs")

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "sv3d_jax": ["py.typed"],
        "sv3d_jax.configs": ["**/*.toml"],
        "sv3d_jax.weights": ["mini/**/*"],
    },
)
