"""The training loop: for a number of updates or a time, resumable at any save, decided by its settings and seed."""

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from constants import MODELS, ModelSpec
from pez.encoder.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from pez.errors import UserError
from pez.files import atomic_path, exclusive, fingerprint, write_csv, write_json
from pez.pretraining.collapse import has_collapsed, spread
from pez.pretraining.masks import MASKS, draw_masks
from pez.pretraining.network import run_block
from pez.pretraining.objective import JEPA, PredictorSize
from pez.pretraining.schedule import Schedule
from pez.pretraining.video import MixSettings, VideoSettings, mixed_clips
from pez.provenance import provenance

STATE, LOG, LINES, SETTINGS = "state.pt", "log.csv", "log.jsonl", "settings.json"
DIAGNOSED_TOKENS = 2048
DIAGNOSED_EVERY = 5  # rows of the log


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the weights, but for the length of the training and the machine's rounding."""

    model: str = "tiny"
    batch_size: int = 256  # clips an update; as many times fewer as the last resolution has more pixels
    seed: int = 0
    learning_rate: float = 1e-3
    last_learning_rate: float = 1e-5
    warmup: float = 0.05  # share of the training
    weight_decay: float = 0.04
    momentum: tuple[float, float] = (0.997, 0.9995)
    clip_gradient: float = 3.0
    masks: str = "future"  # an entry of pez.pretraining.masks.MASKS
    weigh: str = "deviation"  # one of pez.pretraining.objective.WEIGHTS
    context_share: float = 0.36  # of all tokens, in every mask
    target_share: float = 0.3
    last_resolution: int | None = None  # of the clips of the last part of the training
    last_share: float = 0.25  # of the training
    bfloat16: bool = True
    predictor: PredictorSize = field(default_factory=PredictorSize)
    video: VideoSettings = field(default_factory=lambda: VideoSettings(resolution=96))
    mix: MixSettings = field(default_factory=MixSettings)

    @property
    def fingerprint(self) -> str:
        """The key by which a saved state is recognised."""
        return fingerprint(asdict(self))

    @property
    def spec(self) -> ModelSpec:
        """The registry's sizes, at the resolution of the first clips."""
        return replace(MODELS[self.model], resolution=self.video.resolution)

    def stage(self, progress: float) -> tuple[VideoSettings, int]:
        """Settings of the clips at this progress, and how many an update takes."""
        if self.last_resolution is None or progress < 1 - self.last_share:
            return self.video, self.batch_size
        ratio = (self.video.resolution / self.last_resolution) ** 2
        return replace(self.video, resolution=self.last_resolution), max(1, round(self.batch_size * ratio))


