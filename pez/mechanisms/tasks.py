"""Other tasks by layer (Figure 12): where they become readable, beside speed and direction of the same clips.

    shuffled    original clips or the same with their frames in another order (the stores that step 2 makes with
                --control shuffled_frames, or any other order given by --order): accuracy, a clip's two versions in
                one fold
    speed, direction    R^2 of the same clips, as elsewhere
    appearance  which of 16 figures, 4 outlines by 4 textures, a picture shows that stands still: accuracy; in place of
                the paper's ImageNet
    count       how many of 1 to 4 figures there are, standing still and drifting: accuracy; in place of CLEVRER. Their
                area together does not tell

The last two are drawn here (`draw`) and run through the encoder, which must be the features'. Pictures and features lie
under mechanisms_RUN/tasks. Probes: ridge, nested; classes by least squares on 0 and 1. The paper's own ImageNet,
Something-Something and CLEVRER need data that is not here. These are tasks of their own, not the control tasks of
Hewitt and Liang (random labels by type): where a clip's condition is its label those degenerate, and shuffled labels
and random weights do their work.

    tasks_RUN.csv   task metric chance layer value low high
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pez.cli import Number
from pez.controls import frame_orders
from pez.encoder.arguments import add_encoder_arguments, encoder_from_arguments, pass_options
from pez.encoder.extract import extract_features
from pez.encoder.sources import ClipSource
from pez.files import atomic_path, fingerprint, run_lock
from pez.mechanisms.passes import encoder_passes
from pez.mechanisms.runs import (
    DIRECTION,
    SPEED,
    add_feature_arguments,
    add_run_arguments,
    ball_data,
    check_encoder,
    check_same,
    curve_name,
    folder_of,
    named,
    of_variable,
    scored,
    write_results,
    zone_layers,
)
from pez.probes.data.companions import Companions
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, grouped_folds
from pez.probes.scores.bootstrap import (
    BootstrapCurve,
    bootstrap_accuracy,
    bootstrap_mean,
    bootstrap_r2,
    group_resamples,
)
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate
from pez.progress import progress
from pez.store import FeatureStore

READ = ("shuffled", SPEED, DIRECTION)  # from stored features
DRAWN = {"appearance": ("appearance",), "count": ("count, still", "count, moving")}  # by a pass of the encoder
OUTLINES, TEXTURES, MOST = ("disc", "square", "triangle", "ring"), ("plain", "stripes", "checks", "rings"), 4
ROOM = 0.46  # of a figure's cell: its largest radius


# ---------------------------------------------------------------- drawn tasks


def _figure(outline: str, texture: str, x: np.ndarray, y: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a figure is, and where its texture has its second colour, bool [R, R] each; x, y from its centre."""
    x, y = x / radius, y / radius
    away = np.hypot(x, y)
    inside = {
        "disc": away < 1,
        "square": np.maximum(abs(x), abs(y)) < np.sqrt(np.pi) / 2,  # all but the ring have the disc's area
        "triangle": (y > -0.78) & (2 * abs(x) * 0.866 + y < 1.55),
        "ring": (away < 1) & (away > 0.5),
    }[outline]
    second = {
        "plain": np.zeros_like(inside),
        "stripes": np.sin(8 * x) > 0,
        "checks": np.sin(6 * x) * np.sin(6 * y) > 0,
        "rings": np.sin(9 * away) > 0,
    }[texture]
    return inside, second


