"""A family, a benchmark, a control, a kind of target and a solver that only this file knows go through every script.

Each is what docs/architecture.md says it takes, one entry of its registry; nothing of pez is patched besides.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_encoder_family import SPEC, Toy, by_hand

import plot_figures
import step1_generate
import step2_extract
import step3_probe
import step4_mechanisms
import step_intphys_attentive
import step_intphys_probe
import step_surprise
from constants import MODELS
from pez.cli import run_script
from pez.controls import CONTROLS, Control
from pez.encoder.families import FAMILIES
from pez.encoder.loading import load_encoder, random_encoder
from pez.encoder.preprocessing import read_frames
from pez.encoder.sources import ball_source
from pez.movies import MOVIE_DATASETS
from pez.movies.dataset import ALL_MOVIES, MovieDataset, Subtask, sample_frames
from pez.probes.data.ball import PROBE_SETS, ProbeSet
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds
from pez.probes.options import SOLVERS
from pez.probes.scores.bootstrap import bootstrap_mean
from pez.probes.scores.kinds import KINDS, Kind, Pooled
from pez.probes.solvers.regression import Setting
from pez.probes.solvers.solver import Fit, PredictsOnly, TrainedTogether, Trials
from pez.store import open_stores

pytestmark = pytest.mark.usefixtures("one_thread")

# ---------------------------------------------------------------- a control: every other frame, twice


def halved(frames, _clip_id):
    return frames[[index // 2 * 2 for index in range(len(frames))]]


# ---------------------------------------------------------------- a kind of target: right if its sign is right


def share_right(target, prediction) -> float:
    return float(((prediction > 0) == (target > 0)).mean())


def of_fold(predictions, repeat, layer, rows):
    target = predictions.variable.targets[rows]
    return {"overall": {"sign": share_right(target, predictions.predicted[repeat, layer, rows])}}


def sign_curve(target, prediction, group, resamples):
    return bootstrap_mean(((prediction > 0) == (target > 0))[..., 0], group, resamples, 0.0, 1.0)


SIGN = Kind(
    "mse", 0.5, 0.75, "sign", ("sign",), of_fold, {"sign": Pooled(sign_curve, lambda t, p, _: share_right(t, p))}
)


def leftward(store, _direction_target):
    """Whether the ball goes left or right, as a number whose sign tells; from the conditions, which the clips carry."""
    across = np.cos(np.deg2rad(store.clips["direction_deg"].to_numpy(dtype=float)))[:, None]
    return [Variable("leftward", store.name, -np.where(np.abs(across) < 1e-9, 1e-3, across), "", ("left",), "sign")]


# ---------------------------------------------------------------- a solver: the nearest clips' mean target


@dataclass(frozen=True)
class Nearest(TrainedTogether):
    """Of 1 or 5 neighbours; a setting's first number is how many."""

    settings: tuple[Setting, ...] = (Setting(1, 0), Setting(5, 0))
    last_epoch, patience, reads_any_epoch = 0, 0, False

    def solve(self, data, folds, fits, step, keep_weights=False):
        for fit in fits:
            yield NearestFitted(fit, self.settings, data, folds)
            step()


@dataclass(frozen=True)
class NearestFitted(PredictsOnly):
    fit: Fit
    settings: tuple[Setting, ...]
    data: ProbeData
    folds: Folds

    def predicted(self, rows):
        features = self.data.features(self.fit.layer).double()
        train = np.flatnonzero(~np.isin(self.folds.fold, self.fit.left_out))
        order = torch.cdist(features[rows], features[train]).argsort(dim=1)
        near = self.data.targets[train][order]
        return torch.stack([near[:, : int(setting.learning_rate)].mean(1) for setting in self.settings])

    def trials(self, fold):
        rows = self.folds.rows(fold)
        predicted = self.predicted(rows)
        loss = (predicted - self.data.targets[rows]).square().mean((1, 2))[:, None]
        return Trials(loss, torch.zeros(loss.shape, dtype=torch.int64), predicted)

    def prediction(self, choices):
        return self.predicted(self.folds.rows(self.fit.read))[choices[0].setting]


# ---------------------------------------------------------------- a benchmark: a bar that goes on, or jumps back


@dataclass(frozen=True)
class Bars(MovieDataset):
    """Folders MOVIE-{possible,impossible} of pictures in a folder of each scene."""

    def is_at(self, root: Path) -> bool:
        return (root / "bars.txt").is_file()

    def read(self, root: Path, skip_damaged: bool) -> pd.DataFrame:
        rows = []
        for scene in sorted(path for path in root.iterdir() if path.is_dir()):
            for number, movie in enumerate(sorted(scene.iterdir())):
                kind = "upright" if scene.name < "s4" else "lying"
                about = {"block": kind, "subtask": kind, "scene": scene.name, "movie": number, "n_frames": 16}
                possible = movie.name.endswith("-possible")
                rows.append(
                    {**about, "clip_id": f"{scene.name}/{movie.name}", "possible": possible, "directory": movie}
                )
        return pd.DataFrame(rows).astype({"directory": str})

    def frames(self, movie, n_sample: int) -> list[Path]:
        return [Path(movie.directory) / f"{index:02d}.png" for index in sample_frames(movie.n_frames, n_sample)]


