"""Figures 2(b) and 2(c): which runs they take, what stands in their tables, how labels are placed."""

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import plot_figures
from constants import MODELS
from pez.cli import run_script
from pez.figures.build import ball_runs, controls_of, newest_of_each, published_curves
from pez.figures.plots.curves import compare_figure, curve_figure, shown
from pez.figures.plots.style import LINE_STYLES, drawing_style, label_ends, spread_out, titled
from pez.weights import caveats


def curve(run: str, probe_set: str, variable: str, offset: float = 0.0, weights="target_encoder of vitl.pt", depth=24):
    layer = np.arange(depth)
    rise = 0.3 + 0.6 / (1 + np.exp(-(layer / depth - 0.3) / 0.05)) - offset
    return pd.DataFrame(
        {
            "run_name": run,
            "variable": variable,
            "layer": layer,
            "layer_fraction": layer / depth,
            "r2_mean": rise,
            "r2_std": 0.04,
            "protocol": "paper",
            "probe_set": probe_set,
            "model": "large",
            "weights": weights,
            "n_clips": 392,
            "n_folds": 5,
        }
    )


def write_run(folder, run: str, *tables):
    pd.concat(tables).to_csv(folder / f"results_{run}.csv", index=False)


def plot(*arguments) -> int:
    return run_script(plot_figures.make_parser(), plot_figures.main, [str(a) for a in arguments])


@pytest.fixture
def results(tmp_path):
    names = ("speed", "direction", "acceleration")
    write_run(tmp_path, "old", *[curve("old", "fig2c", name) for name in names])
    write_run(tmp_path, "newer", curve("newer", "fig2c", "direction", 0.2))
    write_run(tmp_path, "xy", curve("xy", "fig2b_velocity_xy", "velocity_xy"))
    for age, run in ((100, "old"), (50, "newer")):
        path = tmp_path / f"results_{run}.csv"
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))
    return tmp_path


def test_newest_run_of_each_variable_and_absent_ones_named(results, capsys):
    assert plot("--results-dir", results) == 0
    said = capsys.readouterr().out
    assert "no run of acceleration (x, y)" in said
    table = pd.read_csv(results / "figure2c_final.csv").groupby("variable")["run_name"].first()
    assert table.to_dict() == {"speed": "old", "acceleration": "old", "direction": "newer"}
    for name in ("figure2c_final", "figure2b_final"):
        for suffix in ("png", "pdf", "csv"):
            assert (results / f"{name}.{suffix}").stat().st_size > 0


def test_named_runs_only(results):
    assert plot("--results-dir", results, "--runs", "old", "--figures", "2c") == 0
    assert set(pd.read_csv(results / "figure2c_final.csv")["run_name"]) == {"old"}
    assert not (results / "figure2b_final.png").exists()


def test_axes_stand_in_for_xy(results):
    write_run(results, "axes", *[curve("axes", "fig2b_acceleration_axes", name) for name in ("ax", "ay")])
    assert plot("--results-dir", results, "--figures", "2b") == 0
    table = pd.read_csv(results / "figure2b_final.csv")
    assert list(dict.fromkeys(table["variable"])) == ["velocity_xy", "ax", "ay"]


def test_reference_is_joined_as_published_and_never_mixed_in(results):
    assert plot("--results-dir", results, "--figures", "2c", "--reference") == 0
    table = pd.read_csv(results / "figure2c_final.csv").set_index(["variable", "layer"])
    assert table.loc[("direction", 8), "published_mean"] == pytest.approx(0.816, abs=5e-4)
    assert table.loc[("speed", 0), "published_mean"] == pytest.approx(0.895, abs=5e-4)
    assert table.loc[("speed", 0), "r2_mean"] == pytest.approx(curve("", "", "")["r2_mean"][0])
    published = published_curves("2b")
    assert set(published["label"]) == {"published"} and set(published["variable"]) == {"velocity_xy", "acceleration_xy"}
    np.testing.assert_allclose(published["layer_fraction"] * MODELS["large"].depth, published["layer"])


