"""How much of motion a single place tells in each ball set, over many draws: the tables of docs/stimuli.md.

    python -m pez.stimuli.place                   # some minutes on a core; nothing is rendered
    python -m pez.stimuli.place --draws 5 --sets matched turns

Motion is scored as R^2 of direction as (cos, sin), of the size of the motion and of its vector, read from places by
boosted trees, cross-validated over points (or starts): near the best that any reader of the same numbers can do.
"""

import argparse
import sys
from typing import cast

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict

from pez.stimuli.camera import OVERHEAD
from pez.stimuli.conditions import condition_table
from pez.stimuli.generate import set_settings
from pez.stimuli.motions import motion_of, unit_vector, wrapped
from pez.stimuli.orbits import STEPS
from pez.stimuli.physics import DEFAULT_PHYSICS

FRAMES = (0, 4, 7, 11, 15)
DESIGNS = {  # name in the table: set, start positions
    "paper": ("velocity", "paper"),
    "in_view": ("velocity", "in_view"),
    "matched": ("velocity", "matched"),
    "endless": ("velocity", "endless"),
    "turns": ("turns", "matched"),
    "acceleration paper": ("acceleration", "paper"),
    "acceleration matched": ("acceleration", "matched"),
}


def draws_of(design: str, draws: int) -> tuple[pd.DataFrame, np.ndarray, float | None]:
    """Clip table, places [clips, 16, 2] (m, as seen) of `draws` paper-size sets of a design, and the floor's period."""
    tables = []
    for seed in range(draws):
        settings = set_settings(DESIGNS[design][0], "paper", "auto", seed, DESIGNS[design][1], 256)
        table = condition_table(settings)
        tables.append(table.assign(group=table["start_index"] + 1000 * seed))
    clips, period = pd.concat(tables, ignore_index=True), settings.get("period_m")
    frames = slice(None, None, DEFAULT_PHYSICS.steps_per_frame)
    path = np.stack([motion_of(row).path(STEPS)[frames] for row in clips.to_dict("records")])
    return clips, wrapped(path, period)[0] if period else path, period


def score(features: np.ndarray, targets: np.ndarray, group: np.ndarray) -> float:
    """Pooled R^2 of `targets` [n, k] read from `features` [n, m]; folds keep `group` [n] whole."""
    model = HistGradientBoostingRegressor(max_iter=40, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=200)
    predictions = [cross_val_predict(model, features, column, groups=group, cv=GroupKFold(3)) for column in targets.T]
    return float(1 - ((targets - np.stack(predictions, 1)) ** 2).sum() / ((targets - targets.mean(axis=0)) ** 2).sum())


def targets_of(clips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Direction (cos, sin), size and vector of each clip's motion."""
    direction = np.stack([unit_vector(value) for value in clips["direction_deg"]])
    size = clips["magnitude"].to_numpy()[:, None]
    return {"direction": direction, "size": size, "vector": size * direction}


def readers_of(path: np.ndarray, period: float | None) -> dict[str, np.ndarray]:
    """Features [clips, m] by name: places in `FRAMES`, mean place, displacement, last and second difference."""

    def between(first: int, last: int) -> np.ndarray:
        way = path[:, last] - path[:, first]
        nearest = way - period * np.round(way / period) if period else way
        return cast(np.ndarray, np.round(nearest, 9))  # trees would read rounding errors

    def with_length(way: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(way, axis=1, keepdims=True)
        return np.hstack([way, length, way / np.maximum(length, 1e-9)])

    readers = {f"frame {frame}": path[:, frame] for frame in FRAMES}
    readers["mean"] = path.mean(axis=1)
    readers["displacement"] = with_length(between(0, 15))
    readers["last two frames"] = with_length(between(14, 15))
    return readers | {"three places": with_length(np.round(between(8, 15) - between(0, 7), 9))}


def in_view(path: np.ndarray) -> float:
    """Share of clips whose ball is fully in view in all frames (on an endless floor: share of frames)."""
    radius = DEFAULT_PHYSICS.ball_radius_m
    seen = OVERHEAD.sphere_in_view(np.concatenate([path, np.full((*path.shape[:2], 1), radius)], axis=-1), radius)
    return float(seen.all(axis=1).mean())


def table(design: str, draws: int) -> pd.DataFrame:
    """R^2 of each target (rows) from each reader (columns) in a design."""
    clips, path, period = draws_of(design, draws)
    readers, group = readers_of(path, period), clips["group"].to_numpy()
    wanted = targets_of(clips)
    if design == "turns":
        wanted |= {
            f"direction t{i}": np.stack([unit_vector(value) for value in clips[f"direction_deg_t{i}"]])
            for i in (0, 3, 6)
        }
    rows = {
        name: {r: score(features, target, group) for r, features in readers.items()} for name, target in wanted.items()
    }
    scores = pd.DataFrame(rows).T
    scores.insert(0, "clips", len(clips))
    scores.insert(1, "clips in view", in_view(path))
    return scores


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="pez.stimuli.place", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=40, help="paper-size sets of each design")
    parser.add_argument("--sets", nargs="+", choices=DESIGNS, default=list(DESIGNS), help="designs")
    args = parser.parse_args()
    for design in args.sets:
        print(f"\n{design}\n{table(design, args.draws).round(2).to_string()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
