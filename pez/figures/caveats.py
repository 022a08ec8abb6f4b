"""What makes numbers worth less than they look: one list, for the report and for verdict files.

Encoders that were never trained, movies that stand in for others, clips that leave the view or are not those that were
probed, a pooling that sees position, settings chosen on the reported fold, a scalar angle, few groups, missing folds
and controls, probes that had not converged, ties, uncommitted code.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from pez.controls import BALLS, COPY_LAST, controls_for
from pez.controls import MOVIES as OF_MOVIES
from pez.figures.quoted import key_curve, quoted
from pez.figures.verdicts.evidence import FEWEST_GROUPS, Judged
from pez.figures.words import capital, dataset_of, listed, number, spans, spoken
from pez.probes.protocols import FIXED
from pez.probes.recipes import OURS, PUBLISHED, PUBLISHED_NOTE
from pez.probes.results import BALL, MOVIES, SURPRISE, Run, unconverged_in
from pez.probes.scores.bootstrap import FEW_GROUPS
from pez.probes.scores.possibility import OVERALL
from pez.stimuli.clipset import ClipSet
from pez.stimuli.conditions import UNITS
from pez.weights import CARD, TRAINED_HERE, comes_with_project, is_random

OF_SURPRISE = (COPY_LAST, "random_weights")  # the baselines of step_surprise.py
Check = Callable[[Run], Iterable[str]]
PlacesIn = Callable[[Sequence[Run], Sequence[ClipSet]], Iterable[str]]


@dataclass(frozen=True)
class Banner:
    """What must be known before any number of the runs that it `applies` to.

    `sentence_end` follows "Run NAME" in the report; `in_verdict` is its line in verdict files, or "".
    """

    subject: str
    applies: Callable[[Run], bool]
    sentence_end: str
    in_verdict: str = ""


@dataclass(frozen=True)
class Caveat:
    """A caveat: `subject`, and `why` it matters.

    `places_in` says in words where in runs and clip sets it holds. `in_verdict` is its sentence in the verdict file of
    a variable that it holds of, else "".
    """

    subject: str
    why: str
    places_in: PlacesIn
    in_verdict: Callable[[Judged], str] = lambda item: ""


BANNERS = (
    Banner(
        "A small encoder",
        lambda run: comes_with_project(run.value("weights")),
        f"used the {TRAINED_HERE} ({CARD}). Its curves say nothing about V-JEPA 2.",
        f"**{capital(TRAINED_HERE)}** ({CARD}): nothing here is said of V-JEPA 2.",
    ),
    Banner(
        "Random weights",
        lambda run: is_random(run.value("weights")),
        "used an encoder that was never trained. Such curves say nothing about a trained video model.",
        "**Random weights**: the encoder was never trained. These verdicts say what its architecture and the probe do "
        "by themselves, and nothing of a trained model or of the paper.",
    ),
    Banner(
        "Stand-in data",
        lambda run: run.kind == MOVIES and dataset_of(run.table).is_stand_in,
        "used movies that this project made in the layout of IntPhys. They are not IntPhys.",
    ),
)


def verdict_notes(judged: Sequence[Judged]) -> list[str]:
    """Lines that a verdict file of ball curves says first."""
    notes = [banner.in_verdict for banner in BANNERS if any(banner.applies(item.run) for item in judged)]
    notes += [NO_CONTROLS.in_verdict(item) for item in judged]
    for item in judged:
        sentences = [caveat.in_verdict(item) for caveat in (ALONE, RECIPE, OPTIMISTIC, FEW, UNCONVERGED, ANGLE)]
        notes += [f"{item.of}: {sentence}" for sentence in sentences if sentence]
    return [note for note in notes if note]


def run_words(item: Judged) -> list[str]:
    """Lines that a verdict file of movies says of a run before its statements."""
    first = f"Statements and onsets below: protocol {item.protocol}, resamples of {item.n_groups} scenes."
    chosen = item.run.value("chosen")
    chosen = [f"Chosen, {chosen}."] if chosen else []
    sentences = [caveat.in_verdict(item) for caveat in (ALONE, RECIPE, FEW, UNCONVERGED, OPTIMISTIC, NO_CONTROLS)]
    return [first, *chosen, *_beside_key(item.run), *(capital(sentence) for sentence in sentences if sentence)]


# ---------------------------------------------------------------- in a verdict file


def _beside_key(run: Run) -> Iterator[str]:
    """AUC where the score that is quoted is highest: a choice on few scenes lifts that score alone."""
    key, overall = dataset_of(run.table).key_score, run.table[run.table["subtask"] == OVERALL]
    if key == "auc" or not {f"{key}_mean", "auc_mean"} <= set(overall):
        return
    curve = overall.set_index("layer")[f"{key}_mean"]
    if curve.notna().any():
        layer = curve.idxmax()
        auc = number(overall.set_index("layer").loc[layer, "auc_mean"])
        highest = f"Overall {spoken(key)} is highest at layer {layer}: {number(curve[layer])}"
        yield f"{highest}; {spoken('auc')} is {auc} there."


def _few_in_verdict(item: Judged) -> str:
    n, movies = item.n_groups, item.run.kind == MOVIES
    if item.too_few:
        few = f"{n} {'scenes' if movies else 'groups'}; with fewer than {FEWEST_GROUPS}, nothing is tested and every "
        return few + "statement is undecided." if n < FEWEST_GROUPS else f"{item.too_few}."
    counts = f"{n} groups" if n < FEW_GROUPS else ""
    if movies:
        words = dataset_of(item.run.table).words
        sizes = {part: item.scored.n_groups(part) for part, _ in item.curves}
        few = ", ".join(f"{words(part)} {size}" for part, size in sizes.items() if size < FEW_GROUPS)
        counts = f"few scenes: {few}" if few else ""
    return f"{counts}; with fewer than {FEW_GROUPS}, intervals are too short." if counts else ""


def _no_controls_in_verdict(item: Judged) -> str:
    if item.controls or not item.key:
        return ""
    if item.run.kind == MOVIES:
        return f"No control was run: verdicts are against chance ({item.key.chance:g}) alone."
    chance = f"{spoken(item.scored.kind.headline)} = {item.key.chance:g}"
    return f"No control was run for {item.of}: its verdicts are against chance ({chance}) alone."


_CHOSEN = "settings were chosen on the fold that is reported, so scores are optimistic."
_JUMP = "the target is an angle with a jump at ±180°; R² understates what is readable."


# ---------------------------------------------------------------- in the files of a folder


def _each(balls: Check | None, movies: Check | None = None) -> PlacesIn:
    """`places_in` of a caveat that is looked for in every run, by a check of balls and one of movies."""
    checks = [(kind, check) for kind, check in ((BALL, balls), (MOVIES, movies)) if check]
    return lambda runs, _: [
        f"{run.name}: {text}" for kind, check in checks for run in runs if run.kind == kind for text in check(run)
    ]


def unit_of(clip_set: ClipSet) -> str:
    """Unit of a ball set's magnitudes, for people."""
    return UNITS.get(clip_set.name, "").replace("^2", "²")


