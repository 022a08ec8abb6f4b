"""The controls of a layer curve: the same probe where there is less, or something else, to be read. One table.

Step 2 makes the stores of those that need an encoder pass (pez/encoder/controls.py), step 3 and the IntPhys scripts
probe them with the main curve (pez/probes/data/controls.py), tables, figures, verdicts and report name them. To add
one, add an entry: a control that only changes the order of a clip's frames needs nothing else.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

BALLS, MOVIES = "balls", "movies"
COPY_LAST = "copy_last"
TOGETHER, UNIQUE = "without_encoder", "unique"
# no floors, for they read the motion itself: whether a layer beats them is a question of its own
BESIDE = ("optical_flow", TOGETHER)
READ = "_read"  # ends the name of a control that the main curve's probe reads (--control-mode read)
PARTS = ("position", "pixels", "optical_flow")  # what TOGETHER reads: place, pictures and motion without an encoder
Frames = Callable[[Any, str], Any]  # frames [T, ...] (tensor or array) and clip id -> frames


def _shuffled(frames: Any, clip_id: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "little")
    return frames[np.random.default_rng(seed).permutation(len(frames))]


@dataclass(frozen=True)
class Control:
    """One control.

    meaning: what its curve is, in one line for people.
    needs_pass: features of its own, from step 2.
    encoder: what that pass runs: the main encoder, the same architecture "untrained", or "none".
    frames: the order of frames that its pass sees, if that is all that is different.
    seeded: drawn at random, so worth several seeds.
    norm_mode: of its features, where it is not the run's.
    reads_back: the probe is the main curve's; only what it reads is the control's, against turned targets.
    not_for: kinds of data that it means nothing for, and why.
    option: the option that runs it, where it is no choice of --control.
    floor: (pooling) -> whether a high score is a rival explanation of the main curve.
    """

    meaning: str
    needs_pass: bool = True
    encoder: Literal["main", "untrained", "none"] = "main"
    frames: Frames | None = None
    seeded: bool = False
    norm_mode: str | None = None
    reads_back: bool = False
    not_for: Mapping[str, str] = field(default_factory=dict)
    option: str = ""
    floor: Callable[[str], bool] = field(default=lambda pooling: True)


CONTROLS: dict[str, Control] = {
    "shuffled_labels": Control(
        "targets of other clips (of movies and pairs: of others in the scene or group): what the probe fits where "
        "there is nothing to be read",
        needs_pass=False,
        seeded=True,
    ),
    "random_weights": Control(
        "the same architecture, never trained, over several seeds", encoder="untrained", seeded=True
    ),
    # never z-scored: a pixel that hardly changes in training would be blown up where a held-out ball crosses it
    "pixels": Control(
        "downsampled pixels of each tubelet's frames, kept apart, in place of features: two frames know some motion",
        encoder="none",
        norm_mode="center",
    ),
    "position": Control(
        "the ball's true place, a point a tubelet that the pooling sees, with squares and products",
        needs_pass=False,
        not_for={MOVIES: "the public archive has no ground truth of where things are"},
        floor=lambda pooling: not pooling.startswith("temporal_diff"),  # which sees two places, and they are a motion
    ),
    "static_last": Control(
        "the last frame repeated: no motion left", frames=lambda frames, clip: frames[-1:].expand_as(frames)
    ),
    "static_first": Control(
        "the first frame repeated: no motion left", frames=lambda frames, clip: frames[:1].expand_as(frames)
    ),
    "shuffled_frames": Control("frames in a random order", frames=_shuffled),
    "reversed": Control(
        "the probe of the clips as they are, reading them played backwards, against targets turned round: high if it "
        "reads motion, negative if place; no floor, so no selectivity",
        frames=lambda frames, clip: frames.flip(0),
        reads_back=True,
        not_for={
            MOVIES: "played backwards a possible movie need not be possible (things fall up, slow things gather "
            "speed), so no answer would be the right one; shuffled_frames and static_last test order and motion"
        },
        floor=lambda pooling: False,
    ),
    "optical_flow": Control(
        "dense optical flow without learning (DIS), averaged over the encoder's patches: what a classical reader of "
        "motion gets",
        encoder="none",
        norm_mode="zscore",  # its channels have units of their own
        floor=lambda pooling: False,
        not_for={
            MOVIES: "the flow of a movie, averaged over frames, holds none of its events; pixels and shuffled_frames "
            "are the controls there that need no trained encoder"
        },
    ),
    TOGETHER: Control(
        f"{', '.join(PARTS[:-1]).replace('_', ' ')} and {PARTS[-1].replace('_', ' ')} together, by banded ridge",
        needs_pass=False,
        option="--unique",
        floor=lambda pooling: False,
    ),
    UNIQUE: Control(
        "what a layer adds: R² of the layer and those together, less R² of those together",
        needs_pass=False,
        option="--unique",
        floor=lambda pooling: False,
    ),
    COPY_LAST: Control(
        "of a predictor: the tokens of the last tubelet that is known stand for all that is to come",
        needs_pass=False,
        option="step_surprise.py",
    ),
}


def controls_for(data: str) -> list[str]:
    """Names of the controls that mean something for BALLS or MOVIES, in order."""
    return [name for name, control in CONTROLS.items() if data not in control.not_for and not control.option]


def frame_orders() -> dict[str, Frames]:
    """Orders of a clip's frames by name, "original" first."""
    orders: dict[str, Frames] = {"original": lambda frames, clip: frames}
    return orders | {name: control.frames for name, control in CONTROLS.items() if control.frames is not None}


def is_floor(control: str, pooling: str) -> bool:
    """Whether a high score of `control` is a rival explanation of the main curve under `pooling`.

    Never where the probe was trained on other frames: what it fails to read, the features may hold all the same.
    """
    if control.endswith(READ):
        return False
    known = CONTROLS.get(control)
    return known is None or known.floor(pooling)


def meaning(control: str) -> str:
    """What a control's curve is, in one line for people; of one that is read, that too."""
    known = CONTROLS[control.removesuffix(READ)].meaning
    return f"{known}; read by the probe of the clips as they are" if control.endswith(READ) else known
