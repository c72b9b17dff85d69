"""Where arrays lie on the devices of a mesh, and how programs are compiled for them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from sv3d_jax.diffusion.sampler import Correction
from sv3d_jax.diffusion.solvers import Euler
from sv3d_jax.errors import InputError
from sv3d_jax.runner import ComputeConfig
from tests.tiny_model import picture, tiny_pipeline


@dataclass(frozen=True)
class Counting:
    """Euler, and how many steps there were."""

    def init(self, x):
        return jnp.zeros((), jnp.int32)

    def update(self, x, denoised, levels, count):
        return Euler().update(x, denoised, levels, ())[0], count + 1


def mesh(*axes: str) -> Mesh:
    """A mesh of the one device that there is."""
    return Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(axes)), axes)


@pytest.mark.parametrize(
    "options",
    [
        {"correct": Correction(lambda x, sigma, index: x, on_host=True)},
        {"solver": Counting(), "callback": lambda step: None},
    ],
    ids=["correction on the host", "memory of a solver"],
)
def test_scalars_of_a_step_are_whole_on_every_device_of_a_mesh(options):
    alone = tiny_pipeline()(picture(), seed=7, num_steps=2, output_type="latent").latents
    pipe = tiny_pipeline(mesh=mesh("data"))
    divided = pipe(picture(), seed=7, num_steps=2, output_type="latent", **options).latents
    np.testing.assert_allclose(divided, alone, atol=2e-5)


@pytest.mark.parametrize("axes", [("cfg",), ("frames", "data")])
def test_the_first_axis_of_a_mesh_is_that_of_pictures(axes):
    with pytest.raises(InputError, match="the first divides pictures"):
        ComputeConfig(mesh=mesh(*axes))
    ComputeConfig(mesh=mesh("anything", "cfg", "frames"))


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"quantize": "int4"}])
def test_unknown_ways_to_compute_are_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options.values()))}"):
        ComputeConfig(**options)
