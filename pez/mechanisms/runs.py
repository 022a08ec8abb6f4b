"""What the experiments share: layers and bands, folders, the record of a run, data of the ball sets with controls.

config_mechanisms_RUN.json has an entry a sub-command: its options, what it saw, provenance. Sub-commands of one run
name share one encoder: another one's features or passes are refused.

Every table has columns control, control_seed ("" and 0: the main curve), n_clips, n_groups (clips, and groups of them
that are resampled), seed, and protocol: `nested` (settings of a probe chosen inside the training folds), `paper`
(fitted on what it scores, as in C.12), `fixed` (fitted on training folds, nothing to choose), `none` (nothing fitted).
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import COUNT, COUNT_OR_NONE, Number
from pez.controls import BALLS
from pez.encoder.pooling import POOLINGS
from pez.errors import UserError
from pez.files import check_run_name, locked, write_csv, write_json, write_parquet, write_text
from pez.probes.data.ball import variables
from pez.probes.data.companions import Companions
from pez.probes.data.controls import ControlSource, control_data
from pez.probes.data.groupings import GROUPINGS
from pez.probes.data.probe_data import (
    POSSIBLE,
    Features,
    ProbeData,
    Variable,
    check_layers,
    feature_precision,
    scene_names,
    store_features,
)
from pez.probes.folds import Folds, make_folds, scene_folds
from pez.probes.scores.bootstrap import BootstrapCurve
from pez.probes.solvers.regression import NORM_MODES
from pez.probes.solvers.sweep import blas_threads
from pez.provenance import provenance
from pez.records import MechanismRecord, read_record
from pez.store import CAPTURES, FeatureStore, open_stores

ZONE = (0.2, 0.4)  # layer / (depth - 1) of what the paper calls the Physics Emergence Zone without listing its layers
VELOCITY = "velocity"
SPEED, DIRECTION = "speed", "direction"
NARROW = 512  # features
SPLITS = {"paper80": 0.2, "paper70": 0.3}  # the paper's random divisions (C.11, C.12): share of clips held out


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every sub-command has."""
    parser.add_argument(
        "--run-name", required=True, help="names what is written; sub-commands of one name belong together"
    )
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR, help="where results are written")
    parser.add_argument(
        "--seed", type=Number(int, least=0, most=2**32 - 1), default=0, help="of folds, draws and resamples"
    )
    parser.add_argument(
        "--bootstrap", type=COUNT_OR_NONE, default=1000, help="resamples of groups for intervals; 0: none"
    )
    parser.add_argument("--zone-layers", metavar="FIRST-LAST", help="the zone (default: 0.2 to 0.4 of the last layer)")


def add_feature_arguments(parser: argparse.ArgumentParser, pooling: str, controls: Sequence[str]) -> None:
    """Add the options of experiments on stored features of the velocity set."""
    features = parser.add_argument_group("features")
    features.add_argument("--feature-root", type=Path, required=True, help="what step2_extract.py wrote")
    features.add_argument("--residual-capture", default="resid_post", choices=CAPTURES, help="of the features")
    features.add_argument("--pooling", default=pooling, choices=list(POOLINGS), help="of the features")
    features.add_argument("--layers", nargs="+", type=int, help="only these (default: all)")
    features.add_argument("--norm-mode", default="zscore", choices=NORM_MODES, help="of features, by training clips")
    features.add_argument(
        "--grouping", default="direction_spatial_sector", choices=GROUPINGS, help="clips kept together"
    )
    features.add_argument("--folds", type=Number(int, least=2), default=N_FOLDS, help="of the grouped cross-validation")
    parser.set_defaults(split=None)  # of experiments without `add_split_argument`
    features.add_argument("--control", nargs="+", default=[], choices=controls, help="do the same with these")
    features.add_argument("--control-seeds", type=COUNT, default=3, help="draws of seeded controls")


