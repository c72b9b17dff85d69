"""Measures of a generated orbit."""

import numpy as np

from sv3d_jax.train.evaluate import held_out_orbits, own_object, right_frame

TRUTH = np.random.default_rng(0).uniform(-1, 1, (4, 6, 8, 8, 3))


def test_true_pictures_find_their_object_and_frame():
    assert own_object(TRUTH, TRUTH) == 1.0
    assert right_frame(TRUTH, TRUTH) == 1.0


def test_pictures_of_another_object_are_not_its_own():
    assert own_object(np.roll(TRUTH, 1, axis=0), TRUTH) == 0.0


def test_a_neighbouring_frame_counts_and_the_next_but_one_does_not():
    assert right_frame(TRUTH[:, [1, 0, 3, 2, 5, 4]], TRUTH) == 1.0
    assert right_frame(TRUTH[:, [2, 3, 0, 1, 5, 4]], TRUTH) == 2 / 6


def test_half_of_the_held_out_orbits_are_clockwise():
    orbits = held_out_orbits(8, 5, 8).orbits
    steps = [(orbit.azimuths_deg[1] - orbit.azimuths_deg[0]) % 360 for orbit in orbits]
    assert sorted(np.round(steps)) == [72] * 4 + [288] * 4