SUBTASKS = (ALL_MOVIES, Subtask("upright", "upright bars", "subtask", "upright"))
BARS = Bars("bars", "Bars", "bars", Path("nowhere"), SUBTASKS, key_score="auc", models_shown=("frames",))


def write_bars(root: Path) -> Path:
    root.mkdir()
    (root / "bars.txt").touch()
    for scene in range(8):
        for number, possible in enumerate((True, False)):
            folder = root / f"s{scene}" / f"{number}-{'possible' if possible else 'impossible'}"
            folder.mkdir(parents=True)
            for frame in range(16):
                picture = np.full((32, 32, 3), 40 + 5 * scene, np.uint8)
                place = frame if possible or frame < 8 else frame - 8
                picture[:, place : place + 6] = 230 if possible else 180  # told by its look, and by where it ends
                Image.fromarray(picture if scene < 4 else picture.transpose(1, 0, 2)).save(folder / f"{frame:02d}.png")
    return root


# ---------------------------------------------------------------- through every script


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """The five registered, and a folder with the files of every script."""
    root = tmp_path_factory.mktemp("road")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", Toy)
        patch.setitem(MODELS, "frames", SPEC)
        patch.setitem(CONTROLS, "halved", Control("every other frame, twice", frames=halved))
        patch.setitem(KINDS, "sign", SIGN)
        patch.setitem(PROBE_SETS, "left", ProbeSet(("velocity",), leftward))
        patch.setitem(SOLVERS, "nearest", lambda options: Nearest())
        patch.setitem(MOVIE_DATASETS, "bars", BARS)
        model = ("--model", "frames", "--weights", "random", "--workers", "0")
        small = ("--preset", "quick", "--resolution", "32", "--limit", "48", "--workers", "1")
        run(step1_generate, "--dataset", "velocity", *small, "--output-root", root / "data")
        passes = ("--pooling", "mean", "time_mean_patch", "--control-seeds", "1")
        passes += ("--control", "halved", "random_weights")
        run(step2_extract, *model, "--data-root", root / "data", "--output-root", root / "features", *passes)
        probing = ("--feature-root", root / "features", "--results-dir", root / "results", "--grouping", "magnitude")
        probing += ("--pooling", "mean")
        run(step3_probe, "run", "--run-name", "left", "--probe-set", "left", *probing, "--control", *CONTROLS_ASKED)
        near = ("--solver", "nearest", "--protocol", "nested", "--control", "halved")
        run(step3_probe, "run", "--run-name", "near", "--probe-set", "left", *probing, *near)
        run(step4_mechanisms, "patches", "--run-name", "where", *probing[:4], *PATCHES)
        run(step3_probe, "audit", *probing[:4])
        run(step3_probe, "summarize", *probing[2:4])
        write_bars(root / "bars")
        movies = (*model, "--intphys-root", root / "bars", "--results-dir", root / "results", "--folds", "4")
        controls = ("--control", "shuffled_labels", "halved", "--control-seeds", "1")
        run(step_intphys_probe, *movies, "--feature-root", root / "lin", "--run-name", "bars_lin", *controls)
        few = ("--num-epochs", "1", "--num-probe-blocks", "1", "--num-heads", "1", "--protocol", "fixed")
        run(step_intphys_attentive, *movies, "--feature-root", root / "att", "--run-name", "bars_att", *few, *controls)
        pixels = ("--model", "tiny", "--weights", "random", "--model-resolution", "32")
        expected = ("--window-frames", "8", "--context-frames", "4", "--max-scenes-per-block", "1")
        run(step_surprise, *pixels, *movies[6:10], *expected, "--run-name", "bars_sur")
        run(plot_figures, "--results-dir", root / "results", "--figures", "1", "6", "8", "mechanisms", "report")
        yield root


PATCHES = ("--layers", "0", "1", "--control-seeds", "1")
CONTROLS_ASKED = ("shuffled_labels", "halved", "random_weights", "--control-seeds", "1")


def run(script, *options) -> None:
    parser = script.make_parser() if hasattr(script, "make_parser") else script.parser()
    assert run_script(parser, script.main, [str(option) for option in options]) == 0