@dataclass(frozen=True)
class Length:
    """Updates, or seconds in all runs together, probes and saves included; the schedule follows the share of them that
    is done."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, steps: int, seconds: float) -> float:
        """0 ... 1."""
        return min(1.0, steps / self.steps if self.steps is not None else seconds / self.seconds)


class Trainer:
    """Trains in `directory`, from where a run of the same settings stopped.

    `block` is pez.pretraining.network.run_block or its compiled form.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        length: Length,
        directory: Path,
        device: torch.device,
        block: Callable = run_block,
    ):
        self.settings, self.length, self.directory, self.device = settings, length, Path(directory), device
        self.schedule = Schedule(
            settings.warmup, settings.learning_rate, settings.last_learning_rate, settings.momentum
        )
        self.kinds = MASKS[settings.masks]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = JEPA(settings.spec, settings.predictor, settings.video.n_frames, len(self.kinds)).to(device)
        self.model.block = block
        self.model.dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
        self.optimizer = _optimizer(self.model, settings)
        self.step, self.clips, self.seconds, self.log = 0, 0, 0.0, []
        self.encoded: torch.Tensor | None = None  # of the last update, by the target encoder

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self.length.progress(self.step, self.seconds)

    def warm_up(self) -> float:
        """Compile for all shapes of the training, on throw-away updates of copies; seconds that it took."""
        started = time.monotonic()
        for progress in {0.0, 1.0 if self.settings.last_resolution else 0.0}:
            loss, _ = self._loss(progress, step=0)
            loss.backward()
            self.optimizer.zero_grad(set_to_none=True)
        _wait(self.device)
        return time.monotonic() - started

    def run(
        self,
        log_every: int,
        save_every_s: float = 60.0,
        evaluate: Callable[["Trainer"], dict] | None = None,
        evaluate_every: int = 0,
        saved: Callable[["Trainer"], None] | None = None,
        until: float = 1.0,
        stop_at: int | None = None,
    ) -> None:
        """Train until this progress, or to the update `stop_at`.

        A row of the log, the mean of `log_every` updates, is also printed as a line of JSON; the state is saved every
        `save_every_s` seconds, where a row is due, and at the end, after which `saved` is called; what `evaluate`
        returns every `evaluate_every` updates joins the row.

        Raises UserError if the folder holds a run of other settings, another process trains there, the loss is not
        finite or the representation collapses (what was saved stays).
        """
        with exclusive(self.directory):
            self.restore()
            begun = last_save = last_row = time.monotonic()
            before, totals = self.seconds, []
            while self.progress < until and self.step != stop_at:
                totals.append(self._update())
                self.seconds = before + time.monotonic() - begun
                ends = self.progress >= until or self.step == stop_at
                evaluates = evaluate is not None and evaluate_every and self.step % evaluate_every == 0
                if not (self.step % log_every == 0 or evaluates or ends):
                    continue
                row = self._row(totals)  # the device has caught up
                seconds = time.monotonic() - last_row
                per_second = (self.clips - (self.log[-1]["clips"] if self.log else 0)) / seconds
                row |= {"seconds": seconds, "clips_per_s": per_second, "tokens_per_s": per_second * row["tokens"]}
                totals = []
                if evaluates:
                    row |= evaluate(self)
                self.log.append(row)
                self._log_row(row)
                if time.monotonic() - last_save >= save_every_s:
                    self._save(saved)
                    last_save = time.monotonic()
                last_row = time.monotonic()
                self.seconds = before + last_row - begun
            self._save(saved)

    def _update(self) -> dict:
        """One update; the random numbers depend on seed and step alone, so a resumed run goes on as it would have."""
        settings, progress = self.settings, self.progress
        rate = self.schedule.rate_at(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, encoded = self._loss(progress, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([value for _, value in self.model.trained()], settings.clip_gradient)
        self.optimizer.step()
        self.model.follow(self.schedule.momentum_at(progress))
        self.step += 1
        self.clips += len(encoded)
        self.encoded = encoded
        return {"loss": loss.detach(), "norm": norm, "rate": rate}

    def _loss(self, progress: float, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of an update, and the target encoder's output."""
        settings, model = self.settings, self.model
        generator = torch.Generator(self.device).manual_seed(settings.seed * 1_000_003 + step)
        video, n = settings.stage(progress)
        spec = settings.spec
        grid = video.n_frames // spec.tubelet_size, video.resolution // spec.patch_size
        n_tokens = grid[0] * grid[1] ** 2
        tokens = model.tokens(normalised(mixed_clips(n, video, settings.mix, generator)))
        counts = (max(1, round(share * n_tokens)) for share in (settings.context_share, settings.target_share))
        n_context, n_target = counts
        masks = [draw_masks(kind, n, *grid, generator, n_context, n_target) for kind in self.kinds]
        encoded = model.encode_targets(tokens, grid)
        return model.loss(tokens, grid, encoded, masks, settings.weigh), encoded

    def _row(self, totals: list[dict]) -> dict:
        """Means of the updates since the last row; waits for the device."""
        loss = float(torch.stack([each["loss"] for each in totals]).mean())
        row = {
            "step": self.step,
            "progress": self.progress,
            "clips": self.clips,
            "batch": len(self.encoded),
            "tokens": self.encoded.shape[1],
            "loss": loss,
            "gradient_norm": float(torch.stack([each["norm"] for each in totals]).mean()),
            "learning_rate": totals[-1]["rate"],
        }
        if not math.isfinite(row["loss"]):
            raise UserError(f"the loss is not finite at step {self.step}: lower --learning-rate and start anew")
        if len(self.log) % DIAGNOSED_EVERY == 0:
            tokens = self.encoded.flatten(0, 1)
            measured = spread(tokens[:: max(1, len(tokens) // DIAGNOSED_TOKENS)])
            if self.progress >= self.settings.warmup and has_collapsed(measured):
                raise UserError(
                    f"the targets collapsed at step {self.step} (standard deviation {measured['target_std']:.2g}, "
                    f"effective rank {measured['effective_rank']:.1f}): start anew with a lower --learning-rate or "
                    "another --seed"
                )
            row |= measured
        return row

    def _log_row(self, row: dict) -> None:
        line = json.dumps(
            {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}
        )
        print(line, flush=True)
        with (self.directory / LINES).open("a") as lines:
            lines.write(line + "\n")

    def restore(self) -> None:
        """Go on from the state in the folder, if it has one."""
        path = self.directory / STATE
        if not path.is_file():
            if not (self.directory / SETTINGS).is_file():
                write_json(
                    self.directory / SETTINGS,
                    {"settings": asdict(self.settings), "length": asdict(self.length), **provenance()},
                )
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["fingerprint"] != self.settings.fingerprint:
            raise UserError(f"{self.directory} holds a run of other settings: choose another --output-dir")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.clips, self.seconds, self.log = (state[name] for name in ("step", "clips", "seconds", "log"))

    def _save(self, saved: Callable[["Trainer"], None] | None) -> None:
        state = {
            "fingerprint": self.settings.fingerprint,
            "step": self.step,
            "clips": self.clips,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": self.log,
        }
        with atomic_path(self.directory / STATE) as temporary:
            torch.save(state, temporary)
        write_csv(self.directory / LOG, pd.DataFrame(self.log))
        if saved:
            saved(self)


def normalised(clips: torch.Tensor) -> torch.Tensor:
    """Clips in [0, 1] as the encoder takes them: rounded to the 8 bits of a file, ImageNet's mean and deviation."""
    mean, deviation = _imagenet(clips.device)
    return ((clips * 255).round() / 255 - mean) / deviation


@functools.cache
def _imagenet(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept on the device: making them anew would wait for all that it has yet to do."""
    return tuple(torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _optimizer(model: JEPA, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; biases and norms do not decay."""
    decayed = [value for _, value in model.trained() if value.ndim > 1]
    others = [value for _, value in model.trained() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = decayed[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), fused=fused)
