"""The controls of a curve as data to probe: the main curve's ProbeData with less, or something else, to be read.

What each control means, and for which data, is in the one table pez/controls.py. Here:

    shuffled_labels    targets of other clips, permuted so that the true ones do not tell them (permutations.py)
    position           where the ball is, x_px and y_px, with squares and products (speed is even in where a ball has
                       come to, so a linear reader of x and y misses it); one layer. A point a tubelet, the mean over
                       its frames: two frames side by side would hold their difference, which is motion. The tubelet
                       that the pooling sees; of `mean` and `all` the mean over all tubelets: place alone, a floor.
                       `temporal_diff` sees
                       the first and the last tubelet, and so do two points, which hold motion: no floor
    reversed           a transfer: the probe trained on the features of the clips as they are reads the held-out clips
                       played backwards, scored against targets turned around. High: it reads motion; negative: place
    all others         features of another store: of every layer, or of the one that there is without an encoder

`selectivity` is the main curve less the mean of a control's seeds, under the same protocol, with a paired bootstrap
interval; a control with one layer stands for every layer. None for what is no floor (pez.controls.is_floor). Controls
run under the nested protocol where the main curve does, else under the published one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import PolynomialFeatures

from pez.controls import CONTROLS, controls_for
from pez.errors import UserError, check_choice
from pez.probes.data.permutations import shuffle_note, shuffled_variables, shuffled_within
from pez.probes.data.probe_data import ProbeData, Variable, feature_precision, store_features
from pez.store import FeatureStore

Stores = Callable[[str], Sequence[tuple[FeatureStore, int]]]  # name of a control -> its stores, with the seed of each


@dataclasses.dataclass(frozen=True)
class ControlSource:
    """Where the controls of one main curve come from: its `store`, `capture` and `pooling`; `stores` of controls that
    need a pass; `n_seeds` draws of shuffled labels, from `first_seed` on; `kind` BALLS or MOVIES."""

    store: FeatureStore
    capture: str
    pooling: str
    stores: Stores
    kind: str
    n_seeds: int
    first_seed: int = 0


def known_control(name: str, kind: str) -> str:
    """`name` if it is a control of `kind`; else UserError, with the reason where there is one."""
    if name in CONTROLS and kind in CONTROLS[name].not_for:
        raise UserError(f"--control {name} is not for IntPhys: {CONTROLS[name].not_for[kind]}: leave it out")
    return check_choice("--control", name, controls_for(kind))


def control_data(main: ProbeData, names: Sequence[str], source: ControlSource) -> list[ProbeData]:
    """The data of the controls `names`, each once; UserError, with the command that makes it, for a missing store."""
    found: list[ProbeData] = []
    for name in dict.fromkeys(names):
        known_control(name, source.kind)
        make = {"shuffled_labels": _shuffled_labels, "position": _position}.get(name, _of_other_stores)
        found += make(dataclasses.replace(main, control=name), source)
    return found


def _shuffled_labels(base: ProbeData, source: ControlSource) -> Iterator[ProbeData]:
    movies = base.variables[0].kind == "possible"
    for draw in range(source.n_seeds):
        seed = source.first_seed + draw
        if movies:
            shuffled, note = [shuffled_within(one, base.group, seed) for one in base.variables], ""
        else:
            shuffled = shuffled_variables(base.variables, base.group, seed)
            note = shuffle_note(base.variables, shuffled, base.group)
        changed = with_variables(base, shuffled)
        yield dataclasses.replace(changed, control_seed=draw, note=note)


def with_variables(data: ProbeData, variables: Sequence[Variable]) -> ProbeData:
    """`data` with other targets; of movies the clip table, by which they are scored, says the same."""
    clips = data.clips
    if "possible" in clips:
        clips = clips.assign(possible=variables[0].targets[:, 0] > 0.5)
    return dataclasses.replace(data, variables=tuple(variables), clips=clips)


def _position(base: ProbeData, source: ControlSource) -> Iterator[ProbeData]:
    places = seen_positions(source.store, source.pooling)
    rows = pd.Series(range(len(places)), index=source.store.clips["clip_id"])[base.clips["clip_id"]].to_numpy()
    given = torch.from_numpy(place_features(places[rows]))
    yield dataclasses.replace(base, features=lambda layer: given, layers=(0,), described={}, stores=(source.store,))


def _of_other_stores(base: ProbeData, source: ControlSource) -> Iterator[ProbeData]:
    control = CONTROLS[base.control]
    for store, seed in source.stores(base.control):
        features = store_features(store, source.capture, source.pooling, base.clips["clip_id"])
        made = {"control_seed": seed, "described": store.settings, "norm_mode": control.norm_mode or base.norm_mode}
        made["precision"] = feature_precision(store.settings, source.pooling)
        if control.reads_back:
            turned = tuple(_turned(variable) for variable in base.variables)
            both = (*base.stores, store)
            yield dataclasses.replace(base, read_features=features, read_variables=turned, stores=both, **made)
        else:
            layers = base.layers if store.depth == source.store.depth else tuple(range(store.depth))
            yield dataclasses.replace(base, features=features, layers=layers, stores=(store,), **made)


def _turned(variable: Variable) -> Variable:
    """`time_reversed`, of what a ball does; UserError for labels whose meaning backwards nobody knows."""
    if variable.clip_set not in ("velocity", "acceleration", "turns"):
        raise UserError(
            f"--control reversed: what {variable.name} is in clips played backwards is not known: leave it out"
        )
    return time_reversed(variable)


def time_reversed(variable: Variable) -> Variable:
    """The variable in the same clips played backwards: velocity turns by 180 degrees, accelerations stay.

    x(-t) has velocity -x'(-t) and acceleration x''(-t); speed is the same.
    """
    if variable.components == ("angle",):
        return dataclasses.replace(variable, targets=180.0 - np.mod(-variable.targets, 360.0))
    turns = set(variable.components) & {"cos", "sin", "vx", "vy"}
    return dataclasses.replace(variable, targets=-variable.targets) if turns else variable


def place_features(places: np.ndarray) -> np.ndarray:
    """Coordinates [clips, m] with their squares and products, so that a linear probe of them reads what place tells."""
    return PolynomialFeatures(2, include_bias=False).fit_transform(places)


def seen_positions(store: FeatureStore, pooling: str) -> np.ndarray:
    """Ball position as `pooling` sees it, [clips, 2] in px (x, y); [clips, 4] for `temporal_diff`.

    The mean over the frames of the first or last tubelet; both, one after the other, for `temporal_diff`; the mean
    over all frames for `mean` and `all`. UserError without ground truth, or if the clips were not played as they are.
    """
    tubelets = _tubelet_positions(store)
    kind = pooling.removesuffix("_patch")
    if kind == "temporal_diff":
        return np.concatenate([tubelets[:, 0], tubelets[:, -1]], axis=1)
    seen = {"temporal_first": tubelets[:, :1], "temporal_last": tubelets[:, -1:]}
    return seen.get(kind, tubelets).mean(1)


def _tubelet_positions(store: FeatureStore) -> np.ndarray:
    """Mean position over the frames of every tubelet, [clips, tubelets, 2] in px."""
    order = store.settings.get("frame_order", "original")
    if order != "original":
        raise UserError(
            f"{store.directory} has --frame-order {order}: --control position needs original: leave that control out"
        )
    table = store.frames
    if not {"x_px", "y_px"} <= set(table.columns):
        raise UserError(
            f"{store.directory}: its frames carry no x_px, y_px, which --control position needs: leave it out"
        )
    wide = table.pivot_table(index="clip_id", columns="frame", values=["x_px", "y_px"]).reindex(store.clips["clip_id"])
    places = wide.to_numpy(dtype=np.float64).reshape(len(wide), 2, store.settings["n_tubelets"], -1)
    if not np.isfinite(places).all():
        raise UserError(
            f"{store.directory}: a clip has no position in some frame, which --control position needs: leave it out"
        )
    return places.mean(3).swapaxes(1, 2)
