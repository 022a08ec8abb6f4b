"""Which clips a folder holds, which files are a clip's frames and in which order, and what is left out and why.

A clip is a film, a folder of pictures, or a folder with its pictures in a subfolder that is named for it (`images`).
Any other folder may be a class of clips (`Archery/v_1.avi`). See docs/inputs.md.
"""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pez.encoder.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from pez.errors import UserError

SYSTEM_NAMES = frozenset(
    ("@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "#recycle")
)
FRAME_FOLDER_NAMES = "images image imgs img frames frame rgb rgba color colour jpegimages jpg png pictures"
KUBRIC_LAYERS = "segmentation normal depth flow forward_flow backward_flow object_coordinates uv"
FRAME_FOLDERS = frozenset(FRAME_FOLDER_NAMES.split())
KUBRIC_FRAMES, KUBRIC_OTHERS = "rgba_#", frozenset(f"{name}_#" for name in KUBRIC_LAYERS.split())


@dataclass(frozen=True)
class FolderClip:
    """A clip of a folder: its film, or its pictures in time order; `class_folder` is empty without one."""

    clip_id: str
    class_folder: str
    entry: Path
    files: list[Path]


@dataclass
class FolderContents:
    """What a folder holds: clips in natural order, remarks to print, what is left out as (path, reason)."""

    clips: list[FolderClip] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)  # what, of which clip
    left_out: list[tuple[Path, str]] = field(default_factory=list)


def as_text(name: str) -> str:
    """A file's name as UTF-8 whatever the locale, with the replacement character for what is none."""
    return os.fsencode(name).decode("utf-8", "replace")


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sorts names as people count: frame_2 before frame_10, upper and lower case alike."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if number % 2 else part.casefold() for number, part in enumerate(parts)], name


def find_clips(directory: Path, n_frames: int, frame_pattern: str | None = None) -> FolderContents:
    """Clips of a folder, by the rules above; `frame_pattern` is a glob that chooses the pictures of a clip folder.

    Raises UserError if two clips have one name, a clip has several series of pictures or several frame folders, or
    `directory` is itself a clip: it has no other, or a numbered series of at least `n_frames` pictures.
    """
    contents = FolderContents()
    entries = _Entries(directory, contents)
    inner = [folder for folder in entries.folders if folder.name.casefold() in FRAME_FOLDERS and _pictures(folder)]
    if inner and any(_pictures(folder) for folder in entries.folders if folder not in inner):
        raise _clip_error(directory, f"its pictures are in {inner[0].name}/")
    for entry in sorted([*entries.films, *entries.folders], key=lambda path: natural_key(path.name)):
        if entry in entries.films:
            contents.clips.append(FolderClip(as_text(entry.stem), "", entry, [entry]))
        else:
            _add_clips(entry, "", frame_pattern, contents)
    longest = max(map(len, _series(entries.pictures).values()), default=0)
    if entries.pictures and (not contents.clips or longest >= n_frames):
        raise _clip_error(directory, f"it holds {len(entries.pictures)} pictures")
    contents.left_out += [(picture, "a picture that is in no clip folder") for picture in entries.pictures]
    entry_by_id: dict[str, Path] = {}
    for clip in contents.clips:
        if "\N{REPLACEMENT CHARACTER}" in clip.clip_id:
            raise UserError(f"{clip.entry} has a name that is not UTF-8: rename it")
        if clip.clip_id in entry_by_id:
            raise UserError(
                f"{entry_by_id[clip.clip_id]} and {clip.entry} would both be clip {clip.clip_id!r}: rename one of them"
            )
        entry_by_id[clip.clip_id] = clip.entry
    return contents


