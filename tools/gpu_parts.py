"""What the parts of tools/gpu_check.py share: how they report rows, clips, weights, clocks."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from constants import MODELS, ModelSpec
from pez.encoder.blocks import own_blocks
from pez.encoder.flops import wait
from pez.encoder.sources import ClipSource
from pez.encoder.vjepa2 import VJEPA2


@dataclass(frozen=True)
class Bench:
    """Where a part runs: `folder` is scratch that its parts share, `cores` what this one may use of the machine.

    `add(name, **values)` puts a row into the results at once; `check` a row that can fail.
    """

    device: torch.device
    small: bool
    folder: Path
    cores: int
    add: Callable[..., None]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def check(self, name: str, value: float, most: float, **values: Any) -> None:
        """A row that fails unless `value` <= `most`; NaN fails."""
        self.add(name, value=value, most=most, passed=bool(value <= most), **values)

    def holds(self, name: str, passed: bool, **values: Any) -> None:
        """A row that fails unless `passed`."""
        self.add(name, passed=bool(passed), **values)

    def seconds(self, work: Callable[[], Any], rounds: int = 5, warm: int = 1) -> float:
        """Median seconds of `work`, the device's queue empty before and after; the first `warm` do not count."""
        for _ in range(warm):
            work()
        times = []
        for _ in range(rounds):
            wait(self.device)
            start = time.perf_counter()
            work()
            wait(self.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest value."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).abs().max() / expected.abs().max())


def rms_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square difference as a share of the root mean square."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def official_state(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors under the names of Meta's files, weights of standard deviation 0.02, norms near one."""
    generator, width = torch.Generator().manual_seed(seed), spec.width
    shapes = {"patch_embed.proj.weight": (width, 3, spec.tubelet_size, spec.patch_size, spec.patch_size)}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    inside = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    inside |= {"mlp.fc1": (spec.mlp_width, width), "mlp.fc2": (width, spec.mlp_width)}
    for block in range(spec.depth):
        for name, shape in inside.items():
            shapes[f"blocks.{block}.{name}.weight"], shapes[f"blocks.{block}.{name}.bias"] = shape, shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"blocks.{block}.{norm}.weight"] = shapes[f"blocks.{block}.{norm}.bias"] = (width,)
    state = {name: torch.empty(shape).normal_(std=0.02, generator=generator) for name, shape in shapes.items()}
    for name, tensor in state.items():
        if "norm" in name and name.endswith("weight"):
            tensor.add_(1)
    return {f"module.backbone.{name}": tensor for name, tensor in state.items()}


def random_encoder(model: str, device: torch.device, resolution: int | None = None, own: bool = True) -> VJEPA2:
    """An encoder of full size whose weights are drawn on the device: seconds faster than its own initialisation.

    With the project's blocks, or transformers' own.
    """
    spec = MODELS[model]
    if resolution:
        spec = ModelSpec(**{**spec.__dict__, "resolution": resolution})
    with torch.device("meta"):
        module = VJEPA2.build(spec)
    module = module.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in module.state_dict().items():
        tensor.normal_(std=0.02, generator=generator)
        if "norm" in name and name.endswith("weight"):
            tensor.add_(1)
    module = own_blocks(module) if own else module
    return VJEPA2(module, spec, model, "random weights", "drawn on the device", None, device)


def pass_settings(encoder, captures=("resid_post",), poolings=("temporal_last",), dtype="bfloat16") -> dict:
    """Settings for pez.encoder.extract.encode_pooled."""
    sizes = {"n_tubelets": encoder.layout.n_tubelets(16), "n_patches": encoder.layout.n_patches}
    return {"captures": list(captures), "poolings": list(poolings), "dtype": dtype, **sizes}


def noise(n_clips: int, side: int, seed: int = 0) -> torch.Tensor:
    """Clips of noise, uint8 [n, 16, 3, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n_clips, 16, 3, side, side), dtype=torch.uint8, generator=generator)


def write_clips(folder: Path, n_clips: int, side: int, cores: int) -> None:
    """Folders of 16 PNGs of noise: the hardest to decode. Folders that exist stay."""
    missing = [index for index in range(n_clips) if not (folder / f"clip_{index:03d}" / "frame_15.png").is_file()]
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(_write_clip, [folder] * len(missing), missing, [side] * len(missing)))


def _write_clip(folder: Path, index: int, side: int) -> None:
    rng, clip = np.random.default_rng(index), folder / f"clip_{index:03d}"
    clip.mkdir(parents=True, exist_ok=True)
    for frame in range(16):
        picture = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        picture.save(clip / f"frame_{frame:02d}.png", compress_level=1)


def clip_source(folder: Path, n_clips: int) -> ClipSource:
    """Source of the first of these clips."""
    names = [f"clip_{index:03d}" for index in range(n_clips)]
    paths = {name: [folder / name / f"frame_{frame:02d}.png" for frame in range(16)] for name in names}
    clips = pd.DataFrame({"clip_id": names, "n_frames": 16})
    return ClipSource("noise", clips, None, paths, {"name": "noise", "fingerprint": str(n_clips)})
