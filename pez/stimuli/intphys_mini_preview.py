"""A contact sheet and a GIF a block of the IntPhys stand-in, to see what is possible and what is not."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pez.files import atomic_path
from pez.movies.intphys import INTPHYS_MINI, SUBTASKS, frame_paths

TILE, GAP, MARGIN, HEADER = 112, 3, 118, 24  # pixels
COLUMNS = 12  # frames shown of a movie
GIF_TILE, GIF_FRAMES, GIF_FRAME_MS, GIF_HOLD_MS = 192, 50, 120, 900
SCENES_SHOWN = 2  # first scenes of a block: both kinds of O3
INK, PAPER = (40, 40, 44), (255, 255, 255)
TINTS = {True: (0, 114, 178), False: (213, 94, 0)}  # possible, impossible
WORDS = {True: "possible", False: "impossible"}


def preview_files(root: Path) -> list[Path]:
    """Where the previews are: for each block contact_sheet_O1.png, then sample_O1.gif."""
    return [root / name for block in SUBTASKS for name in (f"contact_sheet_{block}.png", f"sample_{block}.gif")]


def write_previews(root: Path) -> list[Path]:
    """Write the previews of every block into `root`; returns their paths."""
    movies = INTPHYS_MINI.movies(root, max_scenes=SCENES_SHOWN)
    for block, shown in movies.groupby("block"):
        shown = shown.sort_values(["scene", "possible", "movie"], ascending=[True, False, True])
        _save(root / f"contact_sheet_{block}.png", contact_sheet(shown))
        _save_gif(root / f"sample_{block}.gif", animation(shown))
    return preview_files(root)


def contact_sheet(movies: pd.DataFrame) -> Image.Image:
    """A row a movie, time to the right; the label at the left. `movies` as pez.movies gives them, one block."""
    step = TILE + GAP
    sheet = Image.new("RGB", (MARGIN + COLUMNS * step, HEADER + len(movies) * step), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 5), _title(movies), INK, ImageFont.load_default(13))
    for row, movie in enumerate(movies.itertuples()):
        top = HEADER + row * step
        pen.text((GAP, top + 36), f"scene {movie.scene}, movie {movie.movie}", INK, ImageFont.load_default(13))
        pen.text((GAP, top + 56), WORDS[movie.possible], TINTS[movie.possible], ImageFont.load_default(14))
        for column, path in enumerate(frame_paths(movie.directory, _spread(movie.n_frames, COLUMNS))):
            sheet.paste(_tile(path, TILE), (MARGIN + column * step, top))
    return sheet


def animation(movies: pd.DataFrame) -> list[Image.Image]:
    """Pictures of a GIF: a column a movie, a row a scene."""
    step, line = GIF_TILE + GAP, GIF_TILE + HEADER
    empty = Image.new("RGB", (4 * step + GAP, HEADER + movies["scene"].nunique() * line), PAPER)
    pen = ImageDraw.Draw(empty)
    pen.text((GAP, 5), _title(movies), INK, ImageFont.load_default(13))
    n_frames = movies["n_frames"].iloc[0]
    chosen = _spread(n_frames, min(GIF_FRAMES, n_frames))
    places: list[tuple[int, int]] = []
    for index, movie in enumerate(movies.itertuples()):
        left, top = GAP + index % 4 * step, HEADER + index // 4 * line
        words = f"{movie.scene}/{movie.movie} {WORDS[movie.possible]}"
        pen.text((left + GIF_TILE // 2, top + 10), words, TINTS[movie.possible], ImageFont.load_default(14), "mm")
        places.append((left, top + HEADER - 4))
    pictures = []
    for paths in zip(*(frame_paths(directory, chosen) for directory in movies["directory"])):
        picture = empty.copy()
        for path, place in zip(paths, places):
            picture.paste(_tile(path, GIF_TILE), place)
        pictures.append(picture)
    return pictures


def _title(movies: pd.DataFrame) -> str:
    block = movies["block"].iloc[0]
    return f"{block} {SUBTASKS[block].replace('_', ' ')}: a stand-in made by this project, not IntPhys"


def _spread(n_frames: int, count: int) -> np.ndarray:
    return np.rint(np.linspace(0, n_frames - 1, count)).astype(int)


def _tile(path: Path, size: int) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def _save(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _save_gif(path: Path, pictures: list[Image.Image]) -> None:
    palette = pictures[len(pictures) // 4].quantize(256)  # one for all frames, or the floor flickers
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [GIF_FRAME_MS] * (len(frames) - 1) + [GIF_HOLD_MS]
    with atomic_path(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=durations, loop=0)