class _Entries:
    """What a folder holds by kind, each in natural order; the rest goes to `contents.left_out`."""

    def __init__(self, folder: Path, contents: FolderContents):
        self.folders: list[Path] = []
        self.films: list[Path] = []
        self.pictures: list[Path] = []
        with os.scandir(folder) as scan:  # knows kinds without a call per file
            entries = sorted(scan, key=lambda entry: natural_key(entry.name))
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir() and not _is_hidden(path):
                if entry.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
                    contents.left_out.append((path, "a link to a folder that it is in"))
                else:
                    self.folders.append(path)
            elif reason := _reason_left_out(entry, path):
                contents.left_out.append((path, reason))
            else:
                (self.films if path.suffix.lower() in VIDEO_SUFFIXES else self.pictures).append(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.casefold() in SYSTEM_NAMES


def _reason_left_out(entry: os.DirEntry[str], path: Path) -> str:
    """Why a file is neither picture nor film, without opening it (a pipe would never answer); empty if it is one."""
    if _is_hidden(path):
        return "hidden or of the system"
    if not entry.is_file():
        return "a link that leads nowhere" if entry.is_symlink() and not path.exists() else "a pipe or device"
    if path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        return f"files {path.suffix.lower()} are not read" if path.suffix else "files without a suffix are not read"
    return ""


def _pictures(folder: Path, pattern: str = "*") -> list[Path]:
    if pattern.endswith("**"):  # which Python before 3.13 takes for folders alone
        pattern += "/*"
    files = [
        file
        for file in folder.glob(pattern)
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(_is_hidden(part) for part in (file, *file.relative_to(folder).parents))
        and file.is_file()
    ]
    return sorted(files, key=lambda path: natural_key(str(path.relative_to(folder))))


def _add_clips(folder: Path, class_folder: str, pattern: str | None, contents: FolderContents) -> None:
    """Add the clip that `folder` is, or the clips of the class that it is."""
    name = as_text(folder.name)
    clip_id = f"{class_folder}/{name}" if class_folder else name
    entries = _Entries(folder, contents)

    def add(files: list[Path], without: list[Path], reason: str) -> None:
        contents.clips.append(FolderClip(clip_id, class_folder, folder, files))
        contents.left_out.extend((path, reason) for path in without)

    if pattern is not None:
        if files := _pictures(folder, pattern):
            chosen = set(files)
            rest = [path for path in (*entries.pictures, *entries.films) if path not in chosen]
            return add(files, rest, "not in --frame-pattern")
    elif entries.pictures and (not entries.films or _series(entries.pictures)):
        files = _one_series(folder, clip_id, entries.pictures, contents)
        without = [*entries.films, *(inner for inner in entries.folders if _pictures(inner))]
        return add(files, without, "beside a clip's own pictures")
    else:
        inner = [path for path in entries.folders if path.name.casefold() in FRAME_FOLDERS and _pictures(path)]
        if len(inner) > 1:
            names = " and ".join(f"{path.name}/" for path in inner)
            raise UserError(
                f"{folder} has pictures in {names}: choose with --frame-pattern, for example "
                f"--frame-pattern '{inner[0].name}/*'"
            )
        if inner:
            files = _one_series(inner[0], clip_id, _Entries(inner[0], contents).pictures, contents)
            without = [*entries.films, *(path for path in entries.folders if path != inner[0])]
            return add(files, without, f"beside a clip's {inner[0].name}/")
    n_before = len(contents.clips)
    if not class_folder:
        for entry in sorted([*entries.films, *entries.folders], key=lambda path: natural_key(path.name)):
            if entry in entries.films:
                contents.clips.append(FolderClip(f"{name}/{as_text(entry.stem)}", name, entry, [entry]))
            else:
                _add_clips(entry, name, pattern, contents)
    if entries.pictures:
        reason = "pictures beside films" if pattern is None else "not in --frame-pattern"
        contents.left_out += [(path, reason) for path in entries.pictures]
    elif len(contents.clips) == n_before:
        deep = class_folder and (entries.films or entries.folders)
        reason = "deeper than CLASS/CLIP" if deep else "a folder without pictures or films"
        contents.left_out.append((folder, reason))
    return None


def _series(pictures: list[Path]) -> dict[str, list[Path]]:
    """Numbered pictures by their name with `#` for its numbers; only names that several pictures have."""
    shapes = defaultdict(list)
    for picture in pictures:
        shapes[re.sub(r"[0-9]+", "#", picture.stem).casefold()].append(picture)
    return {shape: files for shape, files in shapes.items() if "#" in shape and len(files) > 1}


def _one_series(folder: Path, clip_id: str, pictures: list[Path], contents: FolderContents) -> list[Path]:
    """The pictures that are a clip's frames, in order; UserError where only the user can choose."""
    series = _series(pictures)
    if not series:
        return pictures  # names without numbers, or one picture of each name
    if KUBRIC_FRAMES in series and KUBRIC_OTHERS & set(series):
        contents.remarks.append(("Kubric's output: rgba_* is read, its other layers are not", clip_id))
        series = {KUBRIC_FRAMES: series[KUBRIC_FRAMES]}
    if len(series) > 1:
        raise _pattern_error(folder, {shape.replace("#", "*"): len(files) for shape, files in series.items()})
    ((_, files),) = series.items()
    beside = set(pictures) - set(files)
    contents.left_out += [(path, "beside a numbered series of pictures") for path in pictures if path in beside]
    numbers = _last_numbers(folder, files)
    if numbers is not None and len(numbers) > 2:
        steps = [after - before for before, after in zip(numbers, numbers[1:])]
        step = Counter(steps).most_common(1)[0][0]
        if gaps := [f"{before} to {before + size}" for before, size in zip(numbers, steps) if size != step]:
            more = f" and {len(gaps) - 3} more" if len(gaps) > 3 else ""
            contents.remarks.append((f"numbers of frames jump ({', '.join(gaps[:3])}{more})", clip_id))
    return files


def _last_numbers(folder: Path, files: list[Path]) -> list[int] | None:
    """The last number in each name, where only that one changes; UserError if they are several series of one shape."""
    if all(re.fullmatch(r"[0-9]+\.[0-9]+", file.stem) for file in files):
        return None  # seconds with decimals
    prefixes: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        match = re.fullmatch(r"(.*?)([0-9]+)[^0-9]*", file.stem, re.DOTALL)
        assert match is not None, f"{file} has no number in its name"
        before, number = match.groups()
        prefixes[before.casefold()][int(number)].append(file)
    numbers = [number for of_prefix in prefixes.values() for number in of_prefix]
    if len(prefixes) > 1 and len(set(numbers)) < len(numbers):
        raise _pattern_error(folder, {f"{before}*": len(those) for before, those in prefixes.items()})
    for of_prefix in prefixes.values():
        if twice := next((those for those in of_prefix.values() if len(those) > 1), None):
            suffixes = Counter(f"*{file.suffix}" for file in files)
            if len(suffixes) > 1:
                raise _pattern_error(folder, suffixes)
            raise UserError(f"{twice[0]} and {twice[1]} have one number: move one of them to another folder")
    return sorted(numbers) if len(prefixes) == 1 else None


def _pattern_error(folder: Path, series: dict[str, int]) -> UserError:
    names = [f"{pattern} ({count})" for pattern, count in series.items()]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return UserError(
        f"{folder} has several series of pictures: {', '.join(names[:6])}{more}: choose one with --frame-pattern, for "
        f"example --frame-pattern '{next(iter(series))}' ('*' if all are one film in the order of their names)"
    )


def _clip_error(directory: Path, why: str) -> UserError:
    return UserError(
        f"{directory} is itself a clip ({why}): give the folder that it is in, --clips {directory.parent}, or one "
        "that holds it alone"
    )
