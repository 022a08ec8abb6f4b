"""IntPhys figures and verdicts: what is computed for curves whose onset, peak and decline are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pez.errors import UserError
from pez.figures.build import (
    Asked,
    build_figure1,
    build_figure6,
    build_figure8,
    movie_runs,
    newest_by_model,
    published_movies,
)
from pez.figures.caveats import CAVEATS
from pez.figures.plots.movies import compare_table, draw_comparison, draw_run
from pez.figures.verdicts.verdict import movie_verdict_text
from pez.movies import dataset_at
from pez.movies.intphys import INTPHYS, INTPHYS_MINI, STAND_IN_FILE
from pez.probes.results import MOVIES, Run
from pez.probes.scores.possibility import COUNTS, METRICS
from pez.probes.summary import curve_facts, movie_text

SUBTASK_ROWS = tuple(subtask.name for subtask in INTPHYS.subtasks)


def results(model="large", probe_set="intphys_linear", curve=None, subtask_curves=None, depth=24, weights="vitl.pt"):
    """A results table in which every metric of every sub-task follows `curve`, unless told otherwise."""
    curve = np.full(depth, 0.5) if curve is None else np.asarray(curve)
    rows = []
    for subtask in SUBTASK_ROWS:
        values = (subtask_curves or {}).get(subtask, curve)
        for layer in range(depth):
            row = {
                "run_name": f"run_{model}",
                "variable": "possible",
                "probe_set": probe_set,
                "model": model,
                "weights": weights,
            }
            row |= {"subtask": subtask, "layer": layer, "layer_fraction": layer / depth, "n_folds": 5}
            row |= {f"{metric}_mean": values[layer] for metric in METRICS}
            row |= {f"{metric}_std": 0.02 for metric in METRICS} | dict.fromkeys(COUNTS, 0)
            row |= {"n_scenes": 90, "n_ties": 90 if layer == 0 else 0, "n_near_ties": 90 if layer == 0 else 1}
            rows.append(row)
    return pd.DataFrame(rows)


def published_relative(model="large", probe="linear"):
    curves = published_movies(probe)
    chosen = curves[(curves["model"] == model) & (curves["metric"] == "relative_accuracy")]
    return chosen.sort_values("layer")["mean"].to_numpy()


def run(table, name=None, written=0.0, **columns):
    """A run whose results table it is."""
    name = name or table["run_name"].iloc[0]
    return Run(Path(), name, MOVIES, table.assign(run_name=name, **columns), written)


def verdict(title, tables, published, missing):
    """The text of a verdict file of runs whose predictions are not there."""
    runs = [run(table) for table in tables]
    return movie_verdict_text(title, runs, [UserError("no predictions")] * len(runs), published, missing)


def write(directory, table, name=None):
    name = name or table["run_name"].iloc[0]
    table.assign(run_name=name).to_csv(directory / f"results_{name}.csv", index=False)


def test_facts_of_a_curve():
    facts = curve_facts([0, 1, 2, 3, 4], [0.5, 0.6, 0.8, 0.9, 0.7])
    assert (facts["first"], facts["onset_layer"], facts["peak_layer"], facts["peak"]) == (0.5, 2, 3, 0.9)
    assert facts["late_decline"] == pytest.approx(0.2)
    assert curve_facts([0, 1], [0.5, 0.45])["onset_layer"] is None
    assert curve_facts([1, 0], [0.9, 0.5])["peak_layer"] == 1  # rows in any order


def test_the_published_curves_facts_are_the_known_ones():
    facts = curve_facts(range(24), published_relative(probe="attentive"))
    assert (facts["first"], facts["peak_layer"]) == (0.0, 10)
    assert facts["peak"] == pytest.approx(0.889, abs=1e-3)
    assert facts["last"] == pytest.approx(0.789, abs=1e-3)


@pytest.mark.parametrize(
    ("curve", "subtasks", "status"),
    [
        ("published", {}, "qualified"),
        ("published", {"shape_constancy": np.full(24, 0.5)}, "overall-only"),
        ("chance", {}, "failed"),
    ],
)
def test_status_of_a_figure(curve, subtasks, status):
    values = published_relative() if curve == "published" else None
    table = results(curve=values, subtask_curves=subtasks)
    text = verdict("Figure 6", [table], published_movies("linear"), ["giant"])
    assert f"Status: **{status}**" in text
    assert "Missing, left out: giant." in text


def test_some_models_agreeing_is_partial_and_unpublished_ones_are_not_compared():
    good, bad = results(curve=published_relative()), results("huge", depth=32)
    published = published_movies("linear")
    assert "Status: **partial**" in verdict("Figure 6", [good, bad], published, [])
    tiny = results("tiny", depth=12, weights="random weights (seed 0)")
    text = verdict("Figure 6", [tiny], published, ["large", "huge", "giant"])
    assert "Status: **not comparable**" in text
    assert "tiny: random weights (seed 0)" in text
    assert "Nothing is published for this model" in text


def test_a_verdict_states_onset_decline_ties_and_differences():
    curve = np.r_[np.full(8, 0.5), np.linspace(0.6, 0.9, 8), np.linspace(0.85, 0.6, 8)]
    text = verdict("Figure 8", [results(curve=curve)], published_movies("attentive"), [])
    assert "onset at 0.46 of the depth, after one third; peak at 0.62 of the depth; declines by 0.300" in text
    assert "At layer 0: 90 ties and 90 such near-ties in 90 scenes. 0 of the 90 decisions are above rounding." in text
    assert "Ties: 90 of 2160 scene comparisons" in text
    line = next(line for line in text.splitlines() if line.startswith("- Relative accuracy minus published"))
    assert "first layer +0.500 (0 is what ties counted as wrong give), peak +0.011 (layer 15, published 10)" in line


def test_decisions_above_rounding_at_layer_0_are_counted(capsys):
    rows = results(curve=published_relative())
    rows.loc[rows["layer"] == 0, ["n_ties", "n_near_ties"]] = 70, 88
    said = "At layer 0: 70 ties and 88 such near-ties in 90 scenes. 20 of the 90 decisions are above rounding."
    assert said in verdict("Figure 6", [rows], published_movies("linear"), [])
    assert "at layer 0 20 of 90 decisions are above rounding" in movie_text(rows)
    (ties,) = next(caveat for caveat in CAVEATS if caveat.subject == "Ties and near-ties").places_in([run(rows)], [])
    assert ties.endswith("at layer 0, 70 and 88 of 90, so that 20 decisions are above rounding.")


def test_a_figure_says_what_was_chosen_on_what(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("pez.figures.plots.movies.save_figure", lambda figure, path: drawn.append(figure) or [path])
    chosen = "nested: epoch by loss, on scenes of the training folds; paper: epoch by loss, on the reported scenes"
    rows = results(curve=published_relative()).assign(chosen=chosen, data=INTPHYS.title)
    draw_run(rows, tmp_path / "x.png")
    (legend,) = drawn[0].legends
    assert f"Chosen, {chosen}." in " ".join(legend.get_title().get_text().split())
    table = compare_table(rows, published_movies("linear"))
    assert set(table["chosen"]) == {chosen}
    names = {text.get_text() for ax in drawn[0].axes for text in ax.texts}
    assert "ROC AUC" in names  # stands beside relative accuracy


def test_a_stand_in_is_called_so_and_compared_with_nothing(tmp_path):
    rows = results(curve=published_relative()).assign(data=INTPHYS_MINI.title)
    text = verdict("Figure 6", [rows], published_movies("linear"), [])
    assert "Status: **not comparable**" in text
    assert "on intphys_mini (stand-in)." in text
    assert "minus published" not in text
    table = compare_table(rows, published_movies("linear"))
    assert table["published_relative_accuracy"].isna().all()
    assert set(table["data"]) == {INTPHYS_MINI.title}
    (tmp_path / STAND_IN_FILE).write_text("{}")
    assert dataset_at(tmp_path) is INTPHYS_MINI


def test_the_newest_run_of_each_model_in_the_papers_order():
    runs = [
        run(results("tiny", depth=12), "a", 5),
        run(results("giant", depth=40), "b", 1),
        run(results("large"), "old", 2),
        run(results("large"), "new", 3),
    ]
    assert [each.name for each in newest_by_model(runs)] == ["new", "b", "a"]


def test_the_comparison_holds_ours_and_the_published_values():
    table = compare_table(results(curve=published_relative()), published_movies("linear"))
    overall = table[table["subtask"] == "overall"]
    np.testing.assert_allclose(overall["relative_accuracy_mean"], overall["published_relative_accuracy"])
    assert table.loc[table["subtask"] != "overall", "published_auc"].isna().all()


def test_every_file_is_written_and_missing_models_are_named(tmp_path, capsys):
    write(tmp_path, results(curve=published_relative()), "intphys_possible_impossible_full_select_relative")
    write(tmp_path, results("huge", depth=32))
    write(tmp_path, results("tiny", "intphys_attentive", depth=12, weights="random weights (seed 0)"), "att")
    (tmp_path / "results_ball.csv").write_text("run_name,variable,r2_mean\nx,speed,0.9\n")
    written = [*build_figure1(Asked(tmp_path)), *build_figure6(Asked(tmp_path)), *build_figure8(Asked(tmp_path))]
    assert [path.name for path in written] == [
        "figure_intphys_possible_impossible_full_metrics16.png",
        "figure6_intphys_overall_compare.csv",
        "figure6_intphys_overall_compare.png",
        "figure6_verdict.md",
        "figure6_verdict.json",
        "figure8_intphys_overall_compare.csv",
        "figure8_intphys_overall_compare.png",
        "figure8_verdict.md",
        "figure8_verdict.json",
    ]
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert np.asarray(image.convert("L")).std() > 10
    assert set(pd.read_csv(written[1])["model"]) == {"large", "huge"}
    printed = capsys.readouterr().out
    assert "Figure 6: no run of giant; left out" in printed
    assert "Figure 8: no run of large, huge, giant; left out" in printed


def test_no_runs_is_said_and_damaged_ones_are_an_error(tmp_path, capsys):
    assert build_figure6(Asked(tmp_path)) == []
    assert "Figure 6: no run in the results folder" in capsys.readouterr().out
    (tmp_path / "results_x.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="results_x.csv is not a readable table"):
        movie_runs(tmp_path, "linear")


def test_named_runs_win_over_newer_ones(tmp_path):
    write(tmp_path, results(), "first")
    write(tmp_path, results(), "second")
    assert [each.name for each in movie_runs(tmp_path, "linear", ["first"])] == ["first"]


def test_a_run_of_one_sub_task_is_drawn(tmp_path):
    rows = results(depth=3)
    assert draw_run(rows[rows["subtask"].isin(["overall", "shape_constancy"])], tmp_path / "figure_x.png").is_file()


@pytest.mark.parametrize("layers", [[0, 4, 8], [2, 5, 9]])
def test_some_layers_keep_their_place_in_the_depth(layers):
    curve = np.where(np.arange(12) >= 4, 0.9, 0.5)
    table = results("tiny", curve=curve, depth=12, weights="random weights (seed 0)")
    text = verdict("Figure 6", [table[table["layer"].isin(layers)]], published_movies("linear"), [])
    onset = next(layer for layer in layers if layer >= 4)
    assert f"Overall relative accuracy: onset at {onset / 12:.2f} of the depth" in text
    assert f"Overall ROC AUC: onset at {onset / 12:.2f} of the depth" in text
    assert (f"{onset / 12:.2f} of the depth, by one third" in text) == (onset == 4)


def panels(monkeypatch, draw):
    """Axes of the figure that `draw` makes."""
    drawn = []
    monkeypatch.setattr("pez.figures.plots.movies.save_figure", lambda figure, path: drawn.append(figure) or [path])
    draw()
    drawn[0].canvas.draw()
    return drawn[0].axes


def test_intervals_are_those_of_the_table_and_stay_within_what_a_score_can_be(monkeypatch):
    rows = results(depth=12, curve=np.linspace(0.5, 0.98, 12))
    wide = rows.assign(**{f"{metric}_std": 0.6 for metric in METRICS})
    ends = {"relative_accuracy_pooled": 0.7, "relative_accuracy_low": 0.55, "relative_accuracy_high": 0.95}
    for table, low, high in ((wide, 0.0, 1.0), (rows.assign(**ends), 0.55, 0.95)):
        first = panels(monkeypatch, lambda table=table: draw_run(table, Path("x.png")))[0]
        (band,) = [each for each in first.collections if len(each.get_paths())]
        reached = band.get_paths()[0].vertices[:, 1]
        assert reached.min() == pytest.approx(low) and reached.max() == pytest.approx(high)


def test_main_panels_show_the_quoted_metric_alone_and_small_ones_the_others(monkeypatch):
    tables = [results(model, depth=depth) for model, depth in (("large", 24), ("huge", 32), ("giant", 40))]
    table = compare_table(pd.concat(tables), published_movies("linear"))
    axes = panels(monkeypatch, lambda: draw_comparison(table, "Figure 6", [], True, Path("x.png")))
    assert len(axes) == 4 * 3 * 3
    main = [ax for ax in axes if ax.get_ylabel()]
    assert [ax.get_ylabel() for ax in main] == [subtask.words.capitalize() for subtask in INTPHYS.subtasks]
    small = [text.get_text() for ax in axes for text in ax.texts if "depth" not in text.get_text()]
    assert small == ["ROC AUC", "clip accuracy"] * 12
    boxes = [ax.get_tightbbox() for ax in axes]
    across = axes[0].figure.bbox
    assert all(box.x0 >= across.x0 - 1 and box.x1 <= across.x1 + 1 for box in boxes)
