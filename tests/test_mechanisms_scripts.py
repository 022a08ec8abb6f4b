"""The script end to end on small clips: shards, going on after a kill, refusals; figures, verdicts and the report."""

import json

import numpy as np
import pandas as pd
import pytest
from clips import write_moving_squares
from probe_stores import planted_root

import plot_figures
import step4_mechanisms
from pez.cli import run_script
from pez.figures.plots.mechanisms import FIGURES, MechanismRun
from pez.figures.report.gather import gather
from pez.figures.report.page import render
from pez.figures.verdicts.mechanisms import below
from pez.figures.verdicts.statements import FAILS, HOLDS, UNDECIDED
from pez.files import write_parquet

SMALL = ["--model", "tiny", "--weights", "random", "--model-resolution", "64", "--workers", "0"]


def step4(*words: str) -> int:
    return run_script(step4_mechanisms.make_parser(), step4_mechanisms.main, [*words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Squares, a planted store of another run, and the tables of attention, sequence, overlap and steer."""
    place = tmp_path_factory.mktemp("scripts")
    write_moving_squares(place / "squares" / "velocity", 17, size=64)
    results = ["--results-dir", str(place / "results")]
    words = ["--run-name", "clips", *results, "--data-root", str(place / "squares"), *SMALL, "--bootstrap", "20"]
    assert step4("attention", *words, "--control", "random_weights", "--control-seeds", "1") == 0
    root = planted_root(place / "features", depth=3, width=16, pooling="mean")
    words = ["--run-name", "stored", *results, "--feature-root", str(root)]
    sequence = ["--control", "shuffled_labels", "--control-seeds", "1", "--null-draws", "5"]
    assert step4("sequence", *words, *sequence) == 0
    assert step4("overlap", "--run-name", "stored", *results, "--null-draws", "20") == 0
    assert step4("steer", *words, "--layer", "2", "--null-draws", "10", "--bootstrap", "20") == 0
    assert step4("coordinates", *words, "--bootstrap", "20") == 0
    return place


def test_shards_and_killed_passes_give_the_same_tables(folder, tmp_path):
    words = ["attention", "--run-name", "clips", "--data-root", str(folder / "squares"), *SMALL, "--bootstrap", "20"]
    words += ["--control", "random_weights", "--control-seeds", "1", "--results-dir", str(tmp_path)]
    assert step4(*words, "--num-shards", "2", "--shard-index", "1") == 0
    assert not list(tmp_path.glob("*.csv"))  # the first shard is still to come
    assert step4(*words, "--num-shards", "2", "--shard-index", "0") == 0
    for name in ("attention_clips.csv", "attention_layers_clips.csv"):
        assert (tmp_path / name).read_bytes() == (folder / "results" / name).read_bytes()
    parts = sorted((tmp_path / "mechanisms_clips" / "attention" / "main").glob("part_*.parquet"))
    assert len(parts) == 2  # of 16 clips at most
    kept = parts[1].stat().st_mtime_ns
    parts[0].unlink()  # as if killed on the way
    assert step4(*words) == 0 and parts[1].stat().st_mtime_ns == kept
    assert (tmp_path / "attention_clips.csv").read_bytes() == (folder / "results" / "attention_clips.csv").read_bytes()


def test_refusals(folder, capsys):
    base = ["attention", "--run-name", "clips", "--results-dir", str(folder / "results"), "--data-root"]

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert step4(*words) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        return line

    data = str(folder / "squares")
    assert "weights_sha256" in refused(*base, data, *SMALL, "--weights-seed", "3")
    assert "resolution 64, now asked for 96" in refused(*base, data, *SMALL, "--model-resolution", "96")
    assert "made with clips" in refused(*base, data, *SMALL, "--max-clips", "4")
    assert "no clip set" in refused(*base, str(folder / "nowhere"), *SMALL)
    assert "--zone-layers is FIRST-LAST" in refused(*base, data, *SMALL, "--zone-layers", "deep")
    assert "has no results of sequence" in refused("overlap", "--run-name", "clips", *base[3:5])


def test_figures_of_whatever_is_there(folder):
    words = ["--results-dir", str(folder / "results"), "--figures", "mechanisms"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, words) == 0
    drawn = {path.name for path in (folder / "results").glob("*.png")}
    expected = {
        "figure3_attention_clips",
        "figure19_attention_clips",
        "figure22_dimensions_stored",
        "table3_overlap_stored",
    }
    expected |= {"figure23_sequence_stored", "figure24_steering_stored", "figure24_targets_stored"}
    expected |= {"figure_coordinates_stored"}
    assert drawn == {f"{name}.png" for name in expected}
    run = MechanismRun.open(folder / "results", "stored")
    assert FIGURES["18"].draw(run) is None and "random weights" in run.title("x")
    assert run_script(plot_figures.make_parser(), plot_figures.main, [*words[:2], "--figures", "18"]) == 2


def test_tuned_units_in_their_tables_and_figures(tmp_path):
    place, results = write_moving_squares(tmp_path / "squares" / "velocity", 16, size=64), tmp_path / "results"
    clips = pd.read_parquet(place / "clips.parquet")
    clips["direction_deg"] = (clips["direction_deg"] // 45) * 45  # two clips to each of eight
    write_parquet(place / "clips.parquet", clips.assign(magnitude=[1.0, 3.0] * 8))
    words = ["--run-name", "clips", "--results-dir", str(results), "--data-root", str(tmp_path / "squares"), *SMALL]
    assert step4("tuning", *words, "--layers", "0", "4", "--folds", "3") == 0
    units = pd.read_parquet(results / "tuning_clips.parquet")
    named = {"delta_r2_max", "t", "y", "x", "pd_deg", "gain", "delta_r2_pooled", "pd_pooled", "r2_second_harmonic"}
    assert named | {"r2_given_place", "delta_r2_speed", "preferred_speed", "shape"} <= set(units)
    means = pd.read_parquet(results / "tuning_means_clips.parquet")
    assert len(means) == 8 * len(units) and (means["n"] == 2).all() and means["sd"].gt(0).any()
    # the first harmonic of eight means is that of all clips, where directions are equally many
    first = means[(means["layer"] == 4) & (means["unit"] == 7)].sort_values("direction_deg")
    code = np.exp(1j * np.deg2rad(first["direction_deg"].to_numpy()))
    preferred = np.rad2deg(np.angle((first["mean"].to_numpy() * code).sum()))
    fitted = units.loc[(units["layer"] == 4) & (units["unit"] == 7), "pd_pooled"].iloc[0]
    assert abs((preferred - fitted + 180) % 360 - 180) < 1
    figures = ["--results-dir", str(results), "--figures", "4", "20", "21", "heatmap"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, figures) == 0
    expected = ("figure4_tuning", "figure20_tuning", "figure21_speed_tuning", "figure_tuning_heatmap")
    assert {path.stem for path in results.glob("*.png")} == {f"{name}_clips" for name in expected}


def test_verdicts_and_the_chapter_of_the_report(folder):
    words = ["--results-dir", str(folder / "results"), "--figures", "mechanisms"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, words) == 0
    record = json.loads((folder / "results" / "mechanisms_verdict_stored.json").read_text())
    claims = {each["claim"]: each["verdict"] for each in record["statements"]}
    assert set(claims.values()) <= {HOLDS, FAILS, UNDECIDED} and "1 probe does not steer" in claims
    assert any("more orthogonal probes than speed" in claim for claim in claims)
    attention = json.loads((folder / "results" / "mechanisms_verdict_clips.json").read_text())
    assert len(attention["statements"]) == 3
    report = gather(folder / "results")
    assert [run.name for run in report.mechanisms] == ["clips", "stored"]
    assert 'id="mechanisms"' in render(report)


@pytest.mark.parametrize(
    ("options", "in_sample", "with_nulls"),
    [
        (["--split", "paper70"], True, True),  # the judge `paper` instead, and nulls by it
        (["--judge", "paper", "mlp"], True, False),  # nulls are by `split`: not beside another judge
        (["--judge", "own"], False, False),
    ],
)
def test_steering_without_the_split_half_judge(folder, tmp_path, options, in_sample, with_nulls):
    results = ["--results-dir", str(tmp_path)]
    words = ["--run-name", "other", *results, "--feature-root", str(folder / "features"), "--layer", "2"]
    assert step4("steer", *words, "--null-draws", "5", "--bootstrap", "20", *options) == 0
    assert run_script(plot_figures.make_parser(), plot_figures.main, [*results, "--figures", "mechanisms"]) == 0
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"figure24_steering_other", *(["figure24_targets_other"] if in_sample else [])}
    run = MechanismRun.open(tmp_path, "other")
    figure = FIGURES["24"].draw(run)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[:1] == (["Judge fitted on the edited clips (C.12)"] if in_sample else ["Who judges"])
    assert "Split-half judge" not in titles and "Who judges" in titles
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert ("random sequence" in labels) == with_nulls
    assert ("in sample: not the numbers to quote" in figure.get_supxlabel()) == in_sample
    if in_sample:
        assert "edited clips (C.12). Its readings are in sample" in FIGURES["24targets"].draw(run).get_supxlabel()
        record = json.loads((tmp_path / "mechanisms_verdict_other.json").read_text())
        claims = [each["claim"] for each in record["statements"] if each["of"] == "edits of stored features"]
        assert len(claims) == 2 + with_nulls
        assert all("judged in sample" in claim and "not the number to quote" in claim for claim in claims)
    else:
        assert FIGURES["24targets"].draw(run) is None and not list(tmp_path.glob("mechanisms_verdict_*"))


def test_an_edit_stands_beside_its_null_in_one_table(folder):
    steering = pd.read_csv(folder / "results" / "steering_stored.csv", keep_default_na=False, na_values=[""])
    nulls = pd.read_csv(folder / "results" / "steering_nulls_stored.csv").query("null == 'random_sequence'")
    beside = steering.dropna(subset="null_mean")
    assert set(zip(beside["arm"], beside["judge"], beside["target"].astype(str))) == {("probes", "split", "all")}
    assert dict(zip(beside["n_probes"], beside["null_p"])) == dict(zip(nulls["n_probes"], nulls["p"]))
    assert (beside["mae_target"] - nulls["probes_mae_target"].to_numpy()).abs().max() < 1e-9


def test_every_table_says_what_it_was_made_from(folder):
    tables = [*(folder / "results").glob("*.csv"), *(folder / "results").glob("*.parquet")]
    assert len(tables) == 13
    for path in tables:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False)
        assert list(table)[:2] == ["control", "control_seed"], path.name
        assert list(table)[-4:] == ["n_clips", "n_groups", "seed", "protocol"], path.name
        assert set(table["n_clips"]) == {17 if "clips" in path.stem else 128} and (table["seed"] == 0).all()
        assert table["n_groups"].between(2, 64).all(), path.name
        assert set(table["protocol"]) <= {"nested", "paper", "fixed", "none"}
    steering = pd.read_csv(folder / "results" / "steering_stored.csv")
    assert set(steering.loc[steering["protocol"] == "paper", "judge"]) == {"paper"}
    overlap = pd.read_csv(folder / "results" / "overlap_stored.csv")
    named = {f"chance_{kind}_{what}" for kind in ("space", "data", "shuffled") for what in ("mean", "low", "high")}
    assert named <= set(overlap)


def test_attention_of_some_layers_is_that_of_all(folder, tmp_path):
    words = ["attention", "--run-name", "clips", "--data-root", str(folder / "squares"), *SMALL, "--bootstrap", "20"]
    assert step4(*words, "--results-dir", str(tmp_path), "--layers", "4", "2") == 0
    for name in ("attention_clips.csv", "attention_layers_clips.csv"):
        few, every = (pd.read_csv(place / name) for place in (tmp_path, folder / "results"))
        every = every[every["control"].isna() & every["layer"].isin([2, 4])]
        pd.testing.assert_frame_equal(few, every.reset_index(drop=True), check_dtype=False)
    layers = pd.read_csv(tmp_path / "attention_layers_clips.csv")
    assert {"layer", "fraction", "mean", "mean_low", "mean_high", "spread", "spread_low", "n_local_high"} <= set(layers)


def test_intervals_decide():
    assert below((1, 0.5, 1.5), (3, 2, 4)) == HOLDS and below((3, 2, 4), (1, 0.5, 1.5)) == FAILS
    assert below((1, 0.5, 2.5), (3, 2, 4)) == UNDECIDED


def test_attention_of_random_weights_is_about_uniform(folder):
    table = pd.read_csv(folder / "results" / "attention_clips.csv")
    spatial = table[table["statistic"] == "spatial"]
    assert spatial["relative_to_uniform"].between(0.95, 1.05).all()
