"""The options of every kind of run, defined once and typed: they make parser, defaults and saved configuration.

add_arguments(parser, BallOptions)
options = from_arguments(BallOptions, args)     # UserError for what cannot be, before any work
recorded(options)                               # for config_RUN.json
"""

import argparse
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from constants import N_FOLDS, RESULTS_DIR
from pez.cli import COUNT, Number
from pez.controls import BALLS, MOVIES, controls_for
from pez.encoder.devices import probe_device
from pez.encoder.pooling import POOLINGS
from pez.errors import UserError
from pez.files import check_run_name
from pez.probes.data.ball import DIRECTION_TARGETS, PROBE_SETS
from pez.probes.data.controls import MODES, REFIT, known_control
from pez.probes.data.groupings import GROUPINGS
from pez.probes.protocols import CHOICES, FIXED_CHOICES
from pez.probes.recipes import OURS, PUBLISHED_DEFAULTS, PUBLISHED_OPTIONS, RECIPES
from pez.probes.scores.bootstrap import N_RESAMPLES
from pez.probes.scores.possibility import SELECTION_METRICS
from pez.probes.solvers.attentive import POOLINGS as TOKEN_POOLINGS
from pez.probes.solvers.attentive_training import SCHEDULES, TOKEN_NORMS
from pez.probes.solvers.linear import LINEAR, linear_solver
from pez.probes.solvers.mlp import EPOCHS, MLP, MLPSolver
from pez.probes.solvers.regression import NORM_MODES
from pez.probes.solvers.solver import Solver
from pez.stimuli.variation import FACTORS
from pez.store import CAPTURES, TRANSFORM_NAMES

Options = TypeVar("Options", bound="RunOptions")
REQUIRED: Any = dataclasses.MISSING