def add_split_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option of experiments that the paper ran on one random division of the clips."""
    parser.add_argument(
        "--split",
        choices=list(SPLITS),
        help="the paper's: 20 or 30 %% of clips drawn at random and held out once, to compare with its numbers "
        "(default: grouped folds, which are the ones to quote)",
    )


def paper_folds(n_clips: int, split: str, seed: int) -> Folds:
    """Fold 0: the clips that `split` holds out. The others are four folds, to choose settings by; a clip is a group."""
    order = np.random.default_rng(seed).permutation(n_clips)
    n_held = round(SPLITS[split] * n_clips)
    fold = np.zeros(n_clips, dtype=np.int64)
    fold[order[n_held:]] = 1 + np.arange(n_clips - n_held) % 4
    return Folds(np.array([f"clip {number}" for number in range(n_clips)]), fold)


def n_scored(folds: Folds, split: str | None) -> int:
    """How many folds are scored: all of them, of a `split` the first alone."""
    return folds.n_folds if split is None else 1


@dataclass(frozen=True)
class BallData:
    """Features of the velocity set to experiment on: the main data, its folds, and the controls' data."""

    store: FeatureStore
    capture: str
    pooling: str
    main: ProbeData
    folds: Folds
    controls: tuple[ProbeData, ...]

    @property
    def all(self) -> tuple[ProbeData, ...]:
        """The main data, then the controls."""
        return (self.main, *self.controls)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many clips, and groups of them."""
        return len(self.store.clips), self.folds.n_groups

    @property
    def about(self) -> dict[str, Any]:
        """Entries about these features in the record of a run."""
        options = {"n_folds": self.folds.n_folds, "capture": self.capture, "pooling": self.pooling}
        return {**options, "features": self.store.settings}


def ball_data(args: argparse.Namespace, also: Sequence[str] = ()) -> BallData:
    """Features of the velocity set with speed and direction (cos, sin), folds and controls, as the options say.

    Controls run on as many seeds as asked for. UserError for features that are not there, by the command that makes
    them.
    """
    stores = open_stores(args.feature_root)
    if VELOCITY not in stores:
        raise UserError(
            f"{args.feature_root} has no features of the velocity set: extract them with "
            f"step2_extract.py --pooling {args.pooling}"
        )
    store, capture = stores[VELOCITY], args.residual_capture
    pooling = store.check(capture, args.pooling)
    probed = [each for each in variables("fig2c", store, "sincos") if each.name in (SPEED, DIRECTION)]
    targets = np.concatenate([variable.targets for variable in probed], axis=1)
    if args.split is None:
        folds = make_folds(store, args.grouping, args.folds, args.seed, targets)
    else:
        folds = paper_folds(len(store.clips), args.split, args.seed)
    main = ProbeData(
        name=store.name,
        clips=store.clips,
        group=folds.group,
        variables=tuple(probed),
        layers=check_layers(args.layers, store.depth, store.directory),
        depth=store.depth,
        features=store_features(store, capture, pooling),
        norm_mode=args.norm_mode,
        described=store.settings,
        precision=feature_precision(store.settings, pooling),
    )
    companions = Companions(Path(args.feature_root), store, capture, pooling, args.control_seeds)

    def seeds(control: str):
        return [(companion, seed) for companion, seed in companions(control) if seed <= args.control_seeds]

    source = ControlSource(store, capture, pooling, seeds, BALLS, args.control_seeds, args.seed)
    controls = control_data(main, [*args.control, *also], source)
    return BallData(store, capture, pooling, main, folds, tuple(controls))


def movie_data(
    store: FeatureStore, layers: Sequence[int], features: Features, n_folds: int, seed: int, split: str | None = None
) -> tuple[ProbeData, Folds]:
    """Movies of a store with whether they are possible as a quantity, 1 or 0, and folds of whole scenes, or of `split`,
    which parts the movies of a scene."""
    targets = store.clips[POSSIBLE].to_numpy(dtype=np.float64)[:, None]
    data = ProbeData(
        name=store.name,
        clips=store.clips,
        group=scene_names(store.clips),
        variables=(Variable(POSSIBLE, "movies", targets, "", (POSSIBLE,), kind="quantity"),),
        layers=tuple(layers),
        depth=store.depth,
        features=features,
        described=store.settings,
    )
    if split is not None:
        return data, paper_folds(len(store.clips), split, seed)
    return data, Folds(data.group, scene_folds(store.clips, n_folds, seed))


def curve_name(control: str, seed: int) -> str:
    """Name of a curve in the names of folders and tensors."""
    return f"{control}_{seed}" if control else "main"


def named(data: ProbeData, **more: Any) -> dict[str, Any]:
    """The columns that name the curve of a row, and the columns `more`."""
    return {"control": data.control, "control_seed": data.control_seed, **more}


def scored(curve: BootstrapCurve, at: int, n_resamples: int, name: str = "value") -> dict[str, float]:
    """Columns of the score of a curve at one place: itself, `low` and `high`, empty where nothing was resampled."""
    low, high = curve.interval()[at] if n_resamples else (np.nan, np.nan)
    return {name: curve.estimate[at], "low": low, "high": high}


def tabled(
    rows: Sequence[dict] | pd.DataFrame, args: argparse.Namespace, protocol: str, n_clips: int, n_groups: int
) -> pd.DataFrame:
    """A table with the columns that all tables share at its start and end; a row's own values in them stay."""
    table = pd.DataFrame(rows)
    shared = {"control": "", "control_seed": 0, "n_clips": n_clips, "n_groups": n_groups, "seed": args.seed}
    for name, value in {**shared, "protocol": protocol}.items():
        own = table[name].fillna(value) if name in table else pd.Series(value, index=table.index)
        table[name] = own.astype(type(value))
    ends = ["control", "control_seed"], ["n_clips", "n_groups", "seed", "protocol"]
    own_columns = [name for name in table if name not in (*ends[0], *ends[1])]
    return table[[*ends[0], *own_columns, *ends[1]]]


@contextlib.contextmanager
def threads_for(store: FeatureStore) -> Iterator[None]:
    """Inside this block an operator keeps to one core, if features are narrow: cores that share a small matrix mostly
    wait for each other, several times as long as one takes. numpy and scipy have threads of their own."""
    if store.settings["width"] >= NARROW:
        yield
        return
    with blas_threads(1), threadpool_limits(limits=1):
        yield


