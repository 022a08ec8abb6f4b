"""Statements and onsets of IntPhys runs whose curves are planted: what must hold, what must not, and what is said."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
from intphys_trees import movie_table

from pez.errors import UserError
from pez.figures.build import Asked, build_figure6, published_movies
from pez.figures.caveats import run_words
from pez.figures.plots.movies import compare_table, draw_metrics, draw_run, with_controls
from pez.figures.verdicts.evidence import judge
from pez.figures.verdicts.statements import MOVIES
from pez.figures.verdicts.verdict import onset_lines, statement_lines
from pez.probes.data.permutations import shuffled_within
from pez.probes.data.probe_data import possible_variable, scene_names
from pez.probes.folds import scene_folds
from pez.probes.predictions import from_table
from pez.probes.results import MOVIES as OF_MOVIES
from pez.probes.results import Run, depth_of, movie_controls, movie_results
from pez.probes.scores.onset import NO_ONSET
from pez.probes.scores.score import score

DEPTH = 24
EARLY_LAYERS = np.zeros(8)
AS_PUBLISHED = np.r_[EARLY_LAYERS, np.full(8, 2.0), np.linspace(1.5, 0.3, 8)]
LATE = np.r_[np.zeros(16), np.full(8, 2.0)]
KEY = ("overall", "relative_accuracy")


def predictions(effect, n_scenes=30, seed=0, shuffled=False):
    """Out-of-fold scores in which possible movies stand `effect` [layers] above impossible ones, noise 1."""
    rng = np.random.default_rng(seed)
    movies = movie_table(n_scenes).drop(columns="n_frames")
    told = movies
    if shuffled:
        labels = shuffled_within(possible_variable(movies["possible"].to_numpy()), scene_names(movies), seed)
        told = movies.assign(possible=labels.targets[:, 0] > 0.5)
    folds = scene_folds(movies)
    columns = {"fold": folds, "lr": 1e-3, "weight_decay": 0.01}
    return pd.concat(
        [
            told.assign(layer=layer, score=rng.normal(size=len(movies)) + height * movies["possible"], **columns)
            for layer, height in enumerate(effect)
        ],
        ignore_index=True,
    )


def together(main, **controls):
    """Predictions of a run and its controls as a run writes them."""
    named = {"": main, **controls}
    tables = [table.assign(control=name, control_seed=0, repeat=0) for name, table in named.items()]
    return pd.concat(tables, ignore_index=True).assign(protocol="fixed setting")


@functools.cache
def tables():
    """Predictions, results and controls of a run whose curve is as published."""
    found = together(predictions(AS_PUBLISHED), shuffled_labels=predictions(AS_PUBLISHED, seed=1, shuffled=True))
    scores = score(from_table(found))
    described = {"run_name": "run", "variable": "possible", "probe_set": "intphys_linear", "model": "large"}
    rows = movie_results(scores, DEPTH, with_epoch=False).assign(**described, weights="v.pt")
    return found, rows, movie_controls("run", scores, DEPTH, with_epoch=False)


def write_run(folder):
    predicted, rows, found = tables()
    predicted.to_parquet(folder / "predictions_run.parquet")
    rows.to_csv(folder / "results_run.csv", index=False)
    found.to_csv(folder / "controls_run.csv", index=False)
    return rows, found


def judged(folder, rows):
    """Evidence of the run whose results table is `rows`."""
    return judge(Run(folder, "run", OF_MOVIES, rows, 0.0), "possible", "large")


def lines_of(item):
    onsets = onset_lines([item], ("row", "metric"), lambda _, part, metric: (part, metric))
    return [*run_words(item), *statement_lines(item.checked(MOVIES), named=False), *onsets]


def write_predictions(folder, effect, n_scenes=30):
    """Predictions without a control, and what of their results table is needed to read them."""
    main = predictions(effect, n_scenes)
    together(main).to_parquet(folder / "predictions_run.parquet")
    columns = {"run_name": "run", "variable": "possible", "subtask": "overall", "weights": "v.pt"}
    return pd.DataFrame({**columns, "layer": range(DEPTH), "layer_fraction": np.arange(DEPTH) / DEPTH})


def verdicts(lines):
    """Verdict of each statement, by its words."""
    cells = [line.split(" | ") for line in lines if "| **" in line]
    return {row[0].strip("| "): row[1].strip("* ") for row in cells}


def test_a_curve_as_published_holds_against_chance_and_shuffled_labels(tmp_path):
    rows, _ = write_run(tmp_path)
    item = judged(tmp_path, rows)
    assert (item.protocol, item.n_groups, item.controls) == ("fixed setting", 90, ["shuffled_labels"])
    assert list(verdicts(lines_of(item)).values()) == ["holds"] * 3
    onsets = [onset for *key, against, onset in item.onsets() if (tuple(key), against) == (KEY, "chance")]
    for onset in onsets[:2]:
        assert 7 <= onset.layer <= 8 and onset.low <= onset.layer <= onset.high


def test_a_verdict_says_what_was_chosen_on_what_and_the_auc_at_the_peak(tmp_path):
    rows, _ = write_run(tmp_path)
    chosen = "nested: epoch by loss, on scenes of the training folds; paper: epoch by loss, on the reported scenes"
    said = run_words(judged(tmp_path, rows.assign(chosen=chosen)))
    assert f"Chosen, {chosen}." in said
    overall = rows[rows["subtask"] == "overall"].set_index("layer")
    peak = overall["relative_accuracy_mean"].idxmax()
    auc, highest = overall.loc[peak, ["auc_mean", "relative_accuracy_mean"]]
    assert f"Overall relative accuracy is highest at layer {peak}: {highest:.3f}; ROC AUC is {auc:.3f} there." in said


def test_a_late_curve_that_stays_up_does_not_hold(tmp_path):
    rows = write_predictions(tmp_path, LATE)
    found = verdicts(lines_of(judged(tmp_path, rows)))
    assert list(found.values()) == ["does not hold"] * 3
    assert "appears at about one third" in next(iter(found))


def test_a_curve_at_chance_has_no_onset(tmp_path):
    rows = write_predictions(tmp_path, np.zeros(DEPTH))
    item = judged(tmp_path, rows)
    assert item.controls == []
    lines = lines_of(item)
    assert "No control was run: verdicts are against chance (0.5) alone." in lines
    assert all(value != "holds" for value in verdicts(lines).values())
    onset_rows = [line for line in lines if "| half-rise |" in line]
    assert len(onset_rows) == 6 and sum(NO_ONSET in line for line in onset_rows) >= 5  # each test errs in one of 20


def test_a_curve_no_better_than_its_control_has_no_onset(tmp_path):
    rows, _ = write_run(tmp_path)
    leaky = predictions(AS_PUBLISHED, seed=1)  # a control that scores as the probe does
    found = together(predictions(AS_PUBLISHED), shuffled_labels=leaky)
    found.to_parquet(tmp_path / "predictions_run.parquet")
    item = judged(tmp_path, rows)
    against = [onset for *key, name, onset in item.onsets() if (tuple(key), name) == (KEY, "shuffled_labels")]
    assert len(against) == 3
    for onset in against:
        assert onset.verdict == NO_ONSET
    assert "holds" not in verdicts(lines_of(item)).values()


def test_predictions_that_are_missing_are_named(tmp_path):
    rows, _ = write_run(tmp_path)
    (tmp_path / "predictions_run.parquet").unlink()
    with pytest.raises(UserError, match="predictions_run.parquet is missing"):
        judged(tmp_path, rows)
    verdict = build_figure6(Asked(tmp_path))[-2].read_text()
    assert "Statements and onsets left out: " in verdict
    assert "Relative accuracy minus published" in verdict


def test_the_verdict_file_has_statements_beside_differences(tmp_path):
    write_run(tmp_path)
    *_, markdown, data = build_figure6(Asked(tmp_path))
    text, record = markdown.read_text(), json.loads(data.read_text())
    assert (record["status"], [item["verdict"] for item in record["statements"]]) == ("failed", ["holds"] * 3)
    against = [finding["against"] for finding in record["statements"][0]["findings"]]
    assert against == ["chance", "shuffled_labels"]
    assert "appears at about one third of the depth | **holds** |" in text
    assert "| overall | relative accuracy | shuffled labels | half-rise | layer 7." in text
    assert "Relative accuracy minus published" in text
    assert "threshold 0.75" in text


def test_few_scenes_are_said(tmp_path):
    rows = write_predictions(tmp_path, AS_PUBLISHED, n_scenes=4)
    lines = lines_of(judged(tmp_path, rows))
    assert any("Few scenes: overall 12, object permanence 4" in line for line in lines)


def test_controls_stand_beside_the_rows_they_are_for_and_in_the_figures_table(tmp_path):
    rows, controls = write_run(tmp_path)
    shuffled = controls.sample(frac=1, random_state=0)
    table = compare_table(with_controls(rows, shuffled), published_movies("linear")).set_index(["subtask", "layer"])
    expected = controls.set_index(["subtask", "layer"])["relative_accuracy_mean"]
    column = table["shuffled_labels_relative_accuracy_mean"]
    pd.testing.assert_series_equal(column.sort_index(), expected.sort_index(), check_names=False)
    assert {"auc_pooled", "relative_accuracy_low", "relative_accuracy_high"} <= set(table)
    assert with_controls(rows, pd.DataFrame()) is rows


def test_every_control_is_a_line_of_its_own_and_the_papers_mean_a_dotted_one(tmp_path, monkeypatch):
    rows, shuffled = write_run(tmp_path)
    mean, names = "relative_accuracy_pooled", ("static_last", "random_weights", "random_weights")
    others = [
        shuffled.assign(control=name, control_seed=seed, **{mean: shuffled[mean] / 2 + 0.1 * seed})
        for seed, name in enumerate(names)
    ]
    rows = with_controls(rows.assign(relative_accuracy_paper_mean=0.77), pd.concat([shuffled, *others]))
    drawn = []
    monkeypatch.setattr("pez.figures.plots.movies.save_figure", lambda figure, path: drawn.append(figure) or [path])
    draw_run(rows, tmp_path / "figure_run.png")
    draw_metrics(rows, published_movies("linear").iloc[:0], tmp_path / "figure_1.png")
    truth = shuffled[shuffled["subtask"] == "overall"].sort_values("layer")[mean]
    expected = {"shuffled_labels": truth, "static_last": truth / 2, "random_weights": truth / 2 + 0.15}
    for lines in (figure.axes[0].lines for figure in drawn):
        for name, values in expected.items():
            (line,) = (line for line in lines if line.get_gid() == name)
            np.testing.assert_allclose(line.get_ydata(), values)
        assert not any(line.get_gid() == "pixels" for line in lines)
        assert any(len(line.get_ydata()) == DEPTH and np.allclose(line.get_ydata(), 0.77) for line in lines)
    legend = drawn[0].legends[0]
    assert {"shuffled labels", "random weights", "static last"} <= {text.get_text() for text in legend.get_texts()}
    note = legend.get_title().get_text().replace("\n", " ")
    assert "Grey: relative accuracy of controls, the mean over seeds" in note and "Dotted: settings chosen" in note
    texts = {text.get_text() for ax in drawn[1].axes for text in ax.texts}
    assert {"random weights", "pairwise accuracy", "ROC AUC"} <= texts


def test_depth_comes_from_the_layer_fraction():
    assert depth_of(pd.DataFrame({"layer": [0, 11], "layer_fraction": [0.0, 11 / 12]})) == 12
    assert depth_of(pd.DataFrame({"layer": [0, 7], "layer_fraction": [0.0, 0.333333]})) == 21


@pytest.mark.parametrize("layers", [[0, 4, 8], [3, 9, 15, 21]])
def test_statements_and_onsets_of_some_layers_keep_their_place_in_the_depth(tmp_path, layers):
    found, rows, _ = tables()
    found, rows = (table[table["layer"].isin(layers)] for table in (found, rows))
    found.to_parquet(tmp_path / "predictions_run.parquet")
    rows.to_csv(tmp_path / "results_run.csv", index=False)
    item = judged(tmp_path, rows)
    assert item.key.depth == DEPTH
    onset = next(onset for *_, onset in item.onsets() if onset.rule == "half-rise" and onset.verdict != NO_ONSET)
    assert max(layer for layer in layers if layer < 8) <= onset.layer <= min(layer for layer in layers if layer >= 8)
    text = build_figure6(Asked(tmp_path))[-2].read_text()
    first = min(layer for layer in layers if layer >= 8)
    assert f"Overall relative accuracy: onset at {first / DEPTH:.2f} of the depth" in text


def test_a_benchmark_of_few_scenes_leaves_every_statement_undecided(tmp_path):
    rows = write_predictions(tmp_path, AS_PUBLISHED, n_scenes=2)
    lines = lines_of(judged(tmp_path, rows))
    assert list(verdicts(lines).values()) == ["undecided"] * 3
    assert any("6 scenes; with fewer than 8, nothing is tested" in line for line in lines)
