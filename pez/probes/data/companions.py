"""The stores of controls that step 2 writes beside the main one, under FEATURE_ROOT/controls."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from constants import MODELS
from pez.controls import CONTROLS
from pez.errors import UserError
from pez.store import FeatureStore, open_stores


@dataclass(frozen=True)
class Companions:
    """Finds the control stores of the main `store` of a feature root; call it with a control's name.

    `capture` and `pooling` are those that are probed, `control_seeds` what step 2 is to be asked for.
    """

    feature_root: Path
    store: FeatureStore
    capture: str
    pooling: str
    control_seeds: int

    def __call__(self, control: str) -> list[tuple[FeatureStore, int]]:
        """Its stores, with the seed of each; UserError, with the command that makes them, if there are none."""
        if not CONTROLS[control].seeded:
            return [(self.open(control, control), 0)]
        seeds = {
            int(path.name.rpartition("_seed")[2]): path.name
            for path in (self.feature_root / "controls").glob(f"{control}_seed*")
            if path.name.rpartition("_seed")[2].isdigit()
        }
        if not seeds:
            raise self._missing(control)
        return [(self.open(control, seeds[seed]), seed) for seed in sorted(seeds)]

    def open(self, control: str, folder: str) -> FeatureStore:
        """The store in `folder`, of the main store's clips; UserError if it is missing or was made otherwise."""
        root = self.feature_root / "controls" / folder
        stores = open_stores(root) if any(root.glob("*/features.json")) else {}
        if self.store.name not in stores:
            raise self._missing(control)
        store = stores[self.store.name]
        store.check(self.capture, self.pooling)
        if store.clips["clip_id"].tolist() != self.store.clips["clip_id"].tolist():
            raise self._other(control, store, f"holds other clips than {self.store.directory}")
        if "content" in store.clips and "content" in self.store.clips:
            other = store.clips["clip_id"][store.clips["content"] != self.store.clips["content"]]
            if len(other):
                what = f"was made of other frames of {len(other)} clips (first {other.iloc[0]}) than the main features"
                raise self._other(control, store, what)
        keys = ["clip set fingerprint", "transform", "n_tubelets"]
        if CONTROLS[control].encoder != "none":
            keys += ["n_patches", "model"]
        if CONTROLS[control].encoder == "main":
            keys.append("weights_sha256")
        own, main = (
            {**each.settings, "clip set fingerprint": each.settings.get("clip_set", {}).get("fingerprint")}
            for each in (store, self.store)
        )
        for key in keys:
            if own.get(key) != main.get(key):
                raise self._other(control, store, f"has {key} {own.get(key)}, the main features {main.get(key)}")
        return store

    def _other(self, control: str, store: FeatureStore, what: str) -> UserError:
        return UserError(f"{store.directory} {what}: make it anew with `{self.command(control)} --overwrite`")

    def _missing(self, control: str) -> UserError:
        return UserError(
            f"--control {control} needs features of its own of the {self.store.name} set: "
            f"make them with `{self.command(control)}`"
        )

    def command(self, control: str) -> str:
        """The step 2 command that makes a control's store beside the main one, from the main store's settings."""
        settings = self.store.settings
        words = ["python", "step2_extract.py", "--output-root", str(self.feature_root), *_weights(settings)]
        for flag in ("captures", "poolings"):
            words += [f"--{flag[:-1]}", *settings[flag]]
        words += ["--transform", settings["transform"], "--dtype", settings["dtype"]]
        if settings.get("store_dtype", "auto") != "auto":
            words += ["--store-dtype", settings["store_dtype"]]
        words += ["--control", control]
        if CONTROLS[control].seeded:
            words += ["--control-seeds", str(self.control_seeds)]
        return shlex.join(words)


def _weights(settings: dict[str, Any]) -> list[str]:
    model, label = settings["model"], str(settings["weights_label"])
    words = ["--model", model]
    random = re.fullmatch(r"random weights \(seed (\d+)\)", label)
    known = MODELS.get(model)
    if random:
        words += ["--weights", "random", "--weights-seed", random[1]]
    elif known is None or label != known.file:
        words += ["--weights", label]
    if settings.get("checkpoint_key") not in (None, "target_encoder"):
        words += ["--checkpoint-key", settings["checkpoint_key"]]
    if known is not None and settings.get("resolution", known.resolution) != known.resolution:
        words += ["--model-resolution", str(settings["resolution"])]
    return words
