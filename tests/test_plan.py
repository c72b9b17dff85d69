"""What an orbit takes: memory, arithmetic, and the advice when there is too little of either."""

import pytest

from sv3d_jax.diffusion.config import SamplingConfig
from sv3d_jax.errors import InputError, OutOfMemory
from sv3d_jax.models.config import ModelConfig
from sv3d_jax.plan import memory_advice, plan_orbit, require_accelerator
from tests.tiny_model import CONFIG


def test_plan_of_sv3d_has_its_published_size():
    plan = plan_orbit(ModelConfig.published("p"), dtype_bytes=2)
    assert plan.is_full_size and not plan_orbit(CONFIG).is_full_size
    halves = plan_orbit(ModelConfig.published("p"), dtype_bytes=2, low_memory=True)
    assert 2.5e9 < halves.sampling_bytes < 2.8e9  # 5.3 GB of live activations with guidance
    prepared = plan.sampling_bytes - 2 * halves.sampling_bytes
    assert 0.7e9 < prepared < 0.8e9  # as benchmarks/growth.py finds
    rounded = plan_orbit(ModelConfig.published("p"), dtype_bytes=2, quantized=True)
    assert 0.4e9 < rounded.sampling_bytes - plan.sampling_bytes < 0.45e9
    # Bytes that steps prepare, by jax.eval_shape of the published UNet: guided and full .757e9, without guidance
    # .668e9, reusing cached features .031e9 and .021e9.
    for options, expected in (
        ({"guidance_interval": (1, 9)}, 1.425e9),
        ({"cache_interval": 3}, 0.788e9),
        ({"guidance_interval": (1, 9), "cache_interval": 3}, 1.476e9),
    ):
        several = plan_orbit(ModelConfig.published("p"), dtype_bytes=2, sampling=SamplingConfig(**options))
        assert several.sampling_bytes - plan.sampling_bytes + prepared == pytest.approx(expected, rel=0.1)
    assert plan.step_flop * 50 == pytest.approx(3458e12, rel=1e-3)


def test_full_size_on_a_cpu_wants_to_be_asked_for(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    plan = plan_orbit(ModelConfig.published("p"))
    with pytest.raises(InputError, match=r"takes about \d+\.\d hours") as caught:
        require_accelerator(plan, "cpu", None)
    assert "--device cpu" in caught.value.hint
    require_accelerator(plan, "cpu", "cpu")
    require_accelerator(plan, "gpu", None)
    require_accelerator(plan_orbit(CONFIG), "cpu", None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    require_accelerator(plan, "cpu", None)


@pytest.mark.usefixtures("command_line")
def test_out_of_memory_lists_what_helps():
    plan = plan_orbit(ModelConfig.published("p"))
    with pytest.raises(OutOfMemory, match="weights 8.3 GiB") as caught, memory_advice(plan):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
    assert caught.value.hint.index("--decode-chunk 1") < caught.value.hint.index("--dtype bfloat16")
    with pytest.raises(RuntimeError, match="something else"), memory_advice(plan):
        raise RuntimeError("something else")
