"""Small clip sets on disk for tests: a bright square that moves, in the format of pez.stimuli.clipset."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pez.files import write_json, write_parquet


def write_moving_squares(directory: Path, n_clips: int = 5, size: int = 256, n_frames: int = 16) -> Path:
    """Write a clip set of `n_clips` clips named squares_00 ... and return its folder."""
    rows, truth = [], []
    for index in range(n_clips):
        clip_id = f"squares_{index:02d}"
        folder = directory / "clips" / clip_id
        folder.mkdir(parents=True)
        angle = 2 * np.pi * index / n_clips
        for frame in range(n_frames):
            x, y = size / 2 + frame * 4 * np.cos(angle), size / 2 - frame * 4 * np.sin(angle)
            picture = np.full((size, size, 3), 40, np.uint8)
            picture[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = (200, 120, 80)
            Image.fromarray(picture).save(folder / f"frame_{frame:02d}.png")
            truth.append({"clip_id": clip_id, "frame": frame, "x_px": x, "y_px": y})
        rows.append(
            {"clip_id": clip_id, "set": directory.name, "direction_deg": np.degrees(angle), "n_frames": n_frames}
        )
    write_parquet(directory / "clips.parquet", pd.DataFrame(rows))
    write_parquet(directory / "frames.parquet", pd.DataFrame(truth))
    write_json(directory / "clipset.json", {"format": 1, "settings": {"set": directory.name, "seed": 0}})
    return directory


def contents(directory: Path) -> dict[str, str]:
    """SHA-256 of every picture, table and features file under a folder, by relative path."""
    kinds = (".png", ".parquet", ".safetensors")
    files = [path for path in sorted(directory.rglob("*")) if path.suffix in kinds]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