def option(
    default: Any,
    help: str,  # noqa: A002  (argparse's word)
    *,
    names: Sequence[str] = (),
    choices: Callable[[], Iterable[str]] | None = None,
    type: Callable[[str], Any] | None = None,  # noqa: A002
    several: bool = False,
    metavar: str | None = None,
) -> Any:
    """A field of an options class; one whose default is a bool takes no value.

    `names` on the command line, if not the field's alone. `choices` are asked for when a parser is made, so that what
    was registered counts. `type` of numbers is a pez.cli.Number, with their bounds. `several`: one or more values, a
    tuple.
    """
    about = {key: value for key, value in locals().items() if key != "default"}
    return dataclasses.field(default=default, metadata={"option": about})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every run is asked for."""

    run_name: str = option(REQUIRED, "names the files that are written")
    recipe: str = option(
        OURS,
        "published: the choices of the public reproduction, to compare with its numbers (docs/differences.md)",
        choices=lambda: RECIPES,
    )
    protocol: str = option(
        "both",
        "where settings are chosen: on the reported fold, or inside (pez/probes/protocols.py)",
        choices=lambda: CHOICES,
    )
    folds: int = option(N_FOLDS, "of the grouped cross-validation", type=Number(int, least=2, sane=10_000))
    seed: int = option(0, "of folds and clusters, and of what a probe draws", type=Number(int, least=0, most=2**32 - 1))
    repeats: int = option(
        1, "cross-validations, split with seeds seed, seed + 1, ...", type=Number(int, least=1, sane=10_000)
    )
    max_epochs: int | None = option(
        None,
        "epochs of a linear probe at most (default: 400, of adamw100 100)",
        type=Number(int, least=1, most=1_000_000),
    )
    until_converged: bool = option(
        False,
        "probe layers whose probes had not converged again, for more epochs (pez/probes/validation/convergence.py)",
    )
    bootstrap: int = option(
        N_RESAMPLES, "resamples of groups for intervals; 0: none", type=Number(int, least=0, sane=1_000_000)
    )
    control_seeds: int = option(
        3, "draws of the controls shuffled_labels and random_weights", type=Number(int, least=1, sane=1000)
    )
    device: str = option("cpu", "cpu, cuda:0, ...")
    memory_gib: float | None = option(
        None,
        "bound of the probes trained at once (default: a share of a GPU's, a CPU's caches, 3 of an attentive probe)",
        names=("--memory-gib", "--memory-gb"),
        type=Number(float, above=0, sane=1_000_000),
    )
    results_dir: Path = option(RESULTS_DIR, "where results are written", type=Path)


def _linear(options: "BallOptions") -> Solver:
    asked: dict[str, Any] = {"device": options.device, "threads": options.threads, "memory_gib": options.memory_gib}
    return linear_solver(options.solver, options.max_epochs, options.recipe, **asked)


def _mlp(options: "BallOptions") -> Solver:
    epochs = EPOCHS if options.max_epochs is None else options.max_epochs
    return MLPSolver(epochs=epochs, device=options.device, threads=options.threads, seed=options.seed)


# what --solver names
SOLVERS: dict[str, Callable[["BallOptions"], Solver]] = {**dict.fromkeys(LINEAR, _linear), MLP: _mlp}


@dataclass(frozen=True, kw_only=True)
class BallOptions(RunOptions):
    """`step3_probe.py run`; None stands for the default that the features decide."""

    feature_root: Path = option(REQUIRED, "what step2_extract.py wrote", type=Path)
    probe_set: str | None = option(None, "which variables of the ball sets, or", choices=lambda: PROBE_SETS)
    targets: Path | None = option(
        None, "a file of labels of one's own: CSV, parquet, JSON lines (pez/probes/data/labels.py)", type=Path
    )
    variables: tuple[str, ...] = option(
        (),
        "what to read of --targets: scalar, angle_deg, angle_rad, vector, class, pair",
        several=True,
        metavar="NAME:KIND",
    )
    group: str | None = option(
        None, "column of --targets that names groups of clips (default: those with equal labels)"
    )
    skip_unlabelled: bool = option(False, "leave out clips without a label, and labels without a clip")
    solver: str = option("trainable", "trainable: 20 AdamW settings; mlp: one hidden layer", choices=lambda: SOLVERS)
    norm_mode: str = option("zscore", "of features, by training clips", choices=lambda: NORM_MODES)
    grouping: str | None = option(
        None,
        "clips kept together (default: direction_spatial_sector; position of sets drawn in orbits)",
        choices=lambda: GROUPINGS,
    )
    tear_orbits: bool = option(False, "allow a --grouping that parts clips of one orbit")
    swap: str | None = option(
        None,
        "a factor of step1_generate.py --vary: each of its values is read by probes trained on the others",
        choices=lambda: FACTORS,
    )
    direction_target: str | None = option(
        None, "default: angle for fig2c, vxy for the others", choices=lambda: DIRECTION_TARGETS
    )
    residual_capture: str = option("resid_post", "checked against the features", choices=lambda: CAPTURES)
    preprocessing: str = option("resize", "checked against the features", choices=lambda: TRANSFORM_NAMES)
    pooling: str | None = option(None, "needed if the features hold several", choices=lambda: list(POOLINGS))
    control: tuple[str, ...] = option(
        (), "curves to read the main ones against", choices=lambda: controls_for(BALLS), several=True
    )
    control_mode: tuple[str, ...] = option(
        (REFIT,),
        "of controls of frames in another order: refit trains a probe on them, read reads them with the probe of the "
        "clips as they are; both: refit read",
        choices=lambda: MODES,
        several=True,
    )
    unique: bool = option(
        False,
        "also what each layer tells beyond position, pixels and optical flow together, by banded ridge "
        "(pez/probes/solvers/banded.py)",
    )
    layers: tuple[int, ...] | None = option(None, "only these (default: all)", type=int, several=True)
    threads: int | None = option(
        None,
        "CPU threads, one problem each (default: all cores)",
        names=("--threads", "--workers"),
        type=Number(int, least=1, sane=100_000),
    )
    save_probes: bool = option(False, "write the weights of the nested refits as probes_RUN.safetensors")


@dataclass(frozen=True, kw_only=True)
class MovieOptions(RunOptions):
    """`step_intphys_probe.py`, beside the options of movies, features and encoder (pez/probes/data/movies.py)."""

    run_name: str = option("intphys_linear", "names what is written")
    selection_metric: str = option("accuracy", "chooses among the settings", choices=lambda: SELECTION_METRICS)
    control: tuple[str, ...] = option(
        (),
        "probe these too, into controls_RUN.csv; all but shuffled_labels take an encoder pass and as much disk as the "
        "main features (pez/controls.py)",
        type=partial(known_control, kind=MOVIES),
        several=True,
        metavar="NAME",
    )
    layers: tuple[int, ...] | None = option(None, "layers to probe (default: all)", type=int, several=True)


@dataclass(frozen=True, kw_only=True)
class AttentiveOptions(MovieOptions):
    """`step_intphys_attentive.py`."""

    run_name: str = option("intphys_attentive", "names what is written")
    patch_pool: str = option(TOKEN_POOLINGS[0], "the tokens that the probe reads", choices=lambda: TOKEN_POOLINGS)
    lr: tuple[float, ...] = option((1e-4,), "learning rates", type=Number(float, above=0, sane=1000), several=True)
    wd: tuple[float, ...] = option((0.01,), "weight decays", type=Number(float, least=0, sane=1_000_000), several=True)
    selection_metric: str = option(
        "relative_accuracy", "chooses among several settings", choices=lambda: SELECTION_METRICS
    )
    protocol: str = option(
        "both",
        "where setting and stopping epoch are chosen (pez/probes/protocols.py); both: nested, with paper's scores "
        "beside it; fixed: one setting, its last epoch, half the work",
        choices=lambda: FIXED_CHOICES,
    )
    num_epochs: int = option(20, "epochs of training", type=COUNT)
    warmup_epochs: float = option(0.0, "linear warm-up of the learning rate", type=Number(float, least=0))
    probe_batch_size: int = option(16, "movies a training step", type=COUNT)
    num_probe_blocks: int = option(4, "blocks, the cross-attention one included", type=Number(int, least=1, sane=1000))
    probe_heads: int = option(
        16, "attention heads of the probe", names=("--num-heads",), type=Number(int, least=1, sane=10_000)
    )
    token_norm: str = option("layer", "of the tokens before the probe", choices=lambda: TOKEN_NORMS)
    schedule: str = option("cosine", "of the learning rate, to 0 at the last step; or", choices=lambda: SCHEDULES)
    probe_dtype: str = option(
        "auto",
        "of its products; auto: bfloat16 on a GPU, as V-JEPA 2's evaluation has it, else float32",
        choices=lambda: ("auto", "float32", "bfloat16"),
    )


# ---------------------------------------------------------------- to and from a command line


def add_arguments(parser: argparse._ActionsContainer, options: type[RunOptions], leave: Iterable[str] = ()) -> None:
    """Add an argument for every field of an options class but those named in `leave`."""
    for field in dataclasses.fields(options):
        about = field.metadata["option"]
        if field.name in leave:
            continue
        given: dict[str, Any] = {"dest": field.name, "help": about["help"], "action": _Given}
        if field.default is REQUIRED:
            given["required"] = True
        else:
            given["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.default is False:
            given["nargs"] = 0
        elif about["several"]:
            given["nargs"] = "+"
        if about["choices"] is not None:
            given["choices"] = list(about["choices"]())
        parser.add_argument(*_names(field), type=about["type"], metavar=about["metavar"], **given)


class _Given(argparse.Action):
    """Stores a value, True for an option without one, and in `given` that it was named on the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See argparse.Action."""
        setattr(namespace, self.dest, True if self.nargs == 0 else values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def from_arguments(options: type[Options], args: argparse.Namespace) -> Options:
    """An options object from parsed arguments, by the recipe that they name; UserError for a name that cannot be used
    or an option that the recipe has otherwise."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(args, field.name)
        if field.metadata["option"]["several"] and value is not None:
            value = tuple(dict.fromkeys(value))
        values[field.name] = probe_device(value) if field.name == "device" else value
    check_run_name(values["run_name"])
    return by_recipe(options(**values), getattr(args, "given", ()))


