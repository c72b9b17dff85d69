"""The optimisation loop."""

import jax
import jax.numpy as jnp
import pytest

from sv3d_jax.errors import Cancelled
from sv3d_jax.recon import fit as fit_module
from sv3d_jax.recon.fit import FitHooks, Preview, fit, load_arrays, save_arrays


def towards(state, target, key):
    state = state - 0.1 * (state - target)
    return state, {"loss": (state - target) ** 2}


def test_every_step_is_taken_and_calls_are_whole():
    state, log = fit(
        lambda state, data, key: (state + 1, {}), jnp.zeros(()), None, 10, jax.random.key(0), steps_per_call=4
    )
    assert (float(state), [info.step for info in log]) == (12.0, [4, 8, 12])


def test_losses_of_a_call_are_averaged():
    _, log = fit(towards, jnp.ones(()), jnp.zeros(()), 2, jax.random.key(0), steps_per_call=2)
    assert log[0].losses["loss"] == pytest.approx((0.81 + 0.6561) / 2)


def test_every_call_starts_with_its_hook():
    state, _ = fit(
        lambda state, data, key: (state, {}),
        jnp.zeros(()),
        None,
        12,
        jax.random.key(0),
        steps_per_call=4,
        hooks=FitHooks(before_call=lambda state, key: state + 1),
    )
    assert float(state) == 3.0


def test_a_callback_ends_the_fit():
    calls = []

    def cancel(info):
        calls.append(info.step)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(
            towards,
            jnp.ones(()),
            jnp.zeros(()),
            100,
            jax.random.key(0),
            FitHooks(callback=cancel),
            steps_per_call=5,
        )
    assert calls == [5, 10]


def noisy(state, data, key):
    return {"x": state["x"] + jax.random.normal(key, (3,))}, {"loss": state["x"].sum()}


def start():
    return {"x": jnp.arange(3.0)}


def test_a_fit_that_was_cut_short_goes_on_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    whole, log = fit(noisy, start(), None, 12, jax.random.key(5), steps_per_call=2)
    calls = []

    def cut(info):
        calls.append(info.step)
        if len(calls) == 3:
            raise Cancelled

    save = tmp_path / "fit.npz"
    with pytest.raises(Cancelled):
        fit(noisy, start(), None, 12, jax.random.key(5), FitHooks(callback=cut), 2, save)
    hooks = FitHooks(callback=lambda info: calls.append(info.step))
    resumed, resumed_log = fit(noisy, start(), None, 12, jax.random.key(5), hooks, 2, save)
    assert calls == [2, 4, 6, 8, 10, 12]
    assert resumed["x"].tolist() == whole["x"].tolist() and resumed_log == log
    again, _ = fit(noisy, start(), None, 12, jax.random.key(5), hooks, 2, save)
    assert len(calls) == 6 and again["x"].tolist() == whole["x"].tolist()  # the file holds the finished fit


@pytest.mark.parametrize(
    ("every", "seen"), [(1, [4, 8, 12, 16]), (6, [8, 12, 16]), (8, [8, 16]), (100, [16])]
)
def test_a_preview_is_due_once_its_steps_are_done_and_in_the_end(every, seen):
    shown = []
    preview = Preview(every, lambda step, state: shown.append((step, state))).of(float)

    def step(state, data, key):
        return state + 1, {}

    fit(step, jnp.zeros(()), None, 16, jax.random.key(0), FitHooks(preview=preview), 4)
    assert shown == [(step, step) for step in seen]


def test_the_step_may_follow_the_state():
    def times(factor):
        return lambda state, data, key: (state * factor, {})

    steps = {2: times(2), 3: times(3)}
    state, _ = fit(
        lambda *_: None,
        jnp.ones(()),
        None,
        4,
        jax.random.key(0),
        steps_per_call=1,
        hooks=FitHooks(choose_step=lambda state: steps[2 if state < 4 else 3]),
    )
    assert float(state) == 36.0


def test_fits_that_follow_one_another_count_their_steps_together():
    told = []
    hooks = FitHooks(callback=lambda info: told.append((info.step, info.total)))
    fit(
        lambda state, data, key: (state, {}),
        jnp.zeros(()),
        None,
        4,
        jax.random.key(0),
        hooks,
        2,
        before=6,
        total=10,
    )
    assert told == [(8, 10), (10, 10)]


def test_saved_arrays_come_back_in_their_structure(tmp_path):
    tree = {"layers": [{"kernel": jnp.eye(2)}, {"kernel": jnp.ones((1, 3))}], "name": "field"}
    save_arrays(tmp_path / "a.npz", tree)
    back = load_arrays(tmp_path / "a.npz", {"layers": [{"kernel": 0}, {"kernel": 0}], "name": ""})
    assert str(back["name"]) == "field" and back["layers"][1]["kernel"].shape == (1, 3)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_damaged_save_of_a_fit_is_begun_again(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert load_arrays(tmp_path / "a.npz", {"x": 0}) is None
    (tmp_path / "fit.npz").write_bytes(content)

    def step(state, data, key):
        return state + 1, {}

    state, log = fit(
        step, jnp.zeros(()), None, 8, jax.random.key(0), steps_per_call=4, save=tmp_path / "fit.npz"
    )
    assert float(state) == 8 and len(log) == 2


def test_arrays_of_another_structure_are_not_taken(tmp_path):
    save_arrays(tmp_path / "a.npz", {"x": 0, "y": 1})
    assert load_arrays(tmp_path / "a.npz", {"x": 0}) is None
