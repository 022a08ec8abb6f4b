"""The curves of an IntPhys run: the main one and its controls, for the linear and the attentive probe alike.

    shuffled_labels    within each scene the movies' labels are permuted: a scene still has two possible and two
                       impossible movies, so every metric keeps its chance level
    random_weights     the same architecture with random weights
    pixels             no encoder: the sampled frames, averaged down to 16 x 16 pixels, pooled as the features are. One
                       layer, which stands for all. The linear probe centres them only: a pixel that hardly changes in
                       training would be blown up where a held-out object crosses it
    static_last, static_first     one frame repeated: what a look at the scene gives, without motion
    shuffled_frames    the same frames without their order

All but shuffled_labels take an encoder pass and a feature store of their own, as large as the main one but for pixels,
under FEATURE_ROOT/controls; a complete one is always used again. --control-seeds draws shuffled_labels and
random_weights that many times. Two controls of the ball probes have no meaning here, and asking for them says why.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pez.errors import UserError, check_choice
from pez.probes.controls import SEEDED
from pez.store import FeatureStore

CONTROL_PASSES = ("random_weights", "pixels", "static_last", "static_first", "shuffled_frames")
CONTROLS = ("shuffled_labels", *CONTROL_PASSES)
MEANINGLESS = {
    "position": "the public archive has no ground truth of where things are",
    "reversed": "played backwards a possible movie need not be possible (things fall up, slow things gather speed), so "
    "no answer would be the right one; shuffled_frames and static_last test order and motion",
}
MOVIE_COLUMNS = ["clip_id", "block", "subtask", "scene", "movie", "possible"]


@dataclass(frozen=True)
class Curve:
    """What one curve is probed on: a store, and `movies`, its clips in the order of its rows with MOVIE_COLUMNS.

    `control` is "" for the main curve; `seed` tells draws of one control apart.
    """

    store: FeatureStore
    movies: pd.DataFrame
    control: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for folders and progress bars; empty for the main curve."""
        return f"{self.control}_seed{self.seed}" if self.control in SEEDED else self.control

    def layers(self, asked: Sequence[int]) -> list[int]:
        """The layers to probe of those `asked` of the main curve, in order, each once; UserError for one not there."""
        if self.control == "pixels":
            return list(range(self.store.depth))
        layers = sorted(set(asked))
        wrong = [layer for layer in layers if not 0 <= layer < self.store.depth]
        if wrong or not layers:
            listed = " ".join(map(str, wrong))
            raise UserError(f"--layers {listed} not in 0 ... {self.store.depth - 1}, the encoder's layers")
        return layers


def add_control_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --control, --control-seeds and --repeats."""
    parser.add_argument(
        "--control",
        nargs="+",
        default=[],
        type=known_control,
        metavar="NAME",
        help=f"probe these too, into controls_RUN.csv: {', '.join(CONTROLS)}; all but shuffled_labels take an encoder "
        "pass and as much disk as the main features (pez/probes/intphys_controls.py)",
    )
    parser.add_argument(
        "--control-seeds", type=int, default=1, help="draws of the controls shuffled_labels and random_weights"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="cross-validations, with folds of seeds --seed, --seed + 1, ..."
    )


def known_control(name: str) -> str:
    """`name` if it is a control of IntPhys; else UserError, with the reason where there is one."""
    if name in MEANINGLESS:
        raise UserError(f"--control {name} is not for IntPhys: {MEANINGLESS[name]}")
    return check_choice("--control", name, CONTROLS)


def tagged(curve: Curve, predictions: pd.DataFrame) -> pd.DataFrame:
    """`predictions` of a curve with the columns `control` and `control_seed` that tell whose they are."""
    return predictions.assign(control=curve.control, control_seed=curve.seed)


def movies_of(store: FeatureStore) -> pd.DataFrame:
    """MOVIE_COLUMNS of a store's clips, in the order of its rows."""
    return store.clips[MOVIE_COLUMNS].reset_index(drop=True)


def shuffled_labels(movies: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`movies` with `possible` permuted among the movies of each scene."""
    rng = np.random.default_rng(seed)
    shuffled = movies.groupby(["block", "scene"])["possible"].transform(lambda own: rng.permutation(own.to_numpy()))
    return movies.assign(possible=shuffled.astype(bool))
