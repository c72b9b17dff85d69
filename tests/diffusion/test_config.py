"""Options of sampling: what is refused."""

import numpy as np
import pytest

from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_steps": 2.5}, "num_steps=2.5: must be a whole number"),
        ({"num_steps": True}, "num_steps=True: must be a whole number"),
        ({"cache_interval": 1.5}, "cache_interval=1.5: must be a whole number"),
        ({"num_steps": 0}, "num_steps=0: must lie between 1 and 1000"),
        ({"guidance_interval": (1.0,)}, "the lowest and the highest noise level"),
        ({"guidance_interval": (3.0, 1.0)}, r"guidance_interval=\(3, 1\)"),
        ({"guidance": 2.5}, "guidance must be one of"),
        ({"guidance": ["linear"]}, "guidance must be one of"),
        ({"solver": 3}, "solver must be"),
        ({"solver": "heun"}, "solver must be"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(wrong, says):
    with pytest.raises(InputError, match=says):
        SamplingConfig(**wrong)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert SamplingConfig(num_steps=np.int64(4)).num_steps == 4
