"""Which clips belong together.

Groupings (a group is in one fold only):
    position                  start index of the grid. Starts `paper` and `in_view` are drawn afresh for each condition,
                              so a group shares an index and a rank, not a place; of sets drawn in orbits (`matched`,
                              `endless`) it is the point, so that orbits stay whole. It is the default of such sets:
                              any other grouping but axis tears orbits, and is refused, because which clip of an orbit
                              is missing from the training folds gives the answer away
    condition                 direction x magnitude
    video                     every clip its own group: plain cross-validation
    direction, magnitude      one condition factor; tests the probe on values it never saw
    pixel_region              cell of a 4 x 4 grid on the image that holds the ball's mean position
    spatial_sector            one of 8 sectors of 45 degrees, about the image centre, that holds the start
    spatial_cluster           k-means of the starts, 10 clusters, seeded
    axis                      direction modulo 180 degrees: a motion and its opposite stay together
    direction_spatial_sector, magnitude_spatial_sector   products of two of the above
    held_out_speed            every speed (of the acceleration set: magnitude) but the smallest and the largest is one
                              fold: predictions interpolate to a value never trained on. The two extremes always train
    held_out_direction        every direction is one fold; on a circle each has neighbours on both sides

With the last two `--folds` has no say. A fold holds one value, so it has no R^2 of its own: read the pooled R^2 and the
mean absolute error.
"""

from typing import cast

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from constants import RESOLUTION
from pez.errors import UserError, check_choice
from pez.probes.data.ball import clip_means
from pez.probes.data.probe_data import Clips, step1_settings

# to what the clips of a group share: columns of the clip table, or what `_shared` makes of them
_SHARED = {
    "position": ("start_index",),
    "condition": ("direction_deg", "magnitude"),
    "video": ("clip_id",),
    "direction": ("direction_deg",),
    "magnitude": ("magnitude",),
    "pixel_region": ("pixel_region",),
    "spatial_sector": ("sector",),
    "spatial_cluster": ("cluster",),
    "axis": ("axis",),
    "direction_spatial_sector": ("direction_deg", "sector"),
    "magnitude_spatial_sector": ("magnitude", "sector"),
    "held_out_speed": ("magnitude",),
    "held_out_direction": ("direction_deg",),
}
GROUPINGS = tuple(_SHARED)
HELD_OUT = GROUPINGS[-2:]
PUBLISHED_GROUPINGS = {  # to what a group shares
    "position": ("start_index",),
    "condition": ("direction_deg", "magnitude"),
    "video": ("direction_deg", "magnitude", "start_index"),
    "direction": ("direction_deg",),
    "magnitude": ("magnitude",),
    "spatial_sector": ("sector",),
    "direction_spatial_sector": ("direction_deg", "sector"),
    "magnitude_spatial_sector": ("magnitude", "sector"),
}
_GRID, _SECTORS, _CLUSTERS = 4, 8, 10
_IMAGE_SECTORS = 5
_WORDS = {"direction_deg": "direction", "start_index": "start"}


def groups(store: Clips, grouping: str, seed: int = 0) -> np.ndarray:
    """Group name of every clip of a store, [n] of str; UserError if the clips lack what the grouping needs."""
    check_choice("--grouping", grouping, GROUPINGS)
    names = [_shared(store, factor, seed) for factor in _SHARED[grouping]]
    return np.array([" ".join(each) for each in zip(*names)])


