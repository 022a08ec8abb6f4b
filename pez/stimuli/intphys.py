"""IntPhys trees by the names they had before pez.movies."""

from pathlib import Path

import pandas as pd

from pez.movies import dataset_at
from pez.movies.dataset import sample_frames
from pez.movies.intphys import INTPHYS, INTPHYS_MINI, MOVIES, SUBTASKS, frame_paths

__all__ = ["DATA", "MOVIES", "STAND_IN", "SUBTASKS", "data_name", "frame_paths", "read_intphys", "sample_frames"]

DATA, STAND_IN = INTPHYS.title, INTPHYS_MINI.title


def read_intphys(
    root: str | Path, *, skip_damaged: bool = False, max_scenes_per_block: int | None = None
) -> pd.DataFrame:
    """`MovieDataset.movies` of IntPhys or its stand-in, whichever is at `root`."""
    return dataset_at(root).movies(root, skip_damaged=skip_damaged, max_scenes=max_scenes_per_block)


def data_name(root: str | Path) -> str:
    """What the movies under `root` are called in tables and figures."""
    return dataset_at(root).title