def test_nothing_to_draw(tmp_path, results, capsys):
    assert plot("--results-dir", tmp_path / "none") == 2
    assert "no results" in capsys.readouterr().err
    assert plot("--results-dir", results, "--runs", "ould") == 2
    assert "did you mean 'old'" in capsys.readouterr().err.lower()
    assert plot("--results-dir", results, "--runs", "xy", "--figures", "2c") == 2
    assert "nothing was drawn" in capsys.readouterr().err


def test_random_weights_are_in_the_title():
    assert titled("Figure", ["target_encoder of vitl.pt"]) == "Figure"
    rows = curve("r", "fig2c", "speed", weights="random weights (seed 0)")
    figure = curve_figure(rows, "a title")
    assert "random weights (seed 0)" in figure.axes[0].get_title(loc="left")
    plt.close(figure)


@pytest.mark.parametrize("weights", ["random weights (seed 0)", "vjepa2_tiny_shapes.pt"])
@pytest.mark.parametrize("with_controls", [False, True])
def test_a_long_title_fits_the_figure(weights, with_controls):
    name = "fig2b_iter23_velocity_residpost_tlastpatch_magsector_center"
    controls = made_controls("velocity_xy") if with_controls else None
    figure = curve_figure(curve(name, "fig2b", "velocity_xy", weights=weights), name, controls=controls)
    figure.canvas.draw()
    shown = figure.axes[0].get_title(loc="left").replace("\n", " ")
    assert all(remark in shown for remark in caveats([weights]))
    boxes = [text.get_window_extent() for text in figure.axes[0].texts] + [figure.axes[0].title.get_window_extent()]
    boxes.append(figure.axes[0]._left_title.get_window_extent())
    assert all(box.x1 <= figure.bbox.x1 and box.x0 >= 0 for box in boxes)
    plt.close(figure)


def test_end_labels_do_not_overlap():
    with drawing_style():
        figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
        ax.set(xlim=(0, 1), ylim=(0, 1))
        label_ends([(ax, [(0.9, 0.98 + i / 1000, f"curve {i}", "black") for i in range(6)])])
        figure.canvas.draw()
        spans = sorted((box.y0, box.y1) for box in map(Text.get_window_extent, ax.texts))
    assert all(low[1] <= high[0] + 1 for low, high in zip(spans, spans[1:]))
    plt.close(figure)


def test_spread_out_keeps_order_gap_and_moves_little():
    placed = spread_out(np.array([5.0, 1.0, 1.2, 9.9]), 1.0, 0.0, 10.0)
    assert placed[0] == 5.0 and placed[3] == 9.9
    assert placed[2] - placed[1] == pytest.approx(1.0) and placed[1] + placed[2] == pytest.approx(2.2)
    crowded = spread_out(np.full(4, 10.0), 2.0, 0.0, 10.0)
    np.testing.assert_allclose(np.sort(crowded), [4, 6, 8, 10])


def test_styles_differ_in_marker_line_and_lightness():
    assert len({style.marker for style in LINE_STYLES}) == len(LINE_STYLES)
    assert len({str(style.line) for style in LINE_STYLES}) == len(LINE_STYLES)
    grey = [float(np.dot(to_rgb(style.color), [0.299, 0.587, 0.114])) for style in LINE_STYLES[:3]]
    assert min(abs(a - b) for i, a in enumerate(grey) for b in grey[:i]) > 0.1  # Figure 2(c) in greyscale


def with_nested(rows: pd.DataFrame) -> pd.DataFrame:
    nested = rows["r2_mean"] - 0.1
    ends = {"r2_nested_pooled_low": nested - 0.07, "r2_nested_pooled_high": nested + 0.02}
    return rows.assign(r2_pooled=nested + 0.06, r2_nested_pooled=nested, protocol="both", **ends)


