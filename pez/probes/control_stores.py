"""The stores of controls that step 2 writes beside the main one, under FEATURE_ROOT/controls."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from constants import MODELS
from pez.errors import UserError
from pez.probes.probe_set import ProbeOptions, ProbeSet
from pez.store import FeatureStore, open_stores


def companion_store(options: ProbeOptions, base: ProbeSet, folder: str) -> FeatureStore:
    """The control store `folder` of the main store's clips; UserError if it is missing or was made otherwise."""
    root = Path(options.feature_root) / "controls" / folder
    stores = open_stores(root) if any(root.glob("*/features.json")) else {}
    if base.store.name not in stores:
        raise missing_store(options, base, base.control)
    store = stores[base.store.name]
    store.check(base.capture, base.pooling)
    if store.clips["clip_id"].tolist() != base.store.clips["clip_id"].tolist():
        raise _other(options, base, store, f"holds other clips than {base.store.directory}")
    for name, there, wanted in _compared(base, store):
        if there != wanted:
            raise _other(options, base, store, f"has {name} {there}, the main features {wanted}")
    return store


def _compared(base: ProbeSet, store: FeatureStore) -> Iterator[tuple[str, object, object]]:
    """What must be alike in a control's store and the main one: name, value there, value wanted."""
    there, wanted = store.settings, base.store.settings
    yield "clip set fingerprint", _fingerprint(there), _fingerprint(wanted)
    keys = ["transform", "n_tubelets"]
    if base.control != "pixels":  # which has one patch, the whole frame, and a model of its own
        keys += ["n_patches", "model"]
    if base.control not in ("pixels", "random_weights"):
        keys.append("weights_sha256")
    for key in keys:
        yield key, there.get(key), wanted.get(key)


def _fingerprint(settings: dict) -> str | None:
    return settings.get("clip_set", {}).get("fingerprint")


def _other(options: ProbeOptions, base: ProbeSet, store: FeatureStore, what: str) -> UserError:
    command = step2_command(options, base, base.control)
    return UserError(f"{store.directory} {what}: make it anew with `{command} --overwrite`")


def missing_store(options: ProbeOptions, base: ProbeSet, name: str) -> UserError:
    return UserError(
        f"--control {name} needs features of its own of the {base.store.name} set: "
        f"make them with `{step2_command(options, base, name)}`"
    )


def step2_command(options: ProbeOptions, base: ProbeSet, name: str) -> str:
    """The step 2 command that makes a control's store beside the main one, from the main store's settings."""
    settings = base.store.settings
    words = ["python", "step2_extract.py", "--output-root", str(options.feature_root), *_weights(settings)]
    for flag in ("captures", "poolings"):
        words += [f"--{flag[:-1]}", *settings[flag]]
    words += ["--transform", settings["transform"], "--dtype", settings["dtype"]]
    if settings.get("store_dtype", "auto") != "auto":
        words += ["--store-dtype", settings["store_dtype"]]
    words += ["--control", name]
    if name == "random_weights":
        words += ["--control-seeds", str(options.control_seeds)]
    return shlex.join(words)


def _weights(settings: dict) -> list[str]:
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