def of_variable(data: ProbeData, name: str) -> ProbeData:
    """The data with one variable only."""
    chosen = tuple(variable for variable in data.variables if variable.name == name)
    return dataclasses.replace(data, variables=chosen)


def zone_layers(asked: str | None, depth: int) -> list[int]:
    """The zone's layers; UserError for one outside the depth."""
    if asked is None:
        inside = [layer for layer in range(depth) if ZONE[0] * (depth - 1) <= layer <= ZONE[1] * (depth - 1)]
        return inside or [round(sum(ZONE) / 2 * (depth - 1))]
    first, _, last = asked.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
        raise UserError(f"--zone-layers is FIRST-LAST, such as 5-9; got {asked}: write it so")
    if not int(first) <= int(last or first) < depth:
        raise UserError(
            f"--zone-layers {asked} is not within 0-{depth - 1}, the layers of this encoder: choose among those"
        )
    return list(range(int(first), int(last or first) + 1))


def bands(zone: Sequence[int], depth: int) -> dict[str, list[int]]:
    """The zone, and as many layers at the start and at the end of the depth."""
    n = len(zone)
    return {"zone": list(zone), "early": list(range(n)), "late": list(range(depth - n, depth))}


def folder_of(args: argparse.Namespace, command: str) -> Path:
    """Where the parts of a sub-command's passes lie."""
    return Path(args.results_dir) / f"mechanisms_{check_run_name(args.run_name)}" / command


def record_path(results_dir: Path, run_name: str) -> Path:
    """The record of a run."""
    return Path(results_dir) / f"config_mechanisms_{run_name}.json"


def check_encoder(args: argparse.Namespace, described: dict[str, Any]) -> None:
    """UserError if the run's name has results of another encoder or resolution; `described` as of a store."""
    path = record_path(args.results_dir, check_run_name(args.run_name))
    if not path.is_file():
        return
    recorded = read_record(path, MechanismRecord)["encoder"]
    for name in ("model", "weights_sha256", "resolution"):
        if name in recorded and recorded[name] != described.get(name):
            raise UserError(
                f"{path} is of {name} {recorded[name]}, now asked for {described.get(name)}: choose another --run-name"
            )


def check_same(encoder: dict[str, Any], features: dict[str, Any]) -> None:
    """UserError unless the features come from this encoder."""
    for name in ("weights_sha256", "resolution"):
        if encoder[name] != features[name]:
            raise UserError(
                f"the encoder is of {name} {encoder[name]}, the features of {features[name]}: give --model, --weights "
                "and --model-resolution as step2_extract.py had them"
            )


def write_results(
    args: argparse.Namespace,
    command: str,
    tables: Mapping[str, Sequence[dict] | pd.DataFrame | str],
    about: dict[str, Any],
    protocol: str,
    n_clips: int,
    n_groups: int,
) -> list[Path]:
    """Write a sub-command's results and its entry in the run's record; the paths of all files.

    Args:
        tables: contents of NAME_RUN.SUFFIX by "NAME.SUFFIX": rows of a csv or parquet (see `tabled`), or a text.
        about: the record's entries beside options and provenance; `features`: settings of a store or pass.
    """
    writers = {"csv": write_csv, "parquet": write_parquet, "md": write_text}
    paths = []
    for name, content in tables.items():
        stem, _, suffix = name.partition(".")
        whole = content if isinstance(content, str) else tabled(content, args, protocol, n_clips, n_groups)
        paths.append(writers[suffix](args.results_dir / f"{stem}_{args.run_name}.{suffix}", whole))
    return [*paths, record(args, command, {"n_clips": n_clips, "n_groups": n_groups, **about})]


def record(args: argparse.Namespace, command: str, about: dict[str, Any]) -> Path:
    """Write a sub-command's entry into the run's record."""
    path = record_path(args.results_dir, args.run_name)
    options = {name: value for name, value in vars(args).items() if name not in ("debug", "function")}
    with locked(path.parent / ".locks" / path.name, quietly=True):
        recorded = (
            read_record(path, MechanismRecord)
            if path.is_file()
            else {"run_name": args.run_name, "encoder": {}, "commands": {}}
        )
        described = about.get("features", {})
        names = ("model", "weights_label", "weights_sha256", "resolution", "depth", "width", "dtype")
        recorded["encoder"] |= {name: described[name] for name in names if name in described}
        recorded["commands"][command] = {"options": options, **about, "provenance": provenance()}
        return write_json(path, recorded)


def entry(results_dir: Path, run_name: str, command: str) -> dict[str, Any]:
    """The record's entry of a sub-command; UserError if it was not run."""
    path = record_path(results_dir, run_name)
    commands = read_record(path, MechanismRecord)["commands"] if path.is_file() else {}
    if command not in commands:
        raise UserError(f"run {run_name} has no results of {command}: run `step4_mechanisms.py {command}` first")
    return commands[command]
