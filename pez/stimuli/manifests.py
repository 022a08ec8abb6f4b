"""From conditions to the two manifests of a clip set: simulate every clip, then say what each frame shows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pez.progress import progress
from pez.stimuli.camera import OVERHEAD, Camera, motion_to_pixels, velocity_to_pixels
from pez.stimuli.motions import motion_of, prefixes, wrapped
from pez.stimuli.physics import DEFAULT_PHYSICS, Trajectory, simulate
from pez.stimuli.variation import camera_of, radius_of


def manifests(conditions: pd.DataFrame, settings: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clip and frame tables, as clipset.py describes them, for a table of conditions."""
    frames, visible = [], []
    rows = conditions.to_dict("records")
    objects, period = settings.get("objects", 1), settings.get("period_m")
    for row in progress(rows, description=f"{settings['set']}: simulating", unit="clip"):
        camera, radius = camera_of(row), radius_of(row)
        physics = replace(DEFAULT_PHYSICS, ball_radius_m=radius)
        tables = []
        for prefix in prefixes(objects):
            motion = motion_of(row, prefix)
            way = (motion.start, motion.velocity, motion.acceleration)
            trajectory = simulate(*way, settings["n_frames"], physics, motion.turns)
            tables.append(frame_table(row["clip_id"], trajectory, settings["resolution"], camera, radius, period))
        frames.append(tables[0] if objects == 1 else _joined_tables(tables))
        visible.append(np.all([table["fully_visible"] for table in tables], axis=0).mean())
    clips = conditions.assign(visible_fraction=visible, n_frames=settings["n_frames"])
    return clips, pd.concat(frames, ignore_index=True)


def _joined_tables(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The frame tables of a clip's objects as one: those of the first as they are, then all with their prefixes."""
    named = [
        table.drop(columns=["clip_id", "frame"]).add_prefix(prefix)
        for prefix, table in zip(prefixes(len(tables)), tables, strict=True)
    ]
    return pd.concat([tables[0], *named], axis=1)


def frame_table(
    clip_id: str,
    trajectory: Trajectory,
    resolution: int,
    camera: Camera = OVERHEAD,
    radius: float = DEFAULT_PHYSICS.ball_radius_m,
    period: float | None = None,
) -> pd.DataFrame:
    """Ground truth of one ball, a row a frame, in world units and in pixels per frame (y down) of its camera.

    On an endless floor of `period` m the place is in [-period / 2, period / 2), and `wraps` counts how often it
    jumped by a period since the first frame.
    """
    place, speed, change = trajectory.position, trajectory.velocity, trajectory.acceleration
    wraps = {}
    if period:
        floor_place, times = wrapped(place[:, :2], period)
        place = np.column_stack([floor_place, place[:, 2]])
        jumps = np.abs(np.diff(times, axis=0, prepend=times[:1])).sum(axis=1)
        wraps = {"wraps": np.cumsum(jumps)}
    rate = DEFAULT_PHYSICS.frame_rate
    pixels = camera.project(place, resolution)
    if camera == OVERHEAD:  # the depth stays: a metre is a number of pixels
        speed_px = velocity_to_pixels(speed, place, resolution, rate)
        change_px = velocity_to_pixels(change, place, resolution, rate**2)
    else:
        speed_px, change_px = motion_to_pixels(place, speed, change, resolution, rate, camera)
    return pd.DataFrame(
        {
            "clip_id": clip_id,
            "frame": np.arange(len(place)),
            **dict(zip(("x_m", "y_m", "z_m"), place.T, strict=True)),
            **dict(zip(("vx_m_s", "vy_m_s"), speed[:, :2].T, strict=True)),
            **dict(zip(("ax_m_s2", "ay_m_s2"), change[:, :2].T, strict=True)),
            **dict(zip(("x_px", "y_px"), pixels.T, strict=True)),
            **dict(zip(("vx_px", "vy_px"), speed_px.T, strict=True)),
            **dict(zip(("ax_px", "ay_px"), change_px.T, strict=True)),
            "radius_px": radius * camera.pixels_per_metre(place, resolution),
            "fully_visible": camera.sphere_in_view(place, radius),
            **wraps,
        }
    )
