"""Training steps of a tiny UNet on a mesh: what one device and many must agree on."""

import jax
import numpy as np

from sv3d_jax.parallel.devices import device_mesh, global_batch, local_rows, place_tree
from sv3d_jax.parallel.rules import tree_shardings
from sv3d_jax.train.config import DiffusionConfig, OptimizerConfig, TrainConfig
from sv3d_jax.train.loop import compiled_step
from sv3d_jax.train.losses import OrbitBatch, unet_loss
from sv3d_jax.train.optimizer import make_optimizer
from sv3d_jax.train.state import new_state
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG

ROWS, FRAMES, STEPS = 8, 3, 5
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
LOSS = unet_loss(CONFIG, DiffusionConfig(token_dropout=0.3, latent_dropout=0.3))


def batch(step: int, rows: slice = slice(None)) -> OrbitBatch:
    """Rows of the batch of a step, the same whoever asks."""
    rng = np.random.default_rng(step)
    side = CONFIG.native_size // CONFIG.vae.downsampling
    whole = OrbitBatch(
        latents=rng.normal(size=(ROWS, FRAMES, side, side, 4)).astype(np.float32),
        input_latents=rng.normal(size=(ROWS, side, side, 4)).astype(np.float32),
        tokens=rng.normal(size=(ROWS, CONFIG.unet.context_width)).astype(np.float32),
        polar_rad=rng.uniform(1, 2, (ROWS, FRAMES)).astype(np.float32),
        azimuth_rad=rng.uniform(0, 6, (ROWS, FRAMES)).astype(np.float32),
        frame_index=np.tile(np.arange(FRAMES, dtype=np.float32), (ROWS, 1)),
    )
    return jax.tree.map(lambda leaf: leaf[rows], whole)


def first_params() -> dict:
    return {"unet": reference_params(CONFIG)["unet"]}


def placed_batch(step: int, mesh) -> OrbitBatch:
    return global_batch(batch(step, local_rows(mesh)(ROWS)), mesh, ROWS)


def gradients(text: str, devices=None):
    """Loss and gradient of the first batch, the gradient split as its parameters are."""
    mesh = device_mesh(text, devices)
    shardings = tree_shardings(first_params(), mesh)
    params = place_tree(first_params(), shardings)
    run = jax.jit(jax.value_and_grad(LOSS), out_shardings=(None, shardings))
    return run(params, placed_batch(0, mesh), jax.random.key(1))


def train(text: str, devices=None, state=None, steps=range(STEPS), **changes):
    """State and losses after some steps from the first parameters, or from a state."""
    mesh = device_mesh(text, devices)
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    state = state or begin(mesh)
    config = TrainConfig(output=".", **changes)
    step = compiled_step(config, LOSS, lambda params, frozen: params, optimizer, state)
    losses = []
    for index in steps:
        state, metrics = step(state, {}, placed_batch(index, mesh), jax.random.key(index))
        losses.append(float(metrics["loss"]))
    return state, np.array(losses)


def begin(mesh):
    """The state before the first step, split over the mesh."""
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    like = jax.eval_shape(lambda: new_state(first_params(), optimizer))
    shardings = tree_shardings(like, mesh)
    params = place_tree(first_params(), shardings.params)
    return jax.jit(lambda params: new_state(params, optimizer), out_shardings=shardings)(params)