def test_the_family_s_states_are_in_the_store_and_its_control_saw_every_other_frame(road):
    store = open_stores(road / "features")["velocity"]
    control = open_stores(road / "features/controls/halved")["velocity"]
    module, source = random_encoder("frames", SPEC, 0, torch.device("cpu")).module, ball_source(road / "data/velocity")
    clip = str(store.clips["clip_id"].iloc[5])
    frames = read_frames(source.paths[clip], 16)
    for read, seen in ((store, frames), (control, halved(frames, clip))):
        for layer, state in enumerate(by_hand(module, seen)[1:]):
            found = read.layer("resid_post", "mean", layer=layer, clip_ids=[clip])[0].numpy()
            np.testing.assert_allclose(found, state.mean((0, 1)), atol=2e-3)  # stored as float16
    assert store.settings["encoder"]["family"] == "toy"


def test_the_solver_s_predictions_are_its_own(road):
    table = pd.read_parquet(road / "results/predictions_near.parquet")
    store = open_stores(road / "features")["velocity"]
    for layer, rows in table.query("control == '' and protocol == 'nested'").groupby("layer"):
        features = store.layer("resid_post", "mean", layer=layer, clip_ids=list(rows["clip_id"])).double()
        target, fold = rows["target"].to_numpy(), rows["fold"].to_numpy()
        for row, own in enumerate(features):
            far = (features - own).norm(dim=1).numpy() + 1e9 * (fold == fold[row])
            nearest = target[np.argsort(far, kind="stable")]
            assert np.isclose(rows["prediction"].iloc[row], (nearest[0], nearest[:5].mean())).any()
    results = pd.read_csv(road / "results/results_near.csv")
    assert set(results["solver"]) == {"nearest"} and results["sign_nested_pooled"].between(0, 1).all()


def test_the_kind_s_score_stands_in_tables_with_its_controls(road):
    results = pd.read_csv(road / "results/results_left.csv")
    controls = pd.read_csv(road / "results/controls_left.csv")
    predictions = pd.read_parquet(road / "results/predictions_left.parquet")
    assert set(results["variable"]) == {"leftward"} and set(controls["control"]) == set(CONTROLS_ASKED[:3])
    nested = predictions.query("protocol == 'nested' and control == ''").set_index(["layer", "clip_id"])
    for layer, row in results.set_index("layer").iterrows():
        own = nested.loc[layer]
        assert row["sign_nested_pooled"] == pytest.approx(((own["prediction"] > 0) == (own["target"] > 0)).mean())
        assert row["sign_nested_pooled_low"] <= row["sign_nested_pooled"] <= row["sign_nested_pooled_high"]
    shuffled = controls[controls["control"] == "shuffled_labels"].set_index("layer")["sign_pooled"]
    own = results.set_index("layer")["sign_nested_pooled"]
    np.testing.assert_allclose(
        controls.query("control == 'shuffled_labels'").set_index("layer")["selectivity"], own - shuffled
    )


@pytest.mark.parametrize("run", ["bars_lin", "bars_att"])
def test_the_benchmark_s_movies_are_told_apart_overall_and_in_its_subtasks(road, run):
    rows = pd.read_csv(road / f"results/results_{run}.csv")
    assert set(rows["subtask"]) == {"overall", "upright"} and set(rows["data"]) == {"Bars"}
    assert rows.groupby("subtask")["n_scenes"].max().to_dict() == {"overall": 8, "upright": 4}
    controls = pd.read_csv(road / f"results/controls_{run}.csv")
    assert set(controls["control"]) == {"shuffled_labels", "halved"}
    if run == "bars_lin":
        assert (rows.query("subtask == 'overall'")["auc_pooled"] > 0.9).all()


def test_the_scripts_beside_the_road_take_them_too(road):
    surprise = pd.read_csv(road / "results/movies_bars_sur.csv")
    assert surprise["clip_id"].nunique() == 2 * 2 and set(surprise["block"]) == {"upright", "lying"}
    (places,) = (road / "results").glob("*patches*_where*.csv")
    assert set(pd.read_csv(places)["layer"]) == {0, 1}


def test_figures_verdicts_and_report_speak_of_all_four(road):
    page = (road / "results/report.html").read_text()
    assert "every other frame, twice" in page and "Bars" in page and "leftward" in page
    for number in (6, 8):
        verdict = (road / f"results/figure{number}_verdict.md").read_text()
        assert "Bars" in verdict and "halved" in verdict
        assert (road / f"results/figure{number}_intphys_overall_compare.png").is_file()


def test_a_checkpoint_of_the_family_is_recognised_by_its_keys(road, tmp_path):
    module = random_encoder("frames", SPEC, 0, torch.device("cpu")).module
    torch.save({"net": module.state_dict()}, tmp_path / "weights.pt")
    assert isinstance(load_encoder("custom", str(tmp_path / "weights.pt")), Toy)
