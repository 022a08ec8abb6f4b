"""The controls of a curve as data to probe: the main curve's ProbeData with less, or something else, to be read.

What each control means, and for which data, is in the one table pez/controls.py. Here:

    shuffled_labels    targets of other clips, permuted so that the true ones do not tell them (permutations.py)
    position           where the ball is, x_px and y_px, with squares and products (speed is even in where a ball has
                       come to, so a linear reader of x and y misses it); one layer. A point per tubelet, the mean over
                       its frames: two frames side by side would hold their difference, which is motion. The tubelet
                       that the pooling sees; of `mean` and `all` the mean over all tubelets: place alone, a floor.
                       `temporal_diff` sees the first and the last tubelet: two points, which hold motion, no floor
    reversed           a transfer: the probe trained on the features of the clips as they are reads the held-out clips
                       played backwards, scored against targets turned around. High: it reads motion; negative: place
    all others         features of another store, of every layer (without an encoder there is one). With
                       `--control-mode read` the probe of the clips as they are also reads frames in another order,
                       against the targets as they are (curves NAME_read): how far the code itself changes where
                       motion is gone. No floor: what another probe could read is in the refitted curve

`--unique` asks what a layer tells beyond position, pixels and optical flow together: banded ridge reads those alone
("without_encoder") and with the layer; R^2 of the second less that of the first is "unique"
(pez/probes/solvers/banded.py).

`selectivity` is the main curve less the mean of a control's seeds, under the same protocol, with a paired bootstrap
interval; a control with one layer stands for every layer. None for what is no floor (pez.controls.is_floor). Controls
run under the nested protocol where the main curve does, else under the published one.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import PolynomialFeatures

from pez.controls import CONTROLS, MOVIES, PARTS, READ, TOGETHER, UNIQUE, controls_for
from pez.encoder.pooling import is_per_patch, seen_tubelets
from pez.errors import UserError, check_choice
from pez.probes.data.ball import n_objects
from pez.probes.data.permutations import shuffle_note, shuffled_variables, shuffled_within
from pez.probes.data.probe_data import ProbeData, Variable, feature_precision, store_features
from pez.store import FeatureStore

MODES = REFIT, READ_BY_MAIN = "refit", "read"
Stores = Callable[[str], Sequence[tuple[FeatureStore, int]]]  # name of a control -> its stores, with the seed of each


@dataclasses.dataclass(frozen=True)
class ControlSource:
    """Where the controls of one main curve come from: its `store`, `capture` and `pooling`; `stores` of controls that
    need a pass; `n_seeds` draws of shuffled labels, from `first_seed` on; `kind` BALLS or MOVIES; `modes` of MODES, for
    controls of frames in another order."""

    store: FeatureStore
    capture: str
    pooling: str
    stores: Stores
    kind: str
    n_seeds: int
    first_seed: int = 0
    modes: tuple[str, ...] = (REFIT,)


def known_control(name: str, kind: str) -> str:
    """`name` if it is a control of `kind`; else UserError, with the reason where one is known."""
    if name in CONTROLS and kind in CONTROLS[name].not_for:
        raise UserError(f"--control {name} is not for IntPhys: {CONTROLS[name].not_for[kind]}: leave it out")
    if name in CONTROLS and CONTROLS[name].option:
        raise UserError(f"--control {name} is run by {CONTROLS[name].option}: give that instead")
    return check_choice("--control", name, controls_for(kind))


def control_data(main: ProbeData, names: Sequence[str], source: ControlSource) -> list[ProbeData]:
    """The data of the controls `names`, each once; UserError, with the command that makes it, for a missing store."""
    data: list[ProbeData] = []
    for name in dict.fromkeys(names):
        known_control(name, source.kind)
        make = {"shuffled_labels": _shuffled_labels, "position": _position}.get(name, _of_other_stores)
        data += make(dataclasses.replace(main, control=name), source)
    return data


def beyond_data(main: ProbeData, source: ControlSource) -> tuple[ProbeData, ProbeData, list[tuple[int, str]]]:
    """What `--unique` probes: PARTS together, in one layer; every layer with them, its own columns first; and how many
    columns each of the PARTS has, with their norm mode.

    UserError for a missing store or a pooling that keeps patches.
    """
    if is_per_patch(source.pooling):
        raise UserError(f"--unique reads one vector a clip, not --pooling {source.pooling}: choose one without patches")
    parts = control_data(main, PARTS, source)
    columns = [part.features(part.layers[0]).double() for part in parts]
    others = torch.cat(columns, dim=1)
    together = dataclasses.replace(main, control=TOGETHER, features=lambda layer: others, layers=(0,), described={})
    joined = dataclasses.replace(
        main, control=UNIQUE, features=lambda layer: torch.cat([main.features(layer).double(), others], dim=1)
    )
    norm_modes = ["center" if p.norm_mode == "center" and p.control != "position" else "zscore" for p in parts]
    return together, joined, [(each.shape[1], norm_mode) for each, norm_mode in zip(columns, norm_modes)]


def _shuffled_labels(base: ProbeData, source: ControlSource) -> Iterator[ProbeData]:
    across = [one for one in base.variables if source.kind != MOVIES and one.kind != "pair"]  # others within a group
    for draw in range(source.n_seeds):
        seed = source.first_seed + draw
        swapped = shuffled_variables(across, base.group, seed) if across else []
        note = shuffle_note(across, swapped, base.group) if across else ""
        of_name = {one.name: one for one in swapped}
        shuffled = [of_name.get(one.name) or shuffled_within(one, base.group, seed) for one in base.variables]
        yield dataclasses.replace(with_variables(base, shuffled), control_seed=draw, note=note)


def with_variables(data: ProbeData, variables: Sequence[Variable]) -> ProbeData:
    """`data` with other targets; of movies the clip table, by which they are scored, says the same."""
    clips = data.clips
    if "possible" in clips:
        clips = clips.assign(possible=variables[0].targets[:, 0] > 0.5)
    return dataclasses.replace(data, variables=tuple(variables), clips=clips)


def _position(base: ProbeData, source: ControlSource) -> Iterator[ProbeData]:
    places = seen_positions(source.store, source.pooling)
    places = pd.DataFrame(places, index=source.store.clips["clip_id"]).loc[base.clips["clip_id"]].to_numpy()
    given = torch.from_numpy(place_features(places))
    yield dataclasses.replace(base, features=lambda layer: given, layers=(0,), described={}, stores=(source.store,))


def _of_other_stores(base: ProbeData, source: ControlSource) -> Iterator[ProbeData]:
    control = CONTROLS[base.control]
    in_other_order = control.frames is not None and control.encoder == "main"
    for store, seed in source.stores(base.control):
        features = store_features(store, source.capture, source.pooling, base.clips["clip_id"])
        changes: dict[str, Any] = {"control_seed": seed, "described": store.settings}
        changes["norm_mode"] = control.norm_mode or base.norm_mode
        changes["precision"] = feature_precision(store.settings, source.pooling)
        read: dict[str, Any] = {"read_features": features, "stores": (*base.stores, store), **changes}
        if control.reads_back:
            yield dataclasses.replace(base, read_variables=played_backwards(base.variables), **read)
            continue
        if in_other_order and READ_BY_MAIN in source.modes:
            yield dataclasses.replace(base, control=f"{base.control}{READ}", **read)
        if not in_other_order or REFIT in source.modes:
            layers = base.layers if store.depth == source.store.depth else tuple(range(store.depth))
            yield dataclasses.replace(base, features=features, layers=layers, stores=(store,), **changes)


def played_backwards(variables: Sequence[Variable]) -> tuple[Variable, ...]:
    """`time_reversed` of what a ball does; what it did in tubelet k of n it now does in tubelet n - 1 - k.

    UserError for labels whose meaning backwards nobody knows.
    """
    by_name, backwards = {variable.name: variable for variable in variables}, []
    for variable in variables:
        if variable.clip_set not in ("velocity", "acceleration", "turns"):
            raise UserError(
                f"--control reversed: what {variable.name} is in clips played backwards is not known: leave it out"
            )
        source = variable
        if tubelet := re.fullmatch(r"(.*_t)(\d+)", variable.name):
            n_tubelets = sum(name.startswith(tubelet[1]) for name in by_name)
            source = by_name[f"{tubelet[1]}{n_tubelets - 1 - int(tubelet[2])}"]
        backwards.append(dataclasses.replace(time_reversed(source), name=variable.name))
    return tuple(backwards)


def time_reversed(variable: Variable) -> Variable:
    """The variable in the same clips played backwards: velocity turns by 180 degrees, accelerations stay.

    x(-t) has velocity -x'(-t) and acceleration x''(-t); speed is the same.
    """
    if variable.kind == "image_angle":  # radians from -pi
        return dataclasses.replace(variable, targets=np.mod(variable.targets, 2 * np.pi) - np.pi)
    if variable.components == ("angle",):
        return dataclasses.replace(variable, targets=180.0 - np.mod(-variable.targets, 360.0))
    turns = set(variable.components) & {"cos", "sin", "vx", "vy"}
    return dataclasses.replace(variable, targets=-variable.targets) if turns else variable


def place_features(places: np.ndarray) -> np.ndarray:
    """Coordinates [clips, m] with their squares and products, so that a linear probe of them reads what place tells."""
    return cast(np.ndarray, PolynomialFeatures(2, include_bias=False).fit_transform(places))


def seen_positions(store: FeatureStore, pooling: str) -> np.ndarray:
    """Ball position as `pooling` sees it, [clips, 2] in px (x, y); [clips, 4] for `temporal_diff`; of several balls
    that of each, one after the other.

    The mean over the frames of the first or last tubelet; both, one after the other, for `temporal_diff`; the mean
    over all frames for `mean` and `all`. UserError without ground truth, or if the clips were not played as they are.
    """
    order = store.settings.get("frame_order", "original")
    if order != "original":
        raise UserError(
            f"{store.directory} has --frame-order {order}: --control position needs original: leave that control out"
        )
    prefixes = ["", *(f"object_{number}_" for number in range(2, n_objects(store) + 1))]
    columns = [f"{prefix}{axis}_px" for prefix in prefixes for axis in "xy"]
    if not set(columns) <= set(store.frames.columns):
        raise UserError(
            f"{store.directory}: its frames carry no x_px, y_px, which --control position needs: leave it out"
        )
    ids = store.clips["clip_id"]
    wide = store.frames.pivot_table(index="clip_id", columns="frame", values=columns).reindex(ids)[columns]
    places = wide.to_numpy(dtype=np.float64).reshape(len(wide), len(columns), store.settings["n_tubelets"], -1)
    if not np.isfinite(places).all():
        raise UserError(
            f"{store.directory}: a clip has no position in some frame, which --control position needs: leave it out"
        )
    tubelets = places.mean(3).swapaxes(1, 2)  # [clips, tubelets, 2 a ball]
    seen = tubelets[:, seen_tubelets(pooling, tubelets.shape[1])]
    return cast(np.ndarray, seen.reshape(len(seen), -1) if pooling.startswith("temporal_diff") else seen.mean(1))
