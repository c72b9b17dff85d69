"""Orbits of the published web demo, which differ from those of the published command line."""

import numpy as np

from sv3d_jax.cameras.orbit import DYNAMIC_SAMPLES, dynamic_samples


def published_dynamic_orbit(length: int, elevation_deg: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths and elevations in degrees as the web demo returns them: ceil(84 / (84 // length)) views."""
    azimuths, elevations = (
        np.roll(x[:: DYNAMIC_SAMPLES // length], -1) for x in dynamic_samples(elevation_deg, seed)
    )
    return azimuths, elevations


def published_demo_azimuths_deg(num_frames: int) -> np.ndarray:
    """Static azimuths of the web demo: the last one is 360, where the published command line has 0."""
    return np.linspace(0.0, 360.0, num_frames + 1)[1:]
