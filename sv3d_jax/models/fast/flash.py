"""Attention whose scores never leave the chip (Dao et al., FlashAttention, arXiv 2205.14135), by jax's Pallas kernels:
splash attention on TPUs, Triton on NVIDIA GPUs.

The kernels take whole blocks of tokens on one device. Here they get any number of tokens, gradients, and arrays that
are divided over several devices.
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from sv3d_jax.arrays import Array, Float

BLOCKS = {"tpu": 512, "gpu": 128}
"""Tokens that a kernel takes at once. Sequences are padded to a multiple of it, and the padding is masked."""


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def flash_attention(
    q: Float[Array, "n s k d"],
    k: Float[Array, "n s k d"],
    v: Float[Array, "n s k d"],
    platform: str,
    interpret: bool = False,
) -> Float[Array, "n s k d"]:
    """softmax(q k^T / sqrt(d)) v per head among the tokens of each of n, softmax in float32.

    platform is "tpu" or "gpu"; with `interpret`, its kernel runs on any device, for tests. The first axis and the heads
    may be divided over devices. The gradient keeps q, k and v, and computes the rest again. It cannot be vmapped.
    """
    return _call(platform, interpret, False, q, k, v)


def _forward(q, k, v, platform, interpret):
    return flash_attention(q, k, v, platform, interpret), (q, k, v)


def _backward(platform, interpret, inputs, gradient):
    return _call(platform, interpret, True, *inputs, gradient)


flash_attention.defvjp(_forward, _backward)


def _call(platform: str, interpret: bool, is_gradient: bool, *arrays: Array):
    """The kernel, or its gradient, on arrays that are padded to whole blocks and cut again."""
    s, block = arrays[0].shape[1], BLOCKS[platform]
    size = -(-s // block) * block
    padded = [jnp.pad(x, ((0, 0), (0, size - s), (0, 0), (0, 0))) for x in arrays]
    tables = jax.tree.leaves(_splash_kernel(size, interpret)) if platform == "tpu" else []
    table_axes = tuple(table.ndim for table in tables)
    # Tokens attend only to their own segment: 0 for the given ones, 1 for the padding.
    segments = (jnp.arange(size) >= s).astype(jnp.int32)
    out = _divided(platform, interpret, is_gradient, table_axes)(*padded, segments, *tables)
    return jax.tree.map(lambda x: x[:, :s], out)


@cache
def _divided(platform: str, interpret: bool, is_gradient: bool, table_axes: tuple[int, ...]):
    """A function of arrays, segments and tables that each device runs on its part of the first axis and the heads."""

    def attend(segments, tables, *qkv):
        if platform == "tpu":
            return _splash(*qkv, segments, tables, interpret)  # pyright: ignore[reportCallIssue]
        return _triton(*qkv, segments, interpret)  # pyright: ignore[reportCallIssue]

    def forward(q, k, v, segments, *tables):
        return attend(segments, tables, q, k, v)

    def gradient(q, k, v, out, segments, *tables):
        return jax.vjp(partial(attend, segments, tables), q, k, v)[1](out)

    function, inputs, outputs = (gradient, 4, 3) if is_gradient else (forward, 3, 1)

    def partition(mesh, arguments, results):
        n, _, heads, _ = (*arguments[0].sharding.spec, *(None,) * 4)[:4]
        divided = NamedSharding(mesh, PartitionSpec(n, None, heads, None))
        whole = NamedSharding(mesh, PartitionSpec())
        taken = (divided,) * inputs + (whole,) * (len(arguments) - inputs)
        return mesh, function, jax.tree.map(lambda _: divided, results), taken

    array = "n s k d"
    tables = [" ".join(f"t{i}{j}" for j in range(axes)) for i, axes in enumerate(table_axes)]
    rule = f"{', '.join([array] * inputs + ['s'] + tables)} -> {', '.join([array] * outputs)}"
    divided = custom_partitioning(function)
    whole = ("s", "d", *" ".join(tables).split())
    divided.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
    return divided


def _triton(q: Array, k: Array, v: Array, segments: Array, interpret: bool) -> Array:
    from jax.experimental.pallas.ops.gpu import attention as triton

    ids = jnp.broadcast_to(segments, q.shape[:2])
    return triton.mha(q, k, v, ids, sm_scale=1 / math.sqrt(q.shape[-1]), interpret=interpret)


def _splash(
    q: Array, k: Array, v: Array, segments: Array, tables: tuple[Array, ...], interpret: bool
) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    structure = jax.tree.structure(_splash_kernel(q.shape[1], interpret))
    kernel = jax.tree.unflatten(structure, tables)
    ids = splash_attention_kernel.SegmentIds(q=segments, kv=segments)
    # The kernel does not divide scores by sqrt(d).
    q = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    of_head = lambda *qkv: kernel(*(x[None] for x in qkv), ids)[0]  # noqa: E731
    return jax.vmap(jax.vmap(of_head, 1, 1))(q, k, v)


def _splash_kernel(size: int, interpret: bool):
    """The kernel for one head. Its tables list the blocks that are not masked away: here every one."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    block = BLOCKS["tpu"]
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((size, size))]),
        block_sizes=splash_attention_kernel.BlockSizes(*(block,) * 8),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