def _shared(store: Clips, factor: str, seed: int) -> list[str]:
    """What every clip has of a factor, in words."""
    clips = store.clips
    if factor == "clip_id":
        return cast(list[str], clips["clip_id"].tolist())
    if factor == "pixel_region":
        places = clip_means(store, ["x_px", "y_px"])
        cells = np.floor(places / _resolution(store) * _GRID).clip(0, _GRID - 1).astype(int)
        return [f"row {row} column {column}" for column, row in cells]
    if factor in ("sector", "cluster"):
        starts = _need(clips, "start_x_m", "start_y_m").to_numpy(dtype=np.float64)
        if factor == "sector":  # counter-clockwise from +x; the camera looks at the world's origin
            turns = np.mod(np.arctan2(starts[:, 1], starts[:, 0]) / (2 * np.pi), 1.0)
            values = np.minimum((turns * _SECTORS).astype(int), _SECTORS - 1)
        else:
            n_clusters = min(_CLUSTERS, len(np.unique(starts, axis=0)))
            values = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(starts)
    elif factor == "axis":
        values = _need(clips, "direction_deg")["direction_deg"] % 180
    else:
        values = _need(clips, factor)[factor]
    return [f"{_WORDS.get(factor, factor)} {value:g}" for value in values]


def published_groups(store: Clips, grouping: str) -> tuple[np.ndarray, np.ndarray]:
    """Groups of the published recipe: name [n] of every clip's, and number [n], in the order of what they share.

    Sectors are five, on the picture, about its centre, from where the ball is in the first frame. UserError for a
    grouping that the recipe has not, or clips that lack what it needs.
    """
    if grouping not in PUBLISHED_GROUPINGS:
        raise UserError(
            f"--grouping {grouping} does not go with --recipe published, which has {', '.join(PUBLISHED_GROUPINGS)}: "
            "use one of them"
        )
    columns = PUBLISHED_GROUPINGS[grouping]
    shared = _need(store.clips, *(name for name in columns if name != "sector")).assign(sector=0)
    if "sector" in columns:
        first = store.frames.sort_values("frame").groupby("clip_id")[["x_px", "y_px"]].first()
        away = first.reindex(store.clips["clip_id"]).to_numpy(dtype=np.float64) - _resolution(store) / 2
        if not np.isfinite(away).all():
            lacking = store.clips["clip_id"][~np.isfinite(away).all(axis=1)].iloc[0]
            raise UserError(f"clip {lacking} has no ground-truth position: use a --grouping without sectors")
        turns = (np.arctan2(away[:, 1], away[:, 0]) + np.pi) / (2 * np.pi)
        shared["sector"] = np.floor(turns * _IMAGE_SECTORS).astype(int).clip(0, _IMAGE_SECTORS - 1)
    number = shared.groupby(list(columns), sort=True).ngroup().to_numpy()
    words = {**_WORDS, "sector": "image sector"}
    names = [" ".join(f"{words.get(name, name)} {row[name]:g}" for name in columns) for _, row in shared.iterrows()]
    return np.array(names), number


def has_orbits(clips: pd.DataFrame) -> bool:
    """Whether a ball set was drawn in orbits: points that are crossed in every direction (pez/stimuli/orbits.py)."""
    return "point" in clips.columns


def default_grouping(clips: pd.DataFrame) -> str:
    """The grouping of a clip set where none is named: whole orbits, or direction and sector of the start."""
    return "position" if has_orbits(clips) else "direction_spatial_sector"


def torn_orbit(clips: pd.DataFrame, group: np.ndarray) -> tuple[str, str] | None:
    """Two clips of one orbit that are in different groups; None if every orbit is whole, or there are none."""
    if not has_orbits(clips):
        return None
    for _, orbit in pd.Series(group).groupby(clips["point"].to_numpy()):
        elsewhere = orbit.index[orbit != orbit.iloc[0]]
        if len(elsewhere):
            first, other = orbit.index[0], elsewhere[0]
            return str(clips["clip_id"].iloc[first]), str(clips["clip_id"].iloc[other])
    return None


def _need(clips: pd.DataFrame, *columns: str) -> pd.DataFrame:
    missing = [column for column in columns if column not in clips.columns]
    if missing:
        raise UserError(
            f"the clips carry no {missing[0]}, which this --grouping needs: use --grouping video, or a ball set"
        )
    return clips[list(columns)]


def _resolution(store: Clips) -> int:
    """Pixels a side of the clips."""
    return int(step1_settings(store).get("resolution", RESOLUTION))