def _leaves_view(_runs: Sequence[Run], clip_sets: Sequence[ClipSet]) -> Iterator[str]:
    for clip_set in clip_sets:
        clips = clip_set.clips
        left = clips["visible_fraction"] < 1
        if left.any():
            shares = left.groupby(clips["magnitude"]).mean()
            worst = f"{shares.idxmax():g} {unit_of(clip_set)}"
            text = f"in {left.sum()} of {len(clips)} clips the ball is not fully in view throughout"
            yield f"{clip_set.name} set: {text}; at {worst} in {shares.max():.0%}."


def _other_clips(runs: Sequence[Run], clip_sets: Sequence[ClipSet]) -> Iterator[str]:
    here: dict[str, list[str]] = {}
    for clip_set in clip_sets:
        here.setdefault(clip_set.name, []).append(clip_set.fingerprint)
    for run in (run for run in runs if run.kind == BALL):
        for name, features in run.features.items():
            theirs = features.get("clip_set", {}).get("fingerprint")
            if name in here and theirs not in (None, *here[name]):
                yield f"{run.name}: {name} set {theirs}; shown here: {listed(here[name])}."


def _frame_order(run: Run) -> Iterator[str]:
    order = str(run.value("frame_order", "original"))
    if order != "original":
        yield f"{spoken(order)}."


def _reads_position(run: Run) -> Iterator[str]:
    pooling = str(run.value("pooling"))
    if not pooling.startswith(("temporal_last", "temporal_first")):
        return
    curves = [(curve, curve.controls(int(curve.scores.index[0]))) for curve in quoted(run)]
    scores = [
        f"{spoken(curve.name)} {number(rows.loc['position', 'pooled'])}"
        for curve, rows in curves
        if "position" in rows.index
    ]
    yield f"{pooling}. {spoken(curves[0][0].metric)} from position alone: {', '.join(scores) or 'not run'}."