def made_controls(variable: str) -> pd.DataFrame:
    layer = np.arange(24)
    seeds = [("shuffled_labels", seed, layer, -0.02 * (seed + 1)) for seed in range(3)]
    tables = [
        pd.DataFrame({"control": name, "control_seed": seed, "layer_fraction": at / 24, "r2_pooled": value})
        for name, seed, at, value in [*seeds, ("position", 0, layer, 0.4), ("reversed", 0, layer, -2.0)]
    ]
    return pd.concat(tables, ignore_index=True).assign(variable=variable)


def test_the_main_line_is_nested_with_its_interval_and_the_published_one_thin():
    rows = curve("r", "fig2c", "speed")
    old, new = shown(rows), shown(with_nested(rows))
    assert old.thin is None and "s.d." in old.label and "95" in new.label
    np.testing.assert_allclose(old.high - old.y, 0.04)
    np.testing.assert_allclose(new.thin, new.y + 0.06)  # pooled like the thick line, not the mean over folds
    assert shown(with_nested(rows).assign(protocol="nested")).thin is None
    assert shown(with_nested(rows).drop(columns="r2_pooled")).thin is None
    np.testing.assert_allclose(np.stack([new.y, new.low, new.high]) - old.y, [[-0.1], [-0.17], [-0.08]] * np.ones(24))
    only = rows.assign(r2_mean=np.nan, r2_pooled=rows["r2_mean"], r2_pooled_low=0.1, r2_pooled_high=0.9)
    np.testing.assert_allclose(shown(only).y, rows["r2_mean"])  # held-out values: a fold has no score of its own


def test_controls_get_a_panel_a_variable_and_direct_labels():
    names = ("speed", "direction", "acceleration")
    rows = pd.concat([with_nested(curve("r", "fig2c", name)) for name in names])
    figure = curve_figure(rows, "a run", controls=pd.concat([made_controls(name) for name in names]))
    figure.canvas.draw()
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(names)
    for ax in figure.axes:
        said = {text.get_text() for text in ax.texts}
        assert {"nested protocol", "shuffled labels (3 seeds)", "position", "reversed"} <= said
        flat = [line for line in ax.lines if line.get_gid() == "position"]
        assert len(flat) == 1 and set(flat[0].get_ydata()) == {0.4}
        assert min(flat[0].get_xdata()) == 0 and max(flat[0].get_xdata()) > 0.9
        mean = [line for line in ax.lines if np.allclose(line.get_ydata(), -0.04)]
        assert len(mean) == 1 and ax.get_ylim()[0] == -0.25
        boxes = [text.get_window_extent() for text in ax.texts]
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    assert "lowest -2" in figure._supxlabel.get_text().replace("\n", " ")
    plt.close(figure)


def test_final_figures_take_the_controls_of_their_runs(results):
    pd.concat([made_controls("speed"), made_controls("direction")]).to_csv(results / "controls_old.csv", index=False)
    curves, absent = newest_of_each(ball_runs(results, "fig2c"), [["speed"], ["direction"], ["turn"]])
    assert [(run.name, name) for run, name in curves] == [("old", "speed"), ("newer", "direction")]
    assert absent == ["turn"]
    assert set(controls_of(curves)["variable"]) == {"speed"}
    assert controls_of(curves[1:]).empty


def test_the_partner_of_direction_is_a_fourth_panel_and_stands_in_the_table(results, tmp_path):
    names = ("speed", "direction", "direction_sincos", "acceleration")
    write_run(results, "both", *[with_nested(curve("both", "fig2c", name)) for name in names])
    assert plot("--results-dir", results, "--runs", "both", "--figures", "2c") == 0
    table = pd.read_csv(results / "figure2c_final.csv")
    assert list(dict.fromkeys(table["variable"])) == list(names)
    assert (results / "figure2c_final.pdf").is_file()


@pytest.mark.parametrize("layers", [[0, 8, 16], [4], [0, 23]])
def test_some_layers_only_stand_where_they_stand_in_the_depth(layers):
    rows = with_nested(curve("r", "fig2c", "speed"))
    some = rows[rows["layer"].isin(layers)]
    np.testing.assert_allclose(shown(some).x, np.array(layers) / 24, atol=1e-6)
    figure = curve_figure(
        some, "some layers", controls=made_controls("speed").query("layer_fraction in @some.layer_fraction")
    )
    assert figure.axes[0].get_xlim() == (-0.02, 1.0)
    plt.close(figure)


