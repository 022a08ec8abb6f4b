"""What is measured: every step's work, what it is compared with, and at which sizes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from benchmarks import bench_attentive, bench_bootstrap, bench_extract, bench_protocols, bench_render, bench_ridge
from benchmarks import bench_sweep as sweep

Prepare = Callable[..., AbstractContextManager[Callable[[], Any]]]
SCALES = ("full", "quick", "tiny")


@dataclass(frozen=True)
class Case:
    """`work` in words, and `ours`, which does it; `rival` in words, and `theirs`, if there is one; `sizes`: arguments
    of both by scale; `grows`: measured with four times the clips too. A case with `most_times` or `most_seconds` is a
    cost with a bound: what `ours` may take as a multiple of `theirs`, or on the clock.
    """

    name: str
    work: str
    ours: Prepare
    sizes: dict[str, dict]
    rival: str = ""
    theirs: Prepare | None = None
    grows: bool = True
    most_times: float | None = None
    most_seconds: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether it is a cost with a bound rather than a comparison."""
        return self.most_times is not None or self.most_seconds is not None


def _sizes(full: dict, quick: dict, tiny: dict) -> dict[str, dict]:
    """The quick and tiny sizes are the full ones but for what they change."""
    return {"full": full, "quick": {**full, **quick}, "tiny": {**full, **quick, **tiny}}


_EXTRACT = _sizes({"clips": 8, "model": "tiny", "device": "cpu"}, {"clips": 2}, {"clips": 1, "resolution": 64})
_SWEEP = {"layers": 1, "folds": 5, "width": 1024, "variables": 2}
_SMALL_SWEEP = {"folds": 2, "width": 64, "variables": 1}

CASES = (
    Case(
        "render",
        "frames of balls at 256², supersampled: only the box round ball and shadow",
        bench_render.boxes,
        _sizes({"clips": 2, "frames": 16}, {"clips": 1, "frames": 2}, {"frames": 1}),
        "every frame as a whole",
        bench_render.full_frames,
    ),
    Case(
        "extract",
        "six branches (2 captures × 3 poolings) from PNGs to the store: one encoder pass",
        bench_extract.one_pass,
        _EXTRACT,
        "an encoder pass for each branch",
        bench_extract.one_pass_per_branch,
    ),
    Case(
        "sweep",
        "20 AdamW settings of every fold and variable, trained together",
        sweep.together,
        _sizes({**_SWEEP, "clips": 392}, {**_SMALL_SWEEP, "clips": 98}, {"clips": 40, "width": 16}),
        "torch.optim.AdamW, one probe after another",
        sweep.one_at_a_time,
    ),
    Case(
        "ridge",
        "all 17 strengths of a fold from one decomposition",
        bench_ridge.one_decomposition,
        _sizes({**_SWEEP, "layers": 4, "clips": 392}, {"layers": 1, "width": 256}, {"clips": 40, "width": 16}),
        "scikit-learn's Ridge, a fit for each strength",
        bench_ridge.scikit_learn,
    ),
    Case(
        "attentive",
        "attentive probes (width 32, depth 4), trained in stacks",
        bench_attentive.stacked,
        _sizes({"clips": 120, "layers": 6, "folds": 5, "epochs": 3}, {"layers": 2, "epochs": 1}, {"clips": 20}),
        "torch.optim.AdamW, one probe after another",
        bench_attentive.one_at_a_time,
    ),
    Case(
        "report",
        "bootstrap resamples of every layer's R², by sums over groups",
        bench_bootstrap.group_sums,
        _sizes({"clips": 392, "layers": 24, "resamples": 1000}, {"layers": 4, "resamples": 100}, {"clips": 40}),
        "resampled clips and scikit-learn's r2_score, layer by layer",
        bench_bootstrap.one_by_one,
    ),
    Case(
        "six branches",
        "one encoder pass for six branches",
        bench_extract.one_pass,
        _EXTRACT,
        "one encoder pass for one branch",
        bench_extract.one_branch,
        grows=False,
        most_times=1.1,
    ),
    Case(
        "both protocols",
        "step 3 with --protocol both",
        bench_protocols.both,
        _sizes({"layers": 4, "depth": 12, "width": 192}, {"layers": 1, "depth": 2}, {"width": 8}),
        "with --protocol paper",
        bench_protocols.paper_alone,
        grows=False,
        most_times=6.0,
    ),
    Case(
        "Large sweep",
        "20 AdamW settings of all layers of V-JEPA 2 Large, 3 variables",
        sweep.together,
        _sizes({**_SWEEP, "layers": 24, "variables": 3, "clips": 392}, {"layers": 2}, {"width": 16, "clips": 40}),
        grows=False,
        most_seconds=90.0,
    ),
    Case(
        "Large sweep, 400 epochs",
        "the same without early stopping",
        sweep.all_epochs,
        _sizes({**_SWEEP, "layers": 24, "variables": 3, "clips": 392}, {"layers": 1}, {"width": 16, "clips": 40}),
        grows=False,
        most_seconds=90.0,
    ),
)