def _alone(run: Run) -> Iterator[str]:
    if any(features.get("encoder", {}).get("per_frame") for features in run.features.values()):
        yield f"{run.value('model')}."


def _recipe(run: Run) -> Iterator[str]:
    if str(run.value("recipe", OURS)) == PUBLISHED:
        yield f"--recipe {PUBLISHED}."


def _optimism(run: Run) -> Iterator[str]:
    if run.value("protocol", "paper") == "paper":
        yield "only that protocol was run; by how much it flatters is unknown."
        return
    curves = [key_curve(run)] if run.kind == MOVIES else quoted(run)
    known = [(curve, curve.optimism) for curve in curves if curve is not None and curve.optimism is not None]
    if not known or run.value("protocol") == FIXED:
        return
    every = pd.concat([values for _, values in known])
    curve, values = max(known, key=lambda pair: pair[1].max())
    where = "" if run.kind == MOVIES else f" ({spoken(curve.name)}, layer {values.idxmax()})"
    yield f"it adds {number(every.mean())} {spoken(curve.metric)} on average, at most {number(values.max())}{where}."


def _scalar_angle(run: Run) -> Iterator[str]:
    if "direction" not in run.variables or run.value("direction_target") != "angle":
        return
    partner = next((curve for curve in quoted(run) if curve.name == "direction_sincos"), None)
    if partner is None or partner.peak is None:
        yield "sine and cosine were not probed beside it."
    else:
        yield f"sine and cosine, probed beside it, reach {number(partner.scores.max())} at layer {partner.peak}."


def _few_groups(run: Run) -> Iterator[str]:
    counts = run.table[["variable", "n_groups"]].drop_duplicates() if "n_groups" in run.table else pd.DataFrame()
    few = [f"{spoken(row.variable)} {row.n_groups}" for row in counts.itertuples() if row.n_groups < FEW_GROUPS]
    if few:
        yield f"{', '.join(few)}."


def _few_scenes(run: Run) -> Iterator[str]:
    counts = run.table.groupby("subtask", sort=False)["n_scenes"].max() if "n_scenes" in run.table else pd.Series()
    counts = counts // int(run.value("n_repeats", 1))  # they are summed over repeats
    words = dataset_of(run.table).words
    few = [f"{words(subtask)} {int(count)}" for subtask, count in counts.items() if count < FEW_GROUPS]
    if few:
        yield f"scenes: {', '.join(few)}."


def _no_intervals(run: Run) -> Iterator[str]:
    if not any(curve.ends["low"].notna().any() for curve in quoted(run)):
        yield "its table holds none."


def _fewer_folds(run: Run) -> Iterator[str]:
    asked = run.record.get("options", {}).get("folds")
    fewest = run.table["n_folds"].min() if "n_folds" in run.table else None
    if asked and fewest is not None and fewest < asked and not str(run.value("grouping")).startswith("held_out"):
        yield f"{fewest} folds instead of {asked}."


def _unscored_folds(run: Run) -> Iterator[str]:
    if "n_folds_scored" not in run.table:
        return
    part = run.table[run.table["n_folds_scored"] < run.table["n_folds"]]
    for row in part.drop_duplicates("variable").itertuples():
        yield f"{spoken(row.variable)}, {row.n_folds - row.n_folds_scored} of {row.n_folds} folds."


def _bare(runs: Sequence[Run], _clip_sets: Sequence[ClipSet]) -> Iterator[str]:
    """Runs by the controls that they lack, of those that mean something for their kind of data."""
    for kind, data in ((BALL, BALLS), (MOVIES, OF_MOVIES)):
        by_missing: dict[tuple[str, ...], list[str]] = {}
        for run in (run for run in runs if run.kind == kind):
            wanted = OF_SURPRISE if run.value("probe_set") == SURPRISE else controls_for(data)
            control_names = set(run.controls["control"]) if "control" in run.controls else set()
            by_missing.setdefault(tuple(name for name in wanted if name not in control_names), []).append(run.name)
        for missing, names in by_missing.items():
            if missing:
                none = len(missing) == len(controls_for(data))
                which = "none was run" if none else f"without {listed(map(spoken, missing))}"
                yield f"{listed(names)}: {which}."