def of_classes(rows: pd.DataFrame) -> pd.DataFrame:
    """The same curve as a results table of classes has it."""
    rows = rows.drop(columns=["r2_mean", "r2_std"]).assign(protocol="both", variable="shape")
    score = 0.55 + 0.3 * rows["layer_fraction"]
    for metric, lower in (("auc", 0.0), ("accuracy", 0.2), ("balanced_accuracy", 0.25)):
        rows = rows.assign(**{f"{metric}_mean": score - lower, f"{metric}_std": 0.02, f"{metric}_pooled": score + 0.05})
        nested = {"": score - lower, "_low": score - lower - 0.1, "_high": score - lower + 0.1}
        rows = rows.assign(**{f"{metric}_nested_pooled{end}": value for end, value in nested.items()})
    return rows


def test_classes_are_drawn_by_their_own_metric_against_their_own_chance():
    rows = of_classes(curve("r", "labels", "speed"))
    drawn = shown(rows)
    assert (drawn.metric, drawn.label) == ("auc", "ROC AUC pooled over held-out clips (95 % interval)")
    np.testing.assert_allclose(drawn.y, 0.55 + 0.3 * rows["layer_fraction"])
    figure = curve_figure(rows, "classes")
    assert "ROC AUC" in figure.axes[0].get_ylabel()
    assert any(set(line.get_ydata()) == {0.5} for line in figure.axes[0].lines)  # chance
    plt.close(figure)


def test_layers_that_had_not_converged_are_hollow_with_ridge_beside_them():
    rows = with_nested(curve("r", "fig2c", "speed"))
    late = rows["layer"].isin([0, 1, 4])
    rows = rows.assign(converged=~late, r2_ridge_pooled=np.where(late, 0.9, np.nan))
    figure = curve_figure(rows, "a run")
    (ax,) = figure.axes
    (hollow,) = [line for line in ax.lines if line.get_gid() == "unconverged"]
    np.testing.assert_allclose(hollow.get_xdata(), np.array([0, 1, 4]) / 24, atol=1e-6)
    (ridge,) = [line for line in ax.lines if line.get_gid() == "ridge"]
    assert np.isfinite(ridge.get_ydata()).sum() == 3 and "Hollow: probes that" in figure.get_supxlabel()
    plt.close(figure)
    assert not [
        line for line in curve_figure(rows.assign(converged=True), "r").axes[0].lines if line.get_gid() == "unconverged"
    ]


def test_runs_over_each_other_keep_their_own_depths_and_names(results, capsys):
    write_run(results, "deep", with_nested(curve("deep", "fig2c", "speed")).assign(model="large"))
    write_run(results, "flat", with_nested(curve("flat", "fig2c", "speed", depth=12)).assign(model="dinov2"))
    assert plot("--results-dir", results, "--compare", "deep", "flat") == 0
    table = pd.read_csv(results / "compare_deep_flat.csv")
    assert table.groupby("run_name")["layer"].size().to_dict() == {"deep": 24, "flat": 12}
    assert (results / "compare_deep_flat.png").is_file() and not (results / "report.html").exists()
    runs = {"large": table[table["model"] == "large"], "dinov2": table[table["model"] == "dinov2"]}
    figure = compare_figure(runs, "two")
    (ax,) = figure.axes
    assert {"large", "dinov2"} <= {text.get_text() for text in ax.texts}
    drawn = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) in (12, 24)]
    assert sorted({round(max(x), 4) for x in drawn}) == [round(11 / 12, 4), round(23 / 24, 4)]
    plt.close(figure)
    assert plot("--results-dir", results, "--compare", "deep", "nothing") == 2
    assert "--compare must be one of" in capsys.readouterr().err
