"""The training loop: resumable at any save, decided by its settings and seed alone."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from constants import MODELS, ModelSpec
from pez.encoder.preprocessing import normalise
from pez.errors import UserError
from pez.files import atomic_path, exclusive, fingerprint, write_csv, write_json
from pez.pretraining.collapse import has_collapsed, spread
from pez.pretraining.masks import KINDS, draw_mask
from pez.pretraining.objective import JEPA, PredictorSize
from pez.pretraining.schedule import Schedule
from pez.pretraining.video import VideoSettings, training_clips
from pez.runs import progress, provenance

STATE, LOG, SETTINGS = "state.pt", "log.csv", "settings.json"
DIAGNOSED_TOKENS = 2048


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the weights, but for the machine's rounding."""

    model: str = "tiny"
    steps: int = 2200
    batch_size: int = 16
    seed: int = 0
    learning_rate: float = 1e-3
    last_learning_rate: float = 1e-5
    warmup: int = 100
    weight_decay: float = 0.04
    momentum: tuple[float, float] = (0.998, 0.9998)
    clip_gradient: float = 3.0
    asked: float = 0.5  # share of the hidden tokens that are predicted
    bfloat16: bool = True
    predictor: PredictorSize = field(default_factory=PredictorSize)
    video: VideoSettings = field(default_factory=VideoSettings)

    @property
    def fingerprint(self) -> str:
        """What a saved state is known by."""
        return fingerprint(asdict(self))

    @property
    def spec(self) -> ModelSpec:
        """The registry's sizes, at the resolution of the training clips."""
        return replace(MODELS[self.model], resolution=self.video.resolution)


class Trainer:
    """Trains in `directory`, from where a run of the same settings stopped."""

    def __init__(self, settings: TrainingSettings, directory: Path, device: torch.device):
        self.settings, self.directory, self.device = settings, Path(directory), device
        self.schedule = Schedule(
            settings.steps, settings.warmup, settings.learning_rate, settings.last_learning_rate, settings.momentum
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = JEPA(settings.spec, settings.predictor, settings.video.n_frames, len(KINDS)).to(device)
        self.optimizer = _optimizer(self.model, settings)
        self.step, self.log = 0, []

    def run(
        self,
        every: int,
        evaluate: Callable[["Trainer"], dict] | None = None,
        evaluate_every: int = 0,
        stop_at: int | None = None,
    ) -> None:
        """Train to the last step, or to `stop_at` of the same schedule; save every `every` steps; add what `evaluate`
        returns to the log.

        Raises UserError if the folder holds a run of other settings, another process trains there, or the
        representation collapses (what was saved stays).
        """
        with exclusive(self.directory):
            self._restore()
            last = min(stop_at or self.settings.steps, self.settings.steps)
            bar = progress(total=last, initial=self.step, description="training", unit="step")
            with bar:
                while self.step < last:
                    measured = self._train_step(diagnose=(self.step + 1) % every == 0)
                    self.step += 1
                    bar.update()
                    bar.set_postfix(loss=f"{measured['loss']:.3f}", refresh=False)
                    if evaluate and self.step % evaluate_every == 0:
                        measured |= evaluate(self)
                    self.log.append({"step": self.step, **measured})
                    if self.step % every == 0 or self.step == last:
                        self._save()

    def _train_step(self, diagnose: bool) -> dict:
        """One update; the random numbers depend on seed and step alone, so a resumed run goes on as it would have."""
        settings, started = self.settings, time.monotonic()
        generator = torch.Generator(self.device).manual_seed(settings.seed * 1_000_003 + self.step)
        clips = normalised(training_clips(settings.batch_size, settings.video, generator))
        spec = settings.spec
        shape = settings.video.n_frames // spec.tubelet_size, spec.resolution // spec.patch_size
        masks = [draw_mask(kind, *shape, generator, settings.asked) for kind in KINDS]
        rate = self.schedule.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
            encoded = self.model.encode_targets(clips)
            targets = F.layer_norm(encoded, encoded.shape[-1:])
            loss = self.model.loss(clips, targets, masks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([value for _, value in self.model.trained()], settings.clip_gradient)
        self.optimizer.step()
        self.model.follow(self.schedule.momentum_at(self.step))
        measured = {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        if not math.isfinite(measured["loss"]):
            raise UserError(f"the loss is not finite at step {self.step}: lower --learning-rate and start anew")
        if diagnose:
            measured |= self._diagnosed(encoded)
        return measured | {"seconds": time.monotonic() - started}

    def _diagnosed(self, encoded: torch.Tensor) -> dict:
        tokens = encoded.flatten(0, 1)
        measured = spread(tokens[:: max(1, len(tokens) // DIAGNOSED_TOKENS)])
        if self.step >= self.settings.warmup and has_collapsed(measured):
            raise UserError(
                f"the targets collapsed at step {self.step} (standard deviation {measured['target_std']:.2g}, "
                f"effective rank {measured['effective_rank']:.1f}): start anew with a lower --learning-rate or "
                "another --seed"
            )
        return measured

    def _restore(self) -> None:
        path = self.directory / STATE
        if not path.is_file():
            write_json(self.directory / SETTINGS, {"settings": asdict(self.settings), **provenance()})
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["fingerprint"] != self.settings.fingerprint:
            raise UserError(f"{self.directory} holds a run of other settings: choose another --output-dir")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.log = state["step"], state["log"]

    def _save(self) -> None:
        state = {
            "fingerprint": self.settings.fingerprint,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": self.log,
        }
        with atomic_path(self.directory / STATE) as temporary:
            torch.save(state, temporary)
        write_csv(self.directory / LOG, pd.DataFrame(self.log))


def normalised(clips: torch.Tensor) -> torch.Tensor:
    """Clips in [0, 1] as the encoder takes them: rounded to the 8 bits of a file, ImageNet's mean and deviation."""
    return normalise((clips * 255).round())


def _optimizer(model: JEPA, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; biases and norms do not decay."""
    decayed = [value for _, value in model.trained() if value.ndim > 1]
    others = [value for _, value in model.trained() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999))
