"""What is damaged, by which command that must be noticed, and what must be named. Data only; test_faults.py runs it.

Commands run in a copy of the folder that `material.py` builds, where all of them have run once.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import damage
import pandas as pd

WEIGHTS = str(Path(__file__).resolve().parents[1] / "data" / "vjepa2_small_headdim64.pt")
ENCODER = f"--model custom --weights {WEIGHTS} --workers 0"
MOVIES = (
    f"--intphys-root movies/dev --n-frames-sample 4 {ENCODER} --results-dir results --bootstrap 20 --folds 3 "
    "--layers 0 --reuse-features"
)
_COMMANDS = {
    "step1": "step1_generate --dataset velocity --limit 2 --resolution 32 --workers 1 --output-root data",
    "step2": "step2_extract --data-root data --dataset velocity --pooling mean --output-root own "
    f"{ENCODER} --num-heads 1",
    "clips": "step2_extract --clips mine --num-frames 4 --pooling mean --output-root mine_features "
    f"{ENCODER} --num-heads 1",
    "balls": "step3_probe run --run-name balls --feature-root features --probe-set fig2c --solver ridge --bootstrap 20 "
    "--folds 3 --threads 1 --results-dir results --protocol paper --control position",
    "audit": "step3_probe audit --feature-root features --folds 3 --results-dir audits",
    "linear": f"step_intphys_probe --run-name lin --feature-root linear --num-heads 1 {MOVIES} --max-epochs 2 "
    "--protocol paper",
    "attentive": f"step_intphys_attentive --run-name att --feature-root tokens --encoder-num-heads 1 {MOVIES} "
    "--num-heads 1 --num-probe-blocks 1 --num-epochs 1 --protocol fixed",
    "figures": "plot_figures --results-dir results --figures 2c",
}
COMMANDS = {name: shlex.split(words) for name, words in _COMMANDS.items()}


@dataclass(frozen=True)
class Case:
    """One fault: `harm` done to `path` (relative to the material), then `command`, with `options` behind.

    `named`: what the one line of error must have. Without it the command must heal the damage: exit code 0 and, under
    `healed`, the bytes that were there before. `slow` ones run in CI only.
    """

    name: str
    command: str
    path: str = ""
    harm: damage.Damage = field(default=lambda path: None)
    named: str = ""
    healed: str = ""
    options: tuple[str, ...] = ()
    environment: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    closed: tuple[int, ...] = ()


def refused(command: str, path: str, kinds: dict[str, damage.Damage], without: tuple[str, ...] = (), named: str = ""):
    """A file, damaged in every way, that a command must refuse by name."""
    for kind, done in kinds.items():
        if kind not in without:
            yield Case(f"{path}: {kind}", command, path, done, named or Path(path).name)


def healed(command: str, path: str, kinds: dict[str, damage.Damage], under: str, without: tuple[str, ...] = ()):
    """A file, damaged in every way, that a command makes again."""
    for kind, done in kinds.items():
        if kind not in without:
            yield Case(f"{path}: {kind}, made again", command, path, done, healed=under)


def options(command: str, **values: object):
    """Options out of their ranges."""
    for name, several in values.items():
        option = "--" + name.replace("_", "-")
        for value in several if isinstance(several, tuple) else (several,):
            yield Case(f"{command} {option} {value}", command, named=option, options=(option, str(value)))


_FEATURES = "features/velocity/features.json"

_ID_TYPE = ("numbers for names", "other columns")
RELABELLED_FRAMES = damage.table(lambda rows: rows.assign(clip_id="other_" + rows["clip_id"]))

CASES = [
    # ---- JSON of another shape
    *refused("balls", _FEATURES, damage.JSON, without=("a pipe", "a folder")),
    *refused("step2", "own/velocity/features.json", damage.JSON, without=("a pipe", "a folder")),
    *refused("step2", "data/velocity/clipset.json", damage.JSON, without=("a pipe", "a folder")),
    *refused("linear", "movies/dev/STAND_IN.json", damage.JSON, without=("a pipe", "a folder")),
    *refused("figures", "results/config_balls.json", damage.JSON),
    *refused("attentive", "results/layers_att/settings.json", damage.JSON, without=("a pipe", "a folder")),
    *(
        Case(f"{_FEATURES}: {name} {value!r}", "balls", _FEATURES, damage.field(name, value), name)
        for name, value in [
            ("settings", ...),
            ("settings", []),
            ("settings.depth", ...),
            ("settings.depth", "2"),
            ("settings.depth", -1),
            ("settings.depth", 2.5),
            ("settings.captures", []),
            ("settings.captures", "resid_post"),
            ("settings.captures", ["residual"]),
            ("settings.poolings", [3]),
            ("settings.transform", None),
            ("settings.shard_clips", 0),
            ("settings.width", True),
            ("settings.model", 7),
            ("settings.dtype", "float8"),
            ("settings.clip_set", []),
            ("tables", "none"),
        ]
    ),
    Case("features of other clips", "balls", _FEATURES, damage.field("settings.model", "other"), "other settings"),
    Case("a store of other weights", "step2", "own/velocity/features.json", damage.field("settings.width", 3), "width"),
    Case("a set of another seed", "step1", "data/velocity/clipset.json", damage.field("settings.seed", 9), "seed"),
    # ---- tables
    *refused("balls", "features/velocity/clips.parquet", damage.PARQUET),
    *refused("balls", "features/velocity/frames.parquet", damage.PARQUET),
    Case(
        "frames of another set",
        "balls",
        "features/velocity/frames.parquet",
        damage.instead("../acceleration/frames.parquet"),
        "frames.parquet",
    ),
    Case(
        "clips of another set",
        "balls",
        "features/velocity/clips.parquet",
        damage.instead("../acceleration/clips.parquet"),
        "clips.parquet",
    ),
    *refused("step2", "data/velocity/clips.parquet", damage.PARQUET, named="parquet"),
    *refused("step2", "data/velocity/frames.parquet", damage.PARQUET, named="frames.parquet"),
    *refused("figures", "results/predictions_balls.parquet", damage.PARQUET, without=("a pipe", "a folder")),
    *refused(
        "attentive",
        "results/layers_att/layer_00_fold_0.parquet",
        damage.PARQUET,
        without=("a pipe", "a folder", "a bit of its end turned"),  # there: statistics that nobody reads
        named="layers_att",
    ),
    Case(
        "a piece of another fold",
        "attentive",
        "results/layers_att/layer_00_fold_0.parquet",
        damage.instead("layer_00_fold_1.parquet"),
        "layer_00_fold_0",
    ),
    *healed("step2", "own/velocity/clips.parquet", damage.PARQUET, "own", without=("a folder", "a pipe")),
    *healed("step2", "own/velocity/frames.parquet", damage.PARQUET, "own", without=("a folder", "a pipe")),
    *healed("step1", "data/velocity/clips.parquet", {"empty": damage.write("")}, "data"),
    # ---- shards
    *refused("balls", "features/velocity/shards/shard_00000.safetensors", damage.SHARD, named="shard"),
    *healed(
        "step2",
        "own/velocity/shards/shard_00000.safetensors",
        {name: damage.SHARD[name] for name in ("empty", "broken off", "text")},
        "own",
    ),
    # ---- tables of runs
    *refused("figures", "results/results_balls.csv", damage.CSV, named="results_balls"),
    Case("controls cut in half", "figures", "results/controls_balls.csv", damage.CSV["cut in half"], "controls_balls"),
    Case("controls gone", "figures", "results/controls_balls.csv", damage.gone, "controls_balls"),
    Case("the record gone", "figures", "results/config_balls.json", damage.gone, "config_balls"),
    Case(
        "results of another run",
        "figures",
        "results/results_balls.csv",
        damage.instead("results_other.csv"),
        "results_balls",
    ),
    # ---- pictures and trees
    *refused("step2", "data/velocity/clips/velocity_dir0_mag1_start0/frame_03.png", damage.PICTURE, named="frame_03"),
    *refused(
        "linear",
        "movies/dev/O1/01/1/status.json",
        {
            **damage.JSON,
            "no label": damage.write('{"header": {}}'),
            "a label in words": damage.write('{"header": {"is_possible": "yes"}}'),
            "another label": damage.write('{"header": {"is_possible": null}}'),
            "gone": damage.gone,
        },
        named="movies/dev",
    ),
    *refused("linear", "movies/dev/O1/01/1/scene/scene_002.png", damage.PICTURE, named="movies/dev"),
]
CASES += [
    # ---- options
    *options(
        "step1",
        seed=-1,
        limit=(0, -3, "nan"),
        workers=(0, -1, 10**6),
        resolution=(0, 10**6),
        objects=(0, 99),
        speeds=("nan", -1, 0, "inf"),
        num_shards=0,
        samples_per_pixel=-1,
    ),
    *options(
        "step2", batch_size=(0, -1, "x"), num_frames=0, control_seeds=(0, -2), weights_seed=-1, num_shards=(0, -1)
    ),
    *options(
        "balls",
        folds=(0, 1, -3),
        seed=(-1, 2**40),
        bootstrap=-1,
        threads=0,
        repeats=0,
        control_seeds=0,
        memory_gib=("nan", -1, 0, "inf"),
        max_epochs=0,
        run_name=("", "a/b", ".hidden", "a\nb"),
    ),
    *options(
        "attentive",
        lr=("nan", -1, 0, "inf", 1e9),
        wd=("nan", -1, "inf"),
        num_epochs=0,
        probe_batch_size=0,
        num_probe_blocks=0,
        warmup_epochs=("nan", -1),
        n_frames_sample=0,
        max_scenes_per_block=0,
    ),
    *options("audit", folds=1, seed=-1),
    Case("more threads than cores", "balls", healed="features", options=("--threads", "1000")),
    # ---- movies as people have them
    Case(
        "a status with a byte order mark",
        "linear",
        "movies/dev/O1/01/1/status.json",
        lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
        healed="linear",
    ),
    Case("a system file among scenes", "linear", "movies/dev/O1/.DS_Store", damage.write("x"), healed="linear"),
    Case(
        "a system file among frames",
        "linear",
        "movies/dev/O1/01/1/scene/._scene_001.png",
        damage.write("x"),
        healed="linear",
    ),
    Case("a folder beside the movies", "linear", "movies/dev/O1/01/notes.txt", damage.write("x"), healed="linear"),
]
QUICK = {case.name for case in CASES[::12]}  # run by `make test`; CI runs all


def too_many(rows: pd.DataFrame) -> pd.DataFrame:
    """Every row twice."""
    return pd.concat([rows, rows])


KILLS = {
    # command, where what it writes lies, at how many places it is killed
    "step1": ("data", 6),
    "step2": ("own", 8),
    "balls": ("results", 8),
    "linear": ("linear results", 8),
    "attentive": ("tokens results", 10),
    "figures": ("results", 8),
}
