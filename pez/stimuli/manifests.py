"""From conditions to the two manifests of a clip set: simulate every clip, then say what each frame shows."""

import numpy as np
import pandas as pd

from pez.runs import progress
from pez.stimuli.camera import OVERHEAD, velocity_to_pixels, world_to_pixel
from pez.stimuli.conditions import initial_motion
from pez.stimuli.physics import DEFAULT_PHYSICS, Trajectory, simulate


def manifests(conditions: pd.DataFrame, settings: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clip and frame tables, as clipset.py describes them, for a table of conditions."""
    frames, visible = [], []
    rows = conditions.to_dict("records")
    for row in progress(rows, description=f"{settings['set']}: simulating", unit="clip"):
        velocity, acceleration = initial_motion(row["set"], row["direction_deg"], row["magnitude"])
        start = (row["start_x_m"], row["start_y_m"])
        trajectory = simulate(start, velocity, acceleration, settings["n_frames"])
        table = frame_table(row["clip_id"], trajectory, settings["resolution"])
        frames.append(table)
        visible.append(table["fully_visible"].mean())
    clips = conditions.assign(visible_fraction=visible, n_frames=settings["n_frames"])
    return clips, pd.concat(frames, ignore_index=True)


def frame_table(clip_id: str, trajectory: Trajectory, resolution: int) -> pd.DataFrame:
    """Ground truth of one clip, a row a frame, in world units and in pixels per frame (y down)."""
    place, speed, change = trajectory.position, trajectory.velocity, trajectory.acceleration
    rate, radius = DEFAULT_PHYSICS.frame_rate, DEFAULT_PHYSICS.ball_radius_m
    pixels = world_to_pixel(place, resolution)
    speed_px = velocity_to_pixels(speed, place, resolution, rate)
    change_px = velocity_to_pixels(change, place, resolution, rate**2)
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
            "radius_px": radius * OVERHEAD.pixels_per_metre(place, resolution),
            "fully_visible": OVERHEAD.sphere_in_view(place, radius),
        }
    )
