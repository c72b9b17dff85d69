"""The optimisation loop."""

import jax
import jax.numpy as jnp
import pytest

from sv3d_jax.errors import Cancelled
from sv3d_jax.recon import fit as fit_module
from sv3d_jax.recon.fit import Look, fit, load_arrays, save_arrays


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


def test_begin_opens_every_call():
    state, _ = fit(
        lambda state, data, key: (state, {}),
        jnp.zeros(()),
        None,
        12,
        jax.random.key(0),
        steps_per_call=4,
        begin=lambda state, key: state + 1,
    )
    assert float(state) == 3.0


def test_a_callback_ends_the_fit():
    calls = []

    def cancel(info):
        calls.append(info.step)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(towards, jnp.ones(()), jnp.zeros(()), 100, jax.random.key(0), cancel, steps_per_call=5)
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
        fit(noisy, start(), None, 12, jax.random.key(5), cut, steps_per_call=2, save=save)
    resumed, resumed_log = fit(
        noisy, start(), None, 12, jax.random.key(5), lambda info: calls.append(info.step), 2, save=save
    )
    assert calls == [2, 4, 6, 8, 10, 12]
    assert resumed["x"].tolist() == whole["x"].tolist() and resumed_log == log
    assert not save.exists()


@pytest.mark.parametrize(
    ("every", "seen"), [(1, [4, 8, 12, 16]), (6, [8, 12, 16]), (8, [8, 16]), (100, [16])]
)
def test_a_look_is_due_once_its_steps_are_done_and_in_the_end(every, seen):
    looks = []
    look = Look(every, lambda step, state: looks.append((step, float(state))))
    fit(
        lambda state, data, key: (state + 1, {}),
        jnp.zeros(()),
        None,
        16,
        jax.random.key(0),
        None,
        4,
        look=look,
    )
    assert looks == [(step, step) for step in seen]


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
        choose=lambda state: steps[2 if state < 4 else 3],
    )
    assert float(state) == 36.0


def crowding(size):
    """A step with noise that needs room of 4."""

    def step(state, data, key):
        x = state["x"] + jax.random.normal(key)
        return {"x": x, "room": state["room"], "crowded": jnp.asarray(size < 4)}, {"x": x}

    return step


def fit_in(room, retried, **options):
    """Fit with room to begin with, doubled where a call needs more; sizes that were too small go into `retried`."""

    def retry(before, after):
        if not after["crowded"]:
            return None
        retried.append(int(before["room"]))
        return {**before, "room": 2 * before["room"]}

    steps = {size: crowding(size) for size in (1, 2, 4)}
    state = {"x": jnp.zeros(()), "room": jnp.asarray(room), "crowded": jnp.asarray(False)}
    return fit(
        steps[room],
        state,
        None,
        12,
        jax.random.key(3),
        steps_per_call=4,
        choose=lambda state: steps[int(state["room"])],
        retry=retry,
        **options,
    )


def test_a_call_that_is_made_again_loses_no_step():
    retried = []
    (state, log), (expected, expected_log) = fit_in(1, retried), fit_in(4, [])
    assert retried == [1, 2] and float(state["x"]) == float(expected["x"]) and log == expected_log


def test_what_was_learnt_about_room_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)

    def cut(info):
        raise Cancelled

    with pytest.raises(Cancelled):
        fit_in(1, [], callback=cut, save=tmp_path / "fit.npz")
    retried = []
    resumed, log = fit_in(1, retried, save=tmp_path / "fit.npz")
    whole, whole_log = fit_in(1, [])
    assert not retried and float(resumed["x"]) == float(whole["x"]) and log == whole_log


def test_saved_arrays_come_back_in_their_structure(tmp_path):
    tree = {"layers": [{"kernel": jnp.eye(2)}, {"kernel": jnp.ones((1, 3))}], "name": "field"}
    save_arrays(tmp_path / "a.npz", tree)
    back = load_arrays(tmp_path / "a.npz", {"layers": [{"kernel": 0}, {"kernel": 0}], "name": ""})
    assert str(back["name"]) == "field" and back["layers"][1]["kernel"].shape == (1, 3)
