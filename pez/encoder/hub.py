"""Models in Hugging Face's format: where a folder or hub id leads, and its weights, without running remote code."""

import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pez.encoder.checkpoints import reason
from pez.errors import UserError
from pez.records import HuggingFaceConfig, read_record

transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers gives it no types
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no types

ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,  # a package for what its config.json asks
    SafetensorError,
    StrictDataclassError,
    HfHubHTTPError,
    HFValidationError,
)  # that transformers raises for a folder or id with something wrong in it
NETWORK_SECONDS = 1.5
HIERARCHICAL = (  # their token grid changes from stage to stage
    "swin swinv2 maskformer-swin donut-swin hiera mvit mvitv2 videoswin video_swin uniformer levit pvt "
    "pvt_v2 segformer convnext convnextv2 dinov3_convnext focalnet van efficientnet resnet regnet poolformer cvt bit "
    "mobilevit mobilevitv2 swiftformer dinat nat davit"
)


def is_id(weights: str) -> bool:
    """Whether `weights` is written as ids of the hub are, and is no path on this machine."""
    looks_like_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", weights) is not None
    files = (".pt", ".pth", ".tar", ".bin", ".safetensors", ".ckpt", ".py")
    return looks_like_id and not Path(weights).exists() and not weights.endswith(files)


def model_folder(path: Path) -> Path | None:
    """The folder of a model in Hugging Face's format that a path means: itself, the one around a file of weights, or
    the only one inside; None for any other file.

    Raises UserError for a folder with none, or several, in it.
    """
    if path.is_file():
        weights = path.suffix == ".safetensors" or re.fullmatch(r"pytorch_model.*\.bin", path.name)
        return path.parent if weights and (path.parent / "config.json").is_file() else None
    if not path.is_dir():
        return None
    if (path / "config.json").is_file():
        return path
    inside = sorted(
        {config.parent for depth in (1, 2, 3) for config in path.glob("/".join(["*"] * depth + ["config.json"]))}
    )
    if len(inside) == 1:
        return inside[0]
    if inside:
        examples = ", ".join(str(folder.relative_to(path)) for folder in inside[:4])
        raise UserError(f"{path} has {len(inside)} models in it ({examples}): give the folder of one of them")
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    raise UserError(
        f"{path} is not a model in Hugging Face's format: no config.json in it, only {held}; give such a folder, or a "
        "checkpoint's file"
    )


def read_config(weights: str) -> dict[str, Any]:
    """config.json of a folder or hub id; UserError, within two seconds without network, if it cannot be had."""
    if Path(weights).is_dir():
        path = Path(weights) / "config.json"
        return read_record(path, HuggingFaceConfig)
    try:
        config, _ = PreTrainedConfig.get_config_dict(weights, local_files_only=not _must_download(weights))
    except ERRORS as error:
        raise UserError(
            f"{weights} is not a model in Hugging Face's format ({reason(error)}): check the id, or give a folder"
        ) from None
    return config


def _must_download(weights: str) -> bool:
    """Whether a hub id is not in the cache; UserError if it then cannot be fetched from here."""
    if isinstance(try_to_load_from_cache(weights, "config.json"), str):
        return False
    mend = "download it where there is a network, and give its folder"
    if hub_constants.HF_HUB_OFFLINE:
        raise UserError(f"{weights} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: {mend}")
    if not _reachable(hub_constants.ENDPOINT):
        raise UserError(
            f"{weights} is no folder here and not in the cache, and {hub_constants.ENDPOINT} cannot be reached: {mend}"
        )
    return True


def _reachable(endpoint: str) -> bool:
    """Whether a connection to the hub, or the proxy to it, is accepted. Looking up a name can hang: a thread waits."""
    address = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urllib.parse.urlsplit(proxy)
    answered = threading.Event()

    def connect() -> None:
        port = address.port or (80 if address.scheme == "http" else 443)
        try:
            socket.create_connection((address.hostname, port), timeout=NETWORK_SECONDS).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    return answered.is_set()


def _unnumbered(name: str) -> str:
    """A tensor's name whichever block it is of."""
    return re.sub(r"\.\d+\.", ".#.", name, count=1)


def pretrained(model_class: type[PreTrainedModel], weights: str, needed: str = "", **options: Any) -> PreTrainedModel:
    """A model in fp32 from a folder or hub id: safetensors if it has any, else pytorch_model.bin without its pickles.

    Raises UserError if it cannot be had, or lacks a tensor whose name starts with `needed`.
    """
    local = Path(weights).is_dir()
    if local:
        bins = any(Path(weights).glob("*.bin")) and not any(Path(weights).glob("*.safetensors"))
        formats = [not bins]
    else:
        formats = [True, False]
    for use_safetensors in formats:
        try:
            pair = model_class.from_pretrained(
                weights,
                local_files_only=local or not _must_download(weights),
                use_safetensors=use_safetensors,
                weights_only=True,  # of a .bin: never a pickle's objects
                output_loading_info=True,
                dtype=torch.float32,
                trust_remote_code=False,
                **options,
            )
        except ERRORS as error:
            if isinstance(error, OSError) and use_safetensors is not formats[-1]:
                continue
            raise UserError(
                f"{weights} cannot be read as {model_class.__name__} in Hugging Face's format ({reason(error)}): "
                "download it again"
            ) from None
        loaded, report = cast(tuple[PreTrainedModel, dict[str, Any]], pair)  # typed as the model alone
        break
    missing = sorted(name for name in report["missing_keys"] if name.startswith(needed))
    if missing:
        raise UserError(
            f"{weights}: {missing[0]} is missing ({len(missing)} encoder tensors in all): give a {model_class.__name__}"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        raise UserError(f"{weights}: {mismatched[0][0]} has another shape than config.json says: download it again")
    known = {_unnumbered(name) for name in loaded.state_dict()}
    for name in sorted(report["unexpected_keys"]):
        inner = name.removeprefix(f"{model_class.base_model_prefix}.").removeprefix("vision_model.")
        if name.startswith(needed) and _unnumbered(inner) in known:
            raise UserError(
                f"{weights}: {name} is of a block that its config.json does not have: download its config.json again"
            )
    for name, tensor in loaded.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{weights}: {name} has values that are not finite: the file is damaged, download it again")
    return loaded