def by_recipe(options: Options, given: Collection[str] | None = None) -> Options:
    """`options` with the values that its recipe has; UserError for an option that was given another.

    `given`: fields that the user named; None: those that differ from their default.
    """
    if options.recipe == OURS:
        return options
    fields = {field.name: field for field in dataclasses.fields(options)}
    if given is None:
        given = [name for name, field in fields.items() if getattr(options, name) != field.default]
    values = {name: value for name, value in PUBLISHED_OPTIONS.items() if name in fields}
    if getattr(options, "solver", "") == "ridge":
        values["norm_mode"] = "none"
    for name, value in values.items():
        own = getattr(options, name)
        if name in given and own != value:
            shown = "" if isinstance(own, bool) else f" {own}"
            means = "" if isinstance(value, bool) else f", which means {value}"
            option_name = _names(fields[name])[0]
            raise UserError(f"{option_name}{shown} does not go with --recipe published{means}: leave one of them out")
    if isinstance(options, AttentiveOptions):
        values |= {name: value for name, value in PUBLISHED_DEFAULTS.items() if name not in given}
    return dataclasses.replace(options, **values)


def check_ranges(options: RunOptions) -> None:
    """UserError for the first option whose value is out of its range, for options that no parser has checked."""
    for field in dataclasses.fields(options):
        kind, value = field.metadata["option"]["type"], getattr(options, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(kind, Number) and number is not None:
                kind.check(_names(field)[0], number)


def _names(field: dataclasses.Field[Any]) -> Sequence[str]:
    """What an option is called on the command line."""
    return field.metadata["option"]["names"] or ["--" + field.name.replace("_", "-")]


def recorded(options: RunOptions) -> dict[str, Any]:
    """An options object as a configuration file has it."""
    values = dataclasses.asdict(options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
