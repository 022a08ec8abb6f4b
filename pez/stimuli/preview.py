"""A contact sheet and a GIF of a clip set, to see at a glance what was made."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from pez.files import atomic_path
from pez.stimuli.clipset import ClipSet
from pez.stimuli.conditions import UNITS

TILE, GAP, HEADER, MARGIN = 128, 6, 26, 58  # pixels
SHEET_MIN_WIDTH = 340  # room for the title
GIF_TILE, GIF_FRAME_MS, GIF_HOLD_MS = 160, 80, 640  # half speed, then a rest on the last frame
INK, PAPER = (40, 40, 44), (255, 255, 255)
EMPTY_CLIPS = 15  # whose median is the empty scene
STROBE_FRAMES = 5  # ball positions shown in a tile, first (pale) to last (full)


def write_previews(clip_set: ClipSet) -> tuple[Path, Path]:
    """Write contact_sheet.png and sample.gif into the set's folder; returns both paths."""
    return write_contact_sheet(clip_set), write_gif(clip_set)


def write_contact_sheet(clip_set: ClipSet) -> Path:
    """One tile a condition (direction down, magnitude across): its first clip as a strobe picture.

    Of a set that varies something a tile shows any one of its clips, so that many levels are seen.
    """
    clips = clip_set.clips
    if "vary" in clip_set.settings:
        clips = clips.sample(frac=1, random_state=0)
    clips = clips.drop_duplicates(["direction_deg", "magnitude"])
    directions = sorted(clips["direction_deg"].unique())
    magnitudes = sorted(clips["magnitude"].unique())
    step = TILE + GAP
    size = (max(SHEET_MIN_WIDTH, MARGIN + step * len(magnitudes) + GAP), 2 * HEADER + step * len(directions) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), _title(clip_set), fill=INK, font=ImageFont.load_default(12))
    for column, magnitude in enumerate(magnitudes):
        middle = MARGIN + column * step + TILE // 2
        pen.text((middle, 2 * HEADER - 6), _amount(clip_set, magnitude), INK, ImageFont.load_default(13), anchor="ms")
    for row, direction in enumerate(directions):
        middle = 2 * HEADER + row * step + TILE // 2
        pen.text((MARGIN - GAP, middle), f"{direction:g}°", INK, ImageFont.load_default(13), anchor="rm")
    empty = None if "vary" in clip_set.settings else empty_scene(clip_set)
    for _, clip in clips.iterrows():
        column, row = magnitudes.index(clip["magnitude"]), directions.index(clip["direction_deg"])
        frames = _frames(clip_set, clip["clip_id"])
        picture = strobe(frames, np.median(frames, axis=0) if empty is None else empty)  # a scene of its own
        tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (MARGIN + column * step, 2 * HEADER + row * step))
    path = clip_set.directory / "contact_sheet.png"
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path


def write_gif(clip_set: ClipSet) -> Path:
    """One clip a direction, side by side, at half speed; magnitudes go round so that all appear."""
    chosen = _clip_per_direction(clip_set.clips)
    tiles = [_labelled(clip_set, clip) for _, clip in chosen.iterrows()]
    columns = min(4, len(tiles))
    frames = [_grid([tile[index] for tile in tiles], columns) for index in range(len(tiles[0]))]
    durations = [GIF_FRAME_MS] * (len(frames) - 1) + [GIF_HOLD_MS]
    # one palette for all frames, or the floor flickers
    palette = _grid([tile[len(tile) // 2] for tile in tiles], columns).quantize(128)
    pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    path = clip_set.directory / "sample.gif"
    with atomic_path(path) as temporary:
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def empty_scene(clip_set: ClipSet) -> np.ndarray:
    """The scene without a ball, float [h, w, 3]: the median over clips, or the floor's colour if they are few."""
    chosen = clip_set.clips["clip_id"].iloc[np.unique(np.linspace(0, len(clip_set.clips) - 1, EMPTY_CLIPS).astype(int))]
    pictures = np.stack([_frames(clip_set, clip)[0] for clip in chosen])
    empty = np.median(pictures, axis=0)
    even = np.zeros_like(empty) + np.median(empty, axis=(0, 1))
    return cast(np.ndarray, empty if len(pictures) >= EMPTY_CLIPS else even)


def strobe(frames: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """A clip's frames uint8 [frames, h, w, 3] in one picture: the ball at several times, paler the earlier."""
    picture = empty.copy()
    for share, index in zip(np.linspace(0.3, 1.0, STROBE_FRAMES), _spread(len(frames)), strict=True):
        changed = np.abs(frames[index] - empty).max(axis=-1, keepdims=True) > 2
        picture = np.where(changed, share * frames[index] + (1 - share) * picture, picture)
    return cast(np.ndarray, np.rint(picture).astype(np.uint8))


def _spread(count: int) -> np.ndarray:
    return np.rint(np.linspace(0, count - 1, STROBE_FRAMES)).astype(int)


def _frames(clip_set: ClipSet, clip_id: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in clip_set.frame_paths(clip_id)])


def _clip_per_direction(clips: pd.DataFrame) -> pd.DataFrame:
    magnitudes = sorted(clips["magnitude"].unique())
    picks = []
    for index, (_, rows) in enumerate(clips.groupby("direction_deg")):
        wanted = magnitudes[index % len(magnitudes)]
        picks.append(rows.assign(_off=(rows["magnitude"] - wanted).abs()).sort_values("_off", kind="stable").head(1))
    return pd.concat(picks)


def _labelled(clip_set: ClipSet, clip: pd.Series) -> list[Image.Image]:
    label = f"{clip['direction_deg']:g}°  {_amount(clip_set, clip['magnitude'])}"
    tiles = []
    for frame in _frames(clip_set, clip["clip_id"]):
        tile = Image.new("RGB", (GIF_TILE, GIF_TILE + HEADER), PAPER)
        tile.paste(Image.fromarray(frame).resize((GIF_TILE, GIF_TILE), Image.Resampling.LANCZOS), (0, HEADER))
        ImageDraw.Draw(tile).text((GIF_TILE // 2, HEADER // 2), label, INK, ImageFont.load_default(14), anchor="mm")
        tiles.append(tile)
    return tiles


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    rows = -(-len(tiles) // columns)
    grid = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    for index, tile in enumerate(tiles):
        grid.paste(tile, (GAP + index % columns * width, GAP + index // columns * height))
    return grid


def _amount(clip_set: ClipSet, magnitude: float) -> str:
    return f"{magnitude:g} {UNITS.get(clip_set.name, '')}".strip()


def _title(clip_set: ClipSet) -> str:
    return f"{clip_set.name} set, {len(clip_set.clips)} clips; one of each condition; pale = earlier"