def _unconverged(run: Run) -> Iterator[str]:
    for variable, rows in run.table.groupby("variable", sort=False):
        late = unconverged_in(rows)
        if late:
            yield f"{spoken(variable)}, layers {spans(late)}."


def _ties(run: Run) -> Iterator[str]:
    overall = run.table[run.table["subtask"] == OVERALL].sort_values("layer")
    if not {"n_ties", "n_near_ties", "n_scenes"} <= set(overall.columns) or overall.empty:
        return
    scenes, ties, near = (int(overall[name].sum()) for name in ("n_scenes", "n_ties", "n_near_ties"))
    first = overall.iloc[0]
    if ties or near:
        text = f"of {scenes} scene comparisons over all layers {ties} tie and {near} are ties or near-ties"
        above = first["n_scenes"] - first["n_ties"]
        text += f"; at layer {first['layer']}, {first['n_ties']} and {first['n_near_ties']} of {first['n_scenes']}"
        yield f"{text}, so that {above} decisions are above rounding."


def _dirty(runs: Sequence[Run], _clip_sets: Sequence[ClipSet]) -> Iterator[str]:
    dirty = [run.name for run in runs if "+dirty" in str(run.record.get("provenance", {}).get("code_version"))]
    if dirty:
        yield f"{listed(dirty)}."


UNCONVERGED = Caveat(
    "Probes that had not converged",
    "Training stopped before what is there was read, later in some layers than in others, and that alone can look like "
    "emergence. --until-converged goes on; ridge, in closed form, is drawn thinly beside such layers.",
    _each(_unconverged, _unconverged),
    lambda item: f"{item.training}." if item.training else "",
)
RECIPE = Caveat(
    "Published recipe",
    f"Such a run makes the {PUBLISHED_NOTE}. docs/differences.md says what each of them does.",
    _each(_recipe, _recipe),
    lambda item: f"{PUBLISHED_NOTE}." if any(_recipe(item.run)) else "",
)
OPTIMISTIC = Caveat(
    "Optimistic protocol",
    f"By the published protocol {_CHOSEN} Quote the nested one.",
    _each(_optimism, _optimism),
    lambda item: _CHOSEN if item.protocol == "paper" else "",
)
ANGLE = Caveat(
    "Scalar angle",
    capital(_JUMP),
    _each(_scalar_angle),
    lambda item: _JUMP if item.scored.predictions.variable.components == ("angle",) else "",
)
FEW = Caveat(
    "Few groups",
    f"Intervals resample groups; with fewer than {FEW_GROUPS}, intervals are too short.",
    _each(_few_groups, _few_scenes),
    _few_in_verdict,
)
_ONE_BY_ONE = "the encoder saw every frame on its own, so that motion is read off where things are in several frames."
ALONE = Caveat(
    "Frames one by one",
    capital(_ONE_BY_ONE),
    _each(_alone, _alone),
    lambda item: _ONE_BY_ONE if any(_alone(item.run)) else "",
)
NO_CONTROLS = Caveat(
    "Controls not run",
    "A curve is worth little without what an encoder that knows nothing scores.",
    _bare,
    _no_controls_in_verdict,
)
CAVEATS = (
    Caveat("Clips leave the view", "How long a ball is seen goes along with how fast it is.", _leaves_view),
    Caveat("Other clips", "The clips shown here are not those that were probed.", _other_clips),
    Caveat("Changed clips", "The encoder did not see the clips as they were made.", _each(_frame_order)),
    Caveat(
        "The pooling sees position",
        "One moment of a clip is read. Where the ball is then goes along with where it was heading, so a part of what "
        "is read may be place; the control named position says how much place alone gives.",
        _each(_reads_position),
    ),
    ALONE,
    RECIPE,
    UNCONVERGED,
    OPTIMISTIC,
    ANGLE,
    FEW,
    Caveat(
        "No intervals",
        "Without one nobody knows how sure a score is; --bootstrap 1000 gives it.",
        _each(_no_intervals),
    ),
    Caveat("Fewer folds than asked", "The grouping makes no more.", _each(_fewer_folds)),
    Caveat(
        "Folds without a score",
        "A fold that holds a variable constant has no R². Read the pooled score.",
        _each(_unscored_folds),
    ),
    NO_CONTROLS,
    Caveat(
        "Ties and near-ties",
        "A tie is worth a half. A scene decided by less than 1\u00a0% of the scores' spread hangs on a hair.",
        _each(None, _ties),
    ),
    Caveat("Uncommitted code", "No commit holds the code as it ran.", _dirty),
)
