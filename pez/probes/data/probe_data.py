"""What a probe is run on: clips, their groups, the variables to read and the features to read them from.

Balls, movies and a user's own clips all become a ProbeData; so does every control (pez/probes/data/controls.py).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from pez.encoder.pooling import is_per_patch
from pez.errors import UserError
from pez.files import fingerprint
from pez.stimuli.clipset import ClipSet
from pez.store import FeatureStore

Clips = FeatureStore | ClipSet
Features = Callable[[int], torch.Tensor]
Parts = Callable[[pd.DataFrame], Mapping[str, np.ndarray]]
NEVER = -1  # fold of a clip that always trains
LEAST_VARIANCE = 1e-6  # share of a target's variance over all clips under which a few of them hold it constant
POSSIBLE = "possible"  # the variable of movies
_PRECISIONS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
DIRECTION_FORMS = {("angle",): "angle", ("cos", "sin"): "sincos", ("vx", "vy"): "vxy"}


def step1_settings(clips: Clips) -> dict[str, Any]:
    """What step 1 was asked for."""
    return clips.settings if isinstance(clips, ClipSet) else clips.settings.get("clip_set", {}).get("settings", {})


@dataclass(frozen=True)
class Variable:
    """A probed quantity: `targets` [clips, k] in `unit`, its k `components` named.

    `kind` is a key of pez.probes.scores.kinds.KINDS and says how the probe is trained and scored. Left out, it follows
    from name and components: a form of direction ("angle", "sincos", "vxy"), else a plain "quantity".
    """

    name: str
    clip_set: str
    targets: np.ndarray
    unit: str
    components: tuple[str, ...]
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            form = DIRECTION_FORMS.get(self.components) if self.name.startswith("direction") else None
            object.__setattr__(self, "kind", form or "quantity")

    def columns(self, names: Iterable[str]) -> list["Variable"]:
        """Its columns as quantities of their own, called `names`."""
        return [
            Variable(name, self.clip_set, self.targets[:, [place]], self.unit, (name,), kind="quantity")
            for place, name in enumerate(names)
        ]


@dataclass(frozen=True)
class ProbeData:
    """What one curve is probed on; n clips.

    Attributes:
        name: of the clip set.
        clips: a row per clip, in the order of the features' rows; `clip_id`, and for movies what they are scored by.
        group: name of every clip's group, [n]; a group is never split between folds.
        variables: what is read; they share the features and are of one loss.
        layers: to probe, out of 0 ... `depth` - 1.
        features: layer -> [n, d], or [n, tokens, d], in the stored precision.
        norm_mode: of features, by training clips: zscore, center or none.
        read_features, read_variables: where given, a held-out clip is read from these features and scored against
            these variables, in place of those that the probe was trained on.
        control, control_seed: of a control's curve; "" and 0 for the main one.
        note: what a reader must know of it.
        described: settings of the features, as their store records them.
        precision: relative size of a feature's rounding error (`feature_precision`).
        parts: clip table -> rows of the parts of it that are scored by themselves as well, such as sub-tasks, by name.
        stores: those that the features are read from.
    """

    name: str
    clips: pd.DataFrame
    group: np.ndarray
    variables: tuple[Variable, ...]
    layers: tuple[int, ...]
    depth: int
    features: Features
    norm_mode: str = "zscore"
    read_features: Features | None = None
    read_variables: tuple[Variable, ...] | None = None
    control: str = ""
    control_seed: int = 0
    note: str = ""
    described: dict[str, Any] = field(default_factory=dict)
    precision: float = 2.0**-24
    parts: Parts = field(default=lambda clips: {})
    stores: tuple[FeatureStore, ...] = ()

    @property
    def scored(self) -> tuple[Variable, ...]:
        """The variables as predictions are scored against them."""
        return self.variables if self.read_variables is None else self.read_variables

    @property
    def targets(self) -> torch.Tensor:
        """Targets of all variables side by side, [n, k], float64."""
        return torch.from_numpy(np.concatenate([variable.targets for variable in self.variables], axis=1))

    @property
    def content(self) -> dict[str, str]:
        """Fingerprints of all that decides what a probe of it finds: the very bytes of `features`, what is read, of
        which clips."""
        digest = hashlib.sha256()
        for variable in (*self.variables, *self.scored):
            digest.update(f"{variable.name} {variable.kind} {variable.targets.shape}".encode())
            digest.update(np.ascontiguousarray(variable.targets, dtype=np.float64).tobytes())
        clips = fingerprint([self.clips.to_dict("list"), self.group.tolist(), self.norm_mode])
        features = fingerprint([store.content for store in self.stores])
        return {"features": features, "targets": digest.hexdigest()[:16], "clips": clips}

    @property
    def outputs(self) -> tuple[int, ...]:
        """How many columns of `targets` each variable has."""
        return tuple(len(variable.components) for variable in self.variables)


def store_features(store: FeatureStore, capture: str, pooling: str, clip_ids: Iterable[str] | None = None) -> Features:
    """Features of a store by layer; rows in the order of `clip_ids` (default: of the store's clips)."""
    return partial(store.layer, capture, pooling, clip_ids=clip_ids)


def feature_precision(settings: dict[str, Any], pooling: str) -> float:
    """Relative size of the rounding error of a store's features; `settings` as it records them.

    A pass in a lower precision rounds every token by itself, so a mean over N tokens is off by a share of about
    1 / sqrt(N) of that; what is stored in a lower precision is rounded once more, and float32 rounds sums.
    """
    n_tokens = settings.get("n_patches", 1) * (settings.get("n_tubelets", 1) if pooling == "mean" else 1)
    averaged = 1 if is_per_patch(pooling) else n_tokens
    stored = settings.get("store_dtype", "auto")
    if stored == "auto":
        stored = "float16" if is_per_patch(pooling) else "float32"
    passed = _PRECISIONS[settings.get("dtype", "float32")] / averaged**0.5
    return float(max(passed, _PRECISIONS[stored], _PRECISIONS["float32"]))


def check_layers(layers: Iterable[int] | None, depth: int, where: object = "the encoder") -> tuple[int, ...]:
    """The layers asked for, in order and each once; all for None. UserError for one that does not exist."""
    chosen = range(depth) if layers is None else sorted(set(layers))
    outside = [layer for layer in chosen if not 0 <= layer < depth]
    if outside or not chosen:
        listed = " ".join(map(str, outside)) or "without a number"
        raise UserError(
            f"--layers {listed} not in 0 ... {depth - 1}, the layers of {where}: leave it out for all of them"
        )
    return tuple(chosen)


def possible_variable(possible: np.ndarray, kind: str = POSSIBLE) -> Variable:
    """Labels of movies [n] as a variable: 1 for possible; of a `kind` of such variables."""
    targets = np.asarray(possible, dtype=np.float64)[:, None]
    return Variable(POSSIBLE, "movies", targets, "", (POSSIBLE,), kind=kind)


def scene_names(movies: pd.DataFrame) -> np.ndarray:
    """Name of every movie's scene, [n]: the group that shares its frames."""
    return cast(np.ndarray, (movies["block"].astype(str) + "/" + movies["scene"].astype(str)).to_numpy(dtype=str))
