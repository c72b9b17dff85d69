"""`orbits*.json`: camera paths as the published command line and web demo make them."""

import numpy as np

from sv3d_jax.cameras.orbit import (
    CameraPath,
    draw_dynamic,
    smooth_cyclic,
    static_orbit,
)
from tests.cameras.published import published_demo_azimuths_deg, published_dynamic_orbit
from tests.parity.cases import Case, Family, load_numbers
from tests.parity.compare import EXACT, Tolerance, absolute


def compute(case: Case, path: str) -> dict[str, np.ndarray]:
    given, outputs = case.description, {}
    for index, entry in enumerate(given["static"]):
        azimuths_deg = static_orbit(entry["n"]).azimuths_deg
        outputs[f"static.{index}.cli_azimuths_deg"] = azimuths_deg
        outputs[f"static.{index}.cli_azimuths_rad"] = np.deg2rad(azimuths_deg)
        outputs[f"static.{index}.demo_azimuths_rad"] = np.deg2rad(published_demo_azimuths_deg(entry["n"]))
    if "user_azimuths" in given:
        azimuths_deg = given["user_azimuths"]["azimuths_deg"]
        orbit = CameraPath(np.asarray(azimuths_deg), np.zeros(len(azimuths_deg)))
        outputs["user_azimuths.azimuths_rad"] = np.deg2rad(orbit.azimuths_deg)
    for index, entry in enumerate(given["dynamic"]):
        for name, value in _dynamic(entry).items():
            outputs[f"dynamic.{index}.{name}"] = np.asarray(value, np.float64)
    return outputs


def _dynamic(entry: dict) -> dict[str, np.ndarray | float]:
    azimuths_deg, elevations_deg = published_dynamic_orbit(entry["length"], entry["elev_deg"], entry["seed"])
    raw_azimuths_deg, raw_elevations_deg = draw_dynamic(
        np.random.RandomState(entry["seed"]), entry["elev_deg"]
    )
    smoothed_deg = smooth_cyclic(raw_elevations_deg)
    largest = np.abs(smoothed_deg).max()
    return {
        "n_views": len(azimuths_deg),
        "azimuth_rad": np.deg2rad(azimuths_deg),
        "elevation_rad": np.deg2rad(elevations_deg),
        "first_try.max_abs_smoothed_elev_deg": largest,
        "first_try.accepted": largest < 90.0,
        "first_try.raw_azim_deg": raw_azimuths_deg,
        "first_try.raw_elev_deg": raw_elevations_deg,
        "first_try.smoothed_elev_deg": smoothed_deg,
    }


def tolerance(name: str, path: str) -> Tolerance:
    if name.endswith(("n_views", "accepted")):
        return EXACT
    return Tolerance(1e-12, absolute)


FAMILIES = (
    Family(
        pattern=r"orbits\w*\.json",
        inputs=r"static\.\d+\.n|user_azimuths\.azimuths_deg|dynamic\.\d+\.(seed|length|elev_deg)",
        load=load_numbers,
        compute=compute,
        tolerance=tolerance,
    ),
)