def draw(task: str, label: int, n_frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Frames of one clip, uint8 [n_frames, size, size, 3]; one frame where nothing moves.

    `label` is the class of "appearance" (outline times 4 plus texture), or how many figures there are, less one. Place,
    colours, size and turn are drawn by `rng`; of counts every figure keeps to a cell of its own, and the area of all
    together has the same range for every count.
    """
    row, column = np.mgrid[:size, :size] + 0.5
    back, tilt = rng.integers(70, 150, 3), rng.uniform(-40, 40, 2)
    ground = back + (column / size - 0.5)[..., None] * tilt[0] + (row / size - 0.5)[..., None] * tilt[1]
    moving, counting = task.endswith("moving"), task.startswith("count")
    cells = rng.permutation(MOST)[: label + 1] if counting else [0]
    half = size / 2 if counting else size
    area = rng.uniform(0.02, 0.04) * size**2  # four of these fit their cells, one of all fits its own
    figures = []
    for cell in cells:
        outline, texture = (OUTLINES[rng.integers(4)], TEXTURES[rng.integers(4)])
        if not counting:
            outline, texture = OUTLINES[label // 4], TEXTURES[label % 4]
        radius = np.sqrt(area / len(cells) / np.pi) if counting else rng.uniform(0.12, 0.3) * size
        middle = np.array([cell % 2, cell // 2]) * half * counting + half / 2
        room = max(ROOM * half - 1.6 * radius, 0)
        start, end = middle + rng.uniform(-room, room, (2, 2))
        bright = rng.choice([10, 245], 3) + rng.integers(-10, 11, 3)  # unlike the ground in every channel
        colours = np.stack([bright, 255 - bright])
        figures.append((outline, texture, radius, rng.uniform(0, 2 * np.pi), start, end if moving else start, colours))
    frames = []
    for part in np.linspace(0, 1, n_frames) if moving else [0.0]:
        frame = ground.copy()
        for outline, texture, radius, turn, start, end, colours in figures:
            x, y = column - start[0] - part * (end - start)[0], row - start[1] - part * (end - start)[1]
            x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
            inside, second = _figure(outline, texture, x, y, radius)
            frame[inside] = np.where(second[inside, None], colours[1], colours[0])
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def drawn_source(task: str, folder: Path, n_clips: int, n_frames: int, size: int, seed: int) -> ClipSource:
    """A drawn task's clips as PNG files under `folder`; missing files are drawn. Classes take turns."""
    n_classes = MOST if task.startswith("count") else len(OUTLINES) * len(TEXTURES)
    settings = {"task": task, "n_clips": n_clips, "n_frames": n_frames, "size": size, "seed": seed}
    paths, place = {}, folder / fingerprint(settings)[:8]
    for number in progress(range(n_clips), description=f"drawing {task}", unit="clip"):
        name = f"clip_{number:05d}"
        n_drawn = n_frames if task.endswith("moving") else 1
        files = [place / f"{name}_{frame:02d}.png" for frame in range(n_drawn)]
        if not all(path.is_file() for path in files):
            place.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([seed, number])
            for path, frame in zip(files, draw(task, number % n_classes, n_frames, size, rng)):
                with atomic_path(path) as temporary:
                    Image.fromarray(frame).save(temporary, format="PNG")
        paths[name] = files if len(files) == n_frames else files * n_frames
    clips = pd.DataFrame({"clip_id": list(paths), "label": np.arange(n_clips) % n_classes})
    described = {"name": place.name, "fingerprint": fingerprint(settings), "settings": settings}
    return ClipSource(task, clips, None, paths, described, n_frames, mend=f"remove {place} and run the command again")


def classes(store: FeatureStore, capture: str, pooling: str, layers, n_folds: int, seed: int):
    """(ProbeData, Folds) of a drawn task's features; each class is a column of 0 and 1."""
    label = store.clips["label"].to_numpy(dtype=int)
    names = tuple(f"class {number}" for number in range(label.max() + 1))
    variable = Variable("class", store.name, np.eye(len(names))[label], "", names, kind="quantity")
    group = store.clips["clip_id"].to_numpy(dtype=str)
    data = ProbeData(
        name=store.name,
        clips=store.clips,
        group=group,
        variables=(variable,),
        layers=tuple(layers),
        depth=store.depth,
        features=lambda layer: store.layer(capture, pooling, layer),
        described=store.settings,
    )
    return data, Folds(group, grouped_folds(group, n_folds, seed, store.clips["label"]))


def drawn_jobs(args: argparse.Namespace, balls) -> list[tuple[str, ProbeData, Folds]]:
    """Every drawn task that was asked for, of the encoder and of its controls: extracted, or read where it is."""
    tasks = [part for name, parts in DRAWN.items() if name in args.task for part in parts]
    if not tasks:
        return []
    encoder, jobs = encoder_from_arguments(args), []
    check_same(encoder.description(), balls.store.settings)
    encoders = list(encoder_passes(args, encoder))
    folder, n_frames = folder_of(args, "tasks"), balls.store.settings["n_tubelets"] * encoder.layout.tubelet
    for task in tasks:
        source = drawn_source(task, folder / "pictures", args.task_clips, n_frames, encoder.resolution, args.seed)
        for each in encoders:
            place = folder / curve_name(each.kind, each.seed) / source.settings["name"]
            store = extract_features(
                each.encoder, source, place, captures=[balls.capture], poolings=[balls.pooling], **pass_options(args)
            )
            data, folds = classes(store, balls.capture, balls.pooling, balls.main.layers, args.folds, args.seed)
            jobs.append((task, dataclasses.replace(data, control=each.kind, control_seed=each.seed), folds))
    return jobs


# ---------------------------------------------------------------- scores


def score_task(task: str, data: ProbeData, folds: Folds, resamples) -> tuple[BootstrapCurve, str, float]:
    """Score of a task's nested probes by layer, its name, and chance."""
    (predictions,) = cross_validate(data, (folds,), linear_solver("ridge"), ("nested",))
    target, predicted = predictions.variable.targets, predictions.predicted[0]
    if task in (SPEED, DIRECTION):
        return bootstrap_r2(target, predicted, data.group, resamples), "R²", 0.0
    if predictions.variable.name == "class":
        right = predicted.argmax(-1) == target.argmax(-1)
        return bootstrap_mean(right * 1.0, data.group, resamples, 0.0, 1.0), "accuracy", 1 / target.shape[1]
    curve = bootstrap_accuracy(target[:, 0] > 0.5, predicted[..., 0], data.group, resamples, threshold=0.5)
    return curve, "accuracy", 0.5


def versions(data: ProbeData, other, folds: Folds, order: str) -> tuple[ProbeData, Folds]:
    """Two versions of every clip, the second from `other` (layer -> [clips, d]); the task is to read which it is."""
    n = len(data.clips)
    label = np.repeat([1.0, 0.0], n)[:, None]
    variable = Variable(f"original_or_{order}", data.name, label, "", ("original",), kind="quantity")
    clips = pd.concat([data.clips, data.clips.assign(clip_id=data.clips["clip_id"] + f"/{order}")], ignore_index=True)
    group = np.tile(data.group, 2)
    doubled = dataclasses.replace(
        data,
        clips=clips,
        group=group,
        variables=(variable,),
        features=lambda layer: torch.cat([data.features(layer), other(layer)]),
    )
    return doubled, Folds(group, np.tile(folds.fold, 2))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `step4_mechanisms.py tasks`."""
    add_run_arguments(parser)
    add_feature_arguments(parser, "mean", ["random_weights"])
    parser.add_argument(
        "--task",
        nargs="+",
        default=list(READ),
        choices=[*READ, *DRAWN],
        help="tasks to read (default: those of stores)",
    )
    parser.add_argument(
        "--task-clips", type=Number(int, least=16), default=320, help="clips drawn of appearance, of count"
    )
    orders = [order for order in frame_orders() if order != "original"]
    parser.add_argument("--order", default="shuffled_frames", choices=orders, help="of the other version's frames")
    add_encoder_arguments(parser)


def main(args: argparse.Namespace) -> list[Path]:
    """Read the tasks; the path of the table."""
    balls = ball_data(args)
    check_encoder(args, balls.store.settings)
    jobs: list[tuple[str, ProbeData, Folds]] = []
    for data in balls.all:
        jobs += [(task, of_variable(data, task), balls.folds) for task in (SPEED, DIRECTION) if task in args.task]
    if "shuffled" in args.task:
        find = Companions(Path(args.feature_root), balls.store, balls.capture, balls.pooling, args.control_seeds)
        ((store, _),) = find(args.order)

        def other(layer: int) -> torch.Tensor:
            return store.layer(balls.capture, balls.pooling, layer, balls.store.clips["clip_id"])

        jobs.append((f"original or {args.order}", *versions(balls.main, other, balls.folds, args.order)))
    jobs += drawn_jobs(args, balls)
    rows = []
    with run_lock(args.results_dir, f"mechanisms_{args.run_name}"):
        for task, data, folds in jobs:
            resamples = group_resamples(data.group, max(args.bootstrap, 1), args.seed, folds.n_folds)
            curve, metric, chance = score_task(task, data, folds, resamples)
            of_task = named(data, task=task, metric=metric, n_clips=len(data.clips), n_groups=folds.n_groups)
            for at, layer in enumerate(data.layers):
                rows.append({**of_task, "chance": chance, "layer": layer, **scored(curve, at, args.bootstrap)})
        about = {"zone": zone_layers(args.zone_layers, balls.store.depth), "features": balls.store.settings}
        return write_results(args, "tasks", {"tasks.csv": rows}, about, "nested", *balls.sizes)
