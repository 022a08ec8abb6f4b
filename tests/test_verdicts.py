"""Verdicts on curves that are planted to be true, false or undecidable; the files they end up in."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score

from pez.controls import BESIDE
from pez.figures.build import Asked, build_figure2c
from pez.figures.verdicts import statements
from pez.figures.verdicts.evidence import judge
from pez.figures.verdicts.verdict import build_verdict, verdict_text
from pez.probes.predictions import from_table
from pez.probes.results import BALL, Run
from pez.probes.scores.bootstrap import BootstrapCurve
from pez.probes.scores.kinds import KINDS, Kind, Pooled
from pez.probes.scores.score import score

DEPTH, GROUPS, SIZE = 24, 60, 6
PLACE = np.arange(DEPTH) / DEPTH
FLAT = np.full(DEPTH, 0.8)
EMERGES = 0.05 + 0.75 / (1 + np.exp(-(PLACE - 1 / 3) * 40))
LATE = 0.05 + 0.75 / (1 + np.exp(-(PLACE - 0.7) * 40))
HILL = 0.85 - 1.5 * (PLACE - 0.5) ** 2


def predictions(curves: dict, variable="speed", seed=0, **columns) -> pd.DataFrame:
    """Rows of predictions_RUN.parquet whose R^2 at layer l is about curve[l]; `curves` by (control, seed, repeat).

    Predictions shrink to the mean where they know little, as a probe's do; a negative R^2 is noise around the mean.
    """
    rng = np.random.default_rng(seed)
    n = GROUPS * SIZE
    target = rng.normal(size=n)
    carried = rng.normal(size=n)  # part of the error that all layers share
    clip = np.arange(n)
    tables = []
    for (control, control_seed, repeat), curve in curves.items():
        for layer, r2 in enumerate(curve):
            known, spread = max(r2, 0), np.sqrt(r2 * (1 - r2) if r2 > 0 else -r2)
            prediction = known * target + spread * (0.8 * carried + 0.6 * rng.normal(size=n))
            table = {"control": control, "control_seed": control_seed, "repeat": repeat, "layer": layer}
            table |= {"clip_id": [f"c{i:03d}" for i in clip], "group": [f"g{i // SIZE:02d}" for i in clip]}
            tables.append(pd.DataFrame(table | {"fold": clip // SIZE % 5, "target": target, "prediction": prediction}))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(
        **{"run_name": "run", "protocol": "nested", "variable": variable, "component": variable} | columns
    )


MAIN = ("", 0, 0)


def evidence(curve, controls=None, **options) -> statements.Evidence:
    curves = {MAIN: curve} | {(name, 0, 0): values for name, values in (controls or {}).items()}
    return evidence_in(score(from_table(predictions(curves, **options))))


def evidence_in(scores) -> statements.Evidence:
    main = scores.main("speed")
    found = {name: scores.control("speed", name) for name in scores.controls("speed")}
    beside = {name: found.pop(name) for name in BESIDE if name in found}
    return statements.Evidence(main.layers, DEPTH, main.curve("r2"), found, beside=beside)


def verdict(check: str, curve, controls=None) -> str:
    return statements.overall(
        statements.check(statements.Statement("2c", "speed", "", check), evidence(curve, controls))
    )


NOTHING = {"shuffled_labels": np.full(DEPTH, -0.1)}


@pytest.mark.parametrize(
    ("check", "curve", "expected"),
    [
        ("early", FLAT, "holds"),
        ("early", EMERGES, "does not hold"),
        ("one third", EMERGES, "holds"),
        ("one third", FLAT, "does not hold"),
        ("one third", LATE, "does not hold"),
        ("middle", HILL, "holds"),
        ("middle", LATE, "does not hold"),
        ("fades", HILL, "holds"),
        ("fades", LATE, "does not hold"),
        ("fades", FLAT, "undecided"),
        ("middle", FLAT, "undecided"),
        ("early", np.full(DEPTH, -0.3), "does not hold"),
    ],
)
def test_planted_curves_get_the_verdict_they_were_planted_for(check, curve, expected):
    assert verdict(check, curve, NOTHING) == expected


@pytest.mark.parametrize(
    ("curve", "flow", "expected"),
    [
        (EMERGES, np.full(DEPTH, 0.4), "holds"),
        (EMERGES, EMERGES + 0.1, "does not hold"),
        (np.full(DEPTH, -0.3), np.full(DEPTH, -0.6), "does not hold"),  # above a control that is below chance
    ],
)
def test_whether_a_layer_reads_more_than_optical_flow(curve, flow, expected):
    (found,) = statements.beyond("speed", evidence(curve, {"optical_flow": flow, **NOTHING}))
    assert found.verdict == expected and found.claim == "is read by some layer beyond optical flow"
    if expected == "holds":
        words = found.findings[0].measured
        named = [
            int(part)
            for part in words.partition("layers ")[2].replace("over all layers", "").split(", ")
            if part.isdigit()
        ]
        assert named and min(named) >= 7 and "[+0." in words  # it passes 0.4 at about layer 8
    assert statements.beyond("speed", evidence(curve, NOTHING)) == []


def test_the_sentence_about_flow_is_in_the_verdict_file_and_its_data(tmp_path):
    curves = {MAIN: EMERGES, ("optical_flow", 0, 0): np.full(DEPTH, 0.3)}
    predictions(curves).to_parquet(tmp_path / "predictions_run.parquet")
    table = pd.DataFrame({"run_name": "run", "variable": "speed", "layer": range(DEPTH), "weights": "x"})
    table = table.assign(layer_fraction=table["layer"] / DEPTH, protocol="nested", pooling="mean", n_clips=360)
    run = Run(tmp_path, "run", BALL, table, 0.0)
    written = build_verdict(tmp_path, "2c", [(run, "speed")])
    text = written[0].read_text(encoding="utf-8")
    assert "## Beyond what needs no encoder" in text and "| speed | is read by some layer beyond optical flow" in text
    record = json.loads(written[1].read_text(encoding="utf-8"))
    assert record["beyond"][0]["verdict"] == "holds" and len(record["statements"]) == 3


def test_an_onset_on_the_edge_of_the_zone_is_undecided():
    edge = 1 / 3 + statements.AROUND
    curve = 0.05 + 0.75 / (1 + np.exp(-(PLACE - edge) * 20))
    assert verdict("one third", curve) == "undecided"


def test_a_statement_must_hold_against_every_control():
    assert verdict("early", FLAT, NOTHING) == "holds"
    assert verdict("early", FLAT, NOTHING | {"random_weights": FLAT + 0.02}) == "does not hold"
    assert verdict("one third", EMERGES, {"pixels": EMERGES + 0.03}) == "does not hold"


def test_differences_are_those_of_sklearns_scores():
    table = predictions({MAIN: HILL})
    one = evidence_in(score(from_table(table)))
    scores = np.array([r2_score(part["target"], part["prediction"]) for _, part in table.groupby("layer")])
    np.testing.assert_allclose(one.main.estimate, scores)
    thirds = scores.reshape(3, 8).mean(1)
    middle, fades = (
        statements.check(statements.Statement("2c", "speed", "", name), one)[0].measured for name in ("middle", "fades")
    )
    assert f"{thirds[1] - max(thirds[0], thirds[2]):+.3f} [" in middle
    assert f"{thirds[1] - scores[22:].mean():+.3f} [" in fades  # 22/24 is the first layer of the last tenth


def test_layers_that_were_not_probed_leave_a_statement_undecided():
    whole = evidence(HILL)
    part = statements.Evidence(np.arange(8), DEPTH, whole.main.map(lambda rows: rows[:, :8]), {})
    for name in ("middle", "fades"):
        finding = statements.check(statements.Statement("2c", "speed", "", name), part)[0]
        assert finding.verdict == "undecided"
        assert "probed" in finding.measured


def test_seeds_and_repeats_are_averaged_and_one_layer_stands_for_all():
    curves = {
        MAIN: FLAT,
        ("", 0, 1): FLAT - 0.2,
        ("random_weights", 1, 0): 0 * FLAT,
        ("random_weights", 2, 0): 0.4 * FLAT,
    }
    table = predictions(curves | {("pixels", 0, 0): [0.3]})
    shown = evidence_in(score(from_table(table)))
    found = {"": shown.main, **shown.controls}
    keys = ["control", "layer", "control_seed", "repeat"]
    scores = {key: r2_score(part["target"], part["prediction"]) for key, part in table.groupby(keys)}
    for control in ("", "random_weights"):
        parts = [[scores[key] for key in scores if key[:2] == (control, layer)] for layer in range(DEPTH)]
        assert {len(part) for part in parts} == {2}
        np.testing.assert_allclose(found[control].estimate, np.mean(parts, axis=1))
    assert len(set(found["pixels"].estimate)) == 1
    assert found["pixels"].samples.shape == found[""].samples.shape


def results(run="run", variable="speed", weights="vitl.pt", depth=DEPTH) -> pd.DataFrame:
    layer = np.arange(depth)
    columns = {"run_name": run, "probe_set": "fig2c", "variable": variable, "layer": layer, "model": "large"}
    scores = {"layer_fraction": layer / depth, "r2_mean": 0.5, "r2_std": 0.1, "n_clips": GROUPS * SIZE, "n_folds": 5}
    return pd.DataFrame(columns | scores | {"weights": weights})


def runs_of(folder, rows: pd.DataFrame) -> list[tuple[Run, str]]:
    """Every variable of a results table with its run."""
    tables = {name: rows[rows["run_name"] == name] for name in rows["run_name"].unique()}
    runs = {name: Run(folder, name, BALL, table, 0.0) for name, table in tables.items()}
    return [(run, variable) for run in runs.values() for variable in run.variables]


def verdict_of(folder, rows: pd.DataFrame) -> str:
    return build_verdict(folder, "2c", runs_of(folder, rows))[0].read_text()


def write(folder, tables: list, rows: pd.DataFrame, run="run"):
    pd.concat(tables).to_parquet(folder / f"predictions_{run}.parquet")
    rows.to_csv(folder / f"results_{run}.csv", index=False)


def test_the_file_says_what_it_is_made_from_and_every_verdict(tmp_path):
    speed = predictions({MAIN: FLAT, ("shuffled_labels", 0, 0): NOTHING["shuffled_labels"], ("reversed", 0, 0): FLAT})
    direction = predictions({MAIN: EMERGES}, "direction", component="angle")
    partner = predictions({MAIN: LATE}, "direction_sincos")
    rows = pd.concat([results(variable=name) for name in ("speed", "direction", "direction_sincos")])
    write(tmp_path, [speed, direction, partner], rows)
    text = verdict_of(tmp_path, rows)
    assert "| speed | `run` | large | vitl.pt | nested | 360 | 60 | shuffled labels (1 seed) |" in text
    assert "| speed | is readable from the first layers | **holds** |" in text
    assert "| direction | appears at about one third of the depth | **holds** |" in text
    assert "| direction (cos, sin) | appears at about one third of the depth | **does not hold** |" in text
    assert "No control was run for direction" in text
    assert "No control was run for speed" not in text
    assert "reversed" not in text  # a high score there is no rival explanation
    assert "jump at ±180°" in text
    assert "Random weights" not in text
    assert "| speed | shuffled labels | half-rise | at or before the first layer" in text


def test_random_weights_the_paper_protocol_and_few_groups_are_said_first(tmp_path):
    table = predictions({MAIN: FLAT}, protocol="paper")
    table["group"] = "g" + (table["group"].str[1:].astype(int) % 12).astype(str)
    rows = results(weights="random weights (seed 0)")
    write(tmp_path, [table.drop(columns=["control", "control_seed", "repeat"])], rows)
    head = verdict_of(tmp_path, rows).split("## Statements")[0]
    assert "**Random weights**: the encoder was never trained" in head
    assert "chosen on the fold that is reported" in head
    assert "12 groups; with fewer than 20" in head


@pytest.mark.parametrize("n_groups", [2, 3, 7, 8])
def test_of_fewer_than_eight_groups_nothing_is_said(tmp_path, n_groups):
    table = predictions({MAIN: FLAT, ("shuffled_labels", 0, 0): NOTHING["shuffled_labels"]})
    table["group"] = "g" + (table["group"].str[1:].astype(int) % n_groups).astype(str)
    write(tmp_path, [table], results())
    text = verdict_of(tmp_path, results()).split("\n---")[0]
    told = [line for line in text.splitlines() if line.startswith("| speed | ") and "**" in line]
    assert len(told) == 3
    said = [f"**undecided** | | too few groups: {n_groups} |" in line for line in told]
    assert not any(said) if n_groups == 8 else all(said)
    if n_groups < 8:
        assert "p =" not in text and "**holds**" not in text
        assert f"undecided (too few groups: {n_groups})" in text.split("## Onset")[1]


def test_controls_are_named_with_their_seeds_and_position_of_two_tubelets_is_no_floor(tmp_path):
    curves = {MAIN: FLAT, ("position", 0, 0): FLAT[:1] + 0.05}
    curves |= {(name, seed, 0): 0 * FLAT for name in ("shuffled_labels", "random_weights") for seed in range(3)}
    write(tmp_path, [predictions(curves)], results())
    texts = {}
    for pooling in ("temporal_last", "temporal_diff_patch"):
        rows = results().assign(pooling=pooling)
        texts[pooling] = verdict_of(tmp_path, rows)
        assert "random weights (3 seeds), shuffled labels (3 seeds) |" in texts[pooling]
    assert "| position, random" in texts["temporal_last"] and "**holds**" not in texts["temporal_last"]
    assert "position" not in texts["temporal_diff_patch"].split("\n---")[0]
    assert "from the first layers | **holds**" in texts["temporal_diff_patch"]


def test_a_run_without_predictions_is_named_and_left_out(tmp_path):
    rows = pd.concat([results(), results(run="old", variable="acceleration")])
    write(tmp_path, [predictions({MAIN: FLAT})], results())
    text = verdict_of(tmp_path, rows)
    assert "acceleration left out: " in text
    assert "predictions_old.parquet is missing: rerun step3_probe.py run --run-name old" in text
    assert "| speed | is readable" in text


def test_plotting_figure_2c_writes_its_verdict(tmp_path):
    write(tmp_path, [predictions({MAIN: FLAT})], results())
    written = build_figure2c(Asked(tmp_path))
    assert {tmp_path / "figure2c_verdict.md", tmp_path / "figure2c_verdict.json"} <= set(written)
    text = (tmp_path / "figure2c_verdict.md").read_text()
    record = json.loads((tmp_path / "figure2c_verdict.json").read_text())["statements"]
    for word in ("holds", "does not hold", "undecided"):
        assert text.count(f"**{word}**") == [item["verdict"] for item in record].count(word)
    assert "holds" in {item["verdict"] for item in record}


@pytest.mark.parametrize("layers", [[0, 4, 8], [2, 8, 14, 20], [8]])
def test_some_layers_keep_their_place_in_the_depth(tmp_path, layers):
    table = predictions({MAIN: EMERGES})
    table, rows = table[table["layer"].isin(layers)], results()[results()["layer"].isin(layers)]
    write(tmp_path, [table], rows)
    item = judge(runs_of(tmp_path, rows)[0][0], "speed", "speed")
    assert item.key.depth == DEPTH
    onset = next(onset for *_, onset in item.onsets() if onset.rule == "half-rise")
    (found,) = [each for each in item.checked("2c") if "first layers" in each.claim]
    assert layers[0] <= onset.layer <= layers[-1]
    assert f"onset at {onset.layer / DEPTH:.2f} of the depth" in found.findings[0].measured


def test_a_run_without_resamples_says_so_and_the_runs_own_number_is_honoured(tmp_path):
    rows = results()
    write(tmp_path, [predictions({MAIN: FLAT})], rows)
    assert len(judge(runs_of(tmp_path, rows.assign(n_bootstrap=77))[0][0], "speed", "speed").key.main.samples) == 77
    text = verdict_of(tmp_path, rows.assign(n_bootstrap=0))
    assert "**undecided** | | no resamples: rerun with --bootstrap 1000 |" in text


def hit_rate(target, prediction, group, resamples) -> BootstrapCurve:
    """Share of clips within 1 of their target."""
    hit = (np.abs(prediction - target).max(2) < 1).astype(float)
    names, index = np.unique(group, return_inverse=True)
    n = np.bincount(index)
    sums = np.stack([np.bincount(index, layer) for layer in hit], axis=1)
    samples = (resamples.counts @ sums) / (resamples.counts @ n)[:, None]
    return BootstrapCurve(hit.mean(1), samples, resamples)


def test_another_kind_of_target_is_judged_by_its_own_score(tmp_path, monkeypatch):
    kind = Kind("mse", 0.25, 0.8, "hit_rate", ("hit_rate",), lambda *_: {}, {"hit_rate": Pooled(hit_rate)})
    monkeypatch.setitem(KINDS, "toy", kind)
    shuffled = {("shuffled_labels", 0, 0): NOTHING["shuffled_labels"]}
    table = predictions({MAIN: EMERGES} | shuffled, "toy").assign(kind="toy")
    rows = results(variable="toy").drop(columns=["r2_mean", "r2_std"]).assign(hit_rate_mean=0.5)
    write(tmp_path, [table], rows)
    item = judge(runs_of(tmp_path, rows)[0][0], "toy", "toy")
    hits = [
        (np.abs(p["prediction"] - p["target"]) < 1).mean() for _, p in table[table["control"] == ""].groupby("layer")
    ]
    np.testing.assert_allclose(item.key.main.estimate, hits)
    assert item.key.chance == 0.25 and set(item.curves) == {("overall", "hit_rate")}
    text = verdict_text("toy", [item])
    assert "| toy | `run` | large | vitl.pt | nested | 360 | 60 | shuffled labels (1 seed) |" in text
    assert "| toy | chance | threshold | layer" in text and "score 0.8)" in text


def test_a_curve_of_unconverged_probes_decides_nothing_and_says_where(tmp_path):
    table = predictions({MAIN: FLAT, ("shuffled_labels", 0, 0): NOTHING["shuffled_labels"]})
    rows = results().assign(converged=[layer not in (0, 1, 5) for layer in range(DEPTH)])
    write(tmp_path, [table], rows)
    read = pd.read_csv(tmp_path / "results_run.csv")
    text = verdict_of(tmp_path, read).split("\n---")[0]
    why = "the probe's training, not the encoder: not converged at layers 0 to 1, 5"
    assert text.count(f"| **undecided** | | {why} |") == 3
    assert "**holds**" not in text and "| holds | chance |" in text  # what would have been found still stands there
    assert f"- speed: {why}." in text and f"undecided ({why}); as drawn" in text.split("## Onset")[1]
    record = json.loads((tmp_path / "figure2c_verdict.json").read_text())
    assert {each["verdict"] for each in record["statements"]} == {"undecided"}
    assert "**holds**" in verdict_of(tmp_path, read.assign(converged=True))
