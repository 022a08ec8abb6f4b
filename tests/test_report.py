"""The report: what is gathered and said of a fabricated results folder, and how a browser shows the page."""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import plot_figures
from pez.cli import run_script
from pez.controls import BALLS, CONTROLS, MOVIES, controls_for
from pez.figures.caveats import CAVEATS
from pez.figures.quoted import quoted
from pez.figures.report.gather import gather
from pez.figures.report.notes import banners, counted, shown, statements, warnings
from pez.figures.report.page import Pictures, build_report, inches, markdown, render
from pez.figures.report.tables import audit_tables, control_meanings, control_tables, numbers_table, runs_table
from pez.movies.intphys import INTPHYS, INTPHYS_MINI
from pez.probes.results import BALL
from pez.probes.results import MOVIES as OF_MOVIES
from pez.probes.scores.kinds import KINDS, Kind, Pooled
from pez.probes.scores.possibility import COUNTS, METRICS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)
LAYERS = np.arange(12)
SPEED = 0.4 + 0.05 * LAYERS - 0.004 * LAYERS**2  # highest at layer 6
WEIGHTS = "target_encoder of vitl.pt"


def ball_run(folder, name="ball", weights=WEIGHTS, grouping="direction_spatial_sector", **columns):
    """Write a ball run's table and config; scores of the nested protocol are SPEED, direction 0.3 lower."""
    tables = []
    for variable, lower in (("speed", 0.0), ("direction", 0.3)):
        table = pd.DataFrame({"run_name": name, "variable": variable, "layer": LAYERS, "layer_fraction": LAYERS / 12})
        nested = SPEED - lower
        table = table.assign(r2_mean=nested + 0.1, r2_std=0.02, optimism=0.1, r2_nested_pooled=nested)
        table = table.assign(r2_nested_pooled_low=nested - 0.05, r2_nested_pooled_high=nested + 0.05)
        table = table.assign(protocol="both", probe_set="fig2c", grouping=grouping, direction_target="angle")
        table = table.assign(pooling="temporal_last", residual_capture="resid_post", preprocessing="resize")
        tables.append(table.assign(model="large", weights=weights, n_clips=392, n_groups=54, n_folds=5, **columns))
    pd.concat(tables).to_csv(folder / f"results_{name}.csv", index=False)
    record = {"options": {"folds": 5}, "clip_sets": {"velocity": {"features": {"clip_set": {"fingerprint": "abc"}}}}}
    record["provenance"] = {"code_version": "0.1.0 (abc)", "written": "2026-11-23T08:00:00+0000", "python": "3.11"}
    (folder / f"config_{name}.json").write_text(json.dumps(record))


def controls(folder, name="ball"):
    """Two seeds of shuffled labels at every layer, position at one."""
    shuffled = [
        pd.DataFrame({"control": "shuffled_labels", "control_seed": seed, "layer": LAYERS, "r2_pooled": 0.02 * seed})
        for seed in (0, 1)
    ]
    shuffled = pd.concat(shuffled).assign(selectivity=0.5, selectivity_low=0.4, selectivity_high=0.6)
    position = pd.DataFrame({"control": "position", "control_seed": 0, "layer": LAYERS, "r2_pooled": 0.07})
    table = pd.concat([shuffled, position]).assign(run_name=name)
    table = pd.concat([table.assign(variable=variable) for variable in ("speed", "direction")])
    table.to_csv(folder / f"controls_{name}.csv", index=False)


def movies_run(folder, name="movies", data=INTPHYS_MINI.title, probe_set="intphys_linear"):
    rows = []
    for subtask in [subtask.name for subtask in INTPHYS.subtasks]:
        for layer in range(6):
            row = {"run_name": name, "probe_set": probe_set, "variable": "possible", "subtask": subtask}
            row |= {"layer": layer, "layer_fraction": layer / 6, "model": "tiny", "weights": "random weights (seed 0)"}
            row |= {f"{metric}_mean": 0.5 + 0.05 * layer for metric in METRICS} | dict.fromkeys(COUNTS, 0)
            row |= {f"{metric}_std": 0.01 for metric in METRICS} | {"data": data, "n_folds": 5, "protocol": "nested"}
            rows.append(row | {"n_scenes": 12, "n_ties": 12 if layer == 0 else 0, "n_near_ties": 12 - layer})
    pd.DataFrame(rows).to_csv(folder / f"results_{name}.csv", index=False)


def picture(path, size=(900, 600)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("L").save(path)


def clip_set(root, name="velocity"):
    """A clip set of four clips, two of which leave the view, one of each magnitude, 7 m/s always."""
    directory = root / name
    rows = []
    for index, (magnitude, visible) in enumerate([(1.0, 1.0), (1.0, 1.0), (7.0, 0.5), (7.0, 0.75)]):
        rows.append({"clip_id": f"c{index}", "direction_deg": 45.0 * index, "magnitude": magnitude, "n_frames": 16})
        rows[-1] |= {"visible_fraction": visible}
        (directory / "clips" / f"c{index}").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(directory / "clips.parquet")
    frames = [{"clip_id": row["clip_id"], "frame": frame} for row in rows for frame in range(16)]
    pd.DataFrame(frames).to_parquet(directory / "frames.parquet")
    settings = {
        "set": name,
        "preset": "quick",
        "n_frames": 16,
        "frame_rate": 24.0,
        "resolution": 256,
        "backend": "pybullet",
    }
    (directory / "clipset.json").write_text(json.dumps({"settings": settings}))
    picture(directory / "contact_sheet.png", (700, 300))
    frames = [Image.new("P", (660, 380), shade) for shade in (10, 200)]
    frames[0].save(directory / "sample.gif", save_all=True, append_images=frames[1:], duration=80, loop=0)


VERDICT = """# Figure 2(c), checked

| variable | the paper says it | verdict | against | measured |
|---|---|---|---|---|
| speed | is readable from the first layers | **holds** | | |
| | | holds | chance | onset at 0.00 |
| direction | appears at about one third of the depth | **undecided** | | |
| | | undecided | chance | no onset |

```
The rules, at length.
```
"""


@pytest.fixture
def results(tmp_path):
    """A folder with everything a report can show."""
    folder = tmp_path / "project" / "results"
    folder.mkdir(parents=True)
    ball_run(folder)
    controls(folder)
    movies_run(folder)
    (folder / "figure2c_verdict.md").write_text(VERDICT)
    findings = [{"against": "chance", "verdict": "holds", "measured": "onset at 0.00"}]
    speed = {"of": "speed", "claim": "is readable from the first layers", "verdict": "holds", "findings": findings}
    findings = [{"against": "chance", "verdict": "holds", "measured": "onset at 0.30"}]
    findings += [{"against": "static_last", "verdict": "undecided", "measured": "no onset"}]
    turn = {"of": "direction", "claim": "appears at about one third of the depth", "verdict": "undecided"}
    record = {"statements": [speed, turn | {"findings": findings}]}
    (folder / "figure2c_verdict.json").write_text(json.dumps(record))
    (folder / "figure6_verdict.md").write_text("# Figure 6\n\nStatus: **not comparable**\n")
    (folder / "figure6_verdict.json").write_text('{"status": "not comparable", "statements": []}')
    for name in ("figure2c_final", "figure6_intphys_overall_compare", "figure_ball", "audit_velocity"):
        picture(folder / f"{name}.png")
    audit = [
        ("velocity", measure, target, "end_x", 0.25) for measure in ("correlation", "r2") for target in ("vx", "cos")
    ]
    audit = pd.DataFrame(audit, columns=["set", "measure", "target", "of", "value"])
    audit.to_csv(folder / "audit_velocity.csv", index=False)
    clip_set(folder.parent / "data")
    for block in ("O1", "O2", "O3"):
        picture(folder.parent / "intphys_mini" / "dev" / f"sample_{block}.gif", (800, 300))
    return folder


def empty(tmp_path, monkeypatch):
    """A results folder with nothing beside it, and nothing where constants.py points."""
    monkeypatch.setattr("pez.figures.report.gather.constants.DATA_DIR", tmp_path / "none")
    monkeypatch.setattr("pez.figures.report.gather.constants.INTPHYS_MINI_ROOT", tmp_path / "none" / "dev")
    folder = tmp_path / "alone" / "results"
    folder.mkdir(parents=True)
    return folder


def found(report) -> dict[str, str]:
    return {caveat.subject: " ".join(places) for caveat, places in warnings(report)}


def test_everything_in_the_folder_is_gathered(results):
    report = gather(results)
    assert {run.name: run.kind for run in report.runs} == {"ball": BALL, "movies": OF_MOVIES}
    assert [each.spec.number for each in report.pictures] == ["2(c)", "6"]
    assert [each.spec.number for each in report.verdicts] == ["2(c)", "6"]
    assert [each.name for each in report.clip_sets] == ["velocity"]
    assert [each.block for each in report.movies] == ["O1", "O2", "O3"]
    assert [each.name for each in report.audits] == ["velocity"]


def test_absent_pieces_are_named_and_no_error(tmp_path, monkeypatch):
    folder = empty(tmp_path, monkeypatch)
    ball_run(folder)
    (folder / "config_ball.json").unlink()
    (folder / "results_broken.csv").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "results_other.csv").write_text("a,b\n1,2\n")
    [page] = build_report(folder)
    absent = " ".join(gather(folder).absent)
    for part in ("config_ball.json", "results_broken.csv", "Figure 2(b)", "velocity", "acceleration", "audit"):
        assert part in absent
        assert part in page.read_text().replace("<wbr>", "")


def test_a_folder_without_runs_makes_no_report(tmp_path, capsys):
    (tmp_path / "results_other.csv").write_text("a,b\n1,2\n")
    assert build_report(tmp_path) == []
    assert "no run in" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_only_the_named_runs(results):
    assert [run.name for run in gather(results, ["movies"]).runs] == ["movies"]


def test_random_weights_and_stand_ins_are_said_and_trained_weights_are_not(results):
    said = {note.subject: note.text for note in banners(gather(results))}
    assert said["Random weights"].startswith("Run movies used an encoder that was never trained")
    assert "They are not IntPhys" in said["Stand-in data"]
    assert banners(gather(results, ["ball"])) == []
    ball_run(results, weights="random weights (seed 0)")
    assert banners(gather(results))[0].text.startswith("Every run used an encoder that was never trained")


def test_what_it_shows_follows_from_the_tables(results):
    said = {note.subject: note.text for note in shown(gather(results))}
    assert said["speed"].startswith(
        "0.400 at layer 0, highest 0.556 (95\u00a0% interval 0.506 to 0.606) at layer 6, 0.466 at"
    )
    assert "Highest control there: position, 0.070." in said["speed"]
    assert said["possible or impossible, linear probe"].startswith("0.500 at layer 0, highest 0.750 (7 of 12")
    first, second = gather(results).verdicts
    assert counted(first) == "holds: 1, does not hold: 0, undecided: 1, of 2 statements."
    assert counted(second) == "Against the published values: not comparable."


def test_every_statement_is_one_sentence_with_what_decided_it(results):
    speed, direction = statements(gather(results).verdicts[0])
    assert (speed.claim, speed.verdict) == ("Speed is readable from the first layers", "holds")
    assert speed.measured == "onset at 0.00"
    assert direction.claim == "Direction appears at about one third of the depth"
    assert direction.measured == "against static last: no onset"


def test_the_page_opens_with_its_main_picture_and_the_statements(results):
    html = render(gather(results))
    places = [html.index("Figure 2(c): Scalar motion by layer.</figcaption>"), html.index("Speed is readable from")]
    places += [html.index("Pooled R², nested protocol"), html.index("<table>")]
    assert places == sorted(places)


def test_roc_auc_stands_beside_relative_accuracy(results):
    said = next(note.text for note in shown(gather(results)) if note.subject.startswith("possible or impossible"))
    assert "ROC AUC there: 0.750." in said


def test_numbers_and_controls_in_tables(results):
    run = gather(results).of_kind(BALL)[0]
    speed, direction = numbers_table(run).rows
    assert speed == ["speed", "0.400", "0.536", "0.556", "6", "0.506 to 0.606", "0.466", "0.100"]
    assert direction[3:6] == ["0.256", "6", "0.206 to 0.306"]
    [table] = control_tables(gather(results))
    numbers = ["6", "0.556", "0.010", "–", "0.500", "0.400 to 0.600"]
    assert table.rows[0] == ["speed", "shuffled labels (2 seeds)", *numbers]
    assert table.rows[1][:5] == ["speed", "position", "6", "0.556", "0.070"]
    correlation, decoded = audit_tables(gather(results).audits[0])
    assert correlation.rows[0] == ["velocity x", "0.250"]
    assert decoded.columns == ["target", "end x"]


def test_controls_intervals_and_optimism_of_movies(results):
    path = results / "results_movies.csv"
    table = pd.read_csv(path).assign(relative_accuracy_optimism=0.125, protocol="both")
    ends = {"relative_accuracy_pooled": 0.74, "relative_accuracy_low": 0.6, "relative_accuracy_high": 0.9}
    table.assign(**ends).to_csv(path, index=False)
    ends = {"relative_accuracy_pooled": 0.5, "relative_accuracy_low": 0.4, "relative_accuracy_high": 0.6}
    ends |= {f"relative_accuracy_selectivity{end}": value for end, value in (("", 0.24), ("_low", 0.1), ("_high", 0.3))}
    controls = [table.assign(control="shuffled_labels", control_seed=seed, **ends) for seed in (0, 1)]
    controls.append(table.assign(control="pixels", control_seed=0, **{**ends, "relative_accuracy_pooled": 0.45}))
    pd.concat(controls).to_csv(results / "controls_movies.csv", index=False)
    report = gather(results)
    table = numbers_table(report.of_kind(OF_MOVIES)[0])
    row = next(row for row in table.rows if row[0] == "relative accuracy")
    assert row == ["relative accuracy", "0.500", "0.750", "5", "0.740", "0.600 to 0.900", "0.750", "0.125"]
    assert table.rows[0][4:6] == ["–", "–"]  # clip accuracy, of which this table has no interval
    shuffled, pixels = control_tables(report)[-1].rows
    gained = ["0.240", "0.100 to 0.300"]
    assert shuffled[1:] == ["shuffled labels (2 seeds)", "5", "0.740", "0.500", "0.400 to 0.600", *gained]
    assert pixels[1:] == ["pixels", "5", "0.740", "0.450", "0.400 to 0.600", *gained]
    said = next(note.text for note in shown(report) if note.subject.startswith("possible or impossible"))
    assert "(pooled 0.740, 95\u00a0% interval 0.600 to 0.900; 7 of 12 scenes are decided" in said
    assert "Highest control there: shuffled labels, 0.500 (the curve minus it: 0.240" in said
    assert "movies: it adds 0.125 relative accuracy" in found(report)["Optimistic protocol"]
    assert "movies: without random weights, static last, " in found(report)["Controls not run"]


def test_scenes_of_repeats_are_counted_once(results):
    path = results / "results_movies.csv"
    pd.read_csv(path).assign(n_repeats=2, n_scenes=24, n_folds=10).to_csv(path, index=False)
    report = gather(results)
    assert "overall 12, object permanence 12" in found(report)["Few groups"]
    assert "10 folds of whole scenes in 2 repeats" in str(runs_table(report).rows)


def test_a_figure_is_as_wide_as_it_was_drawn(tmp_path):
    Image.new("L", (960, 10)).save(tmp_path / "figure.png", dpi=(150, 150))
    assert inches(tmp_path / "figure.png") == 6.4


def test_warnings_are_found(results):
    said = found(gather(results))
    assert "2 of 4 clips" in said["Clips leave the view"]
    assert "at 7 m/s in 100%" in said["Clips leave the view"]
    assert "velocity set abc" in said["Other clips"]
    assert "temporal_last. R² from position alone: speed 0.070, direction 0.070." in said["The pooling sees position"]
    assert "adds 0.100 R² on average" in said["Optimistic protocol"]
    assert "sine and cosine were not probed" in said["Scalar angle"]
    assert "without random weights, pixels, static last" in said["Controls not run"]
    assert "of 72 scene comparisons over all layers 12 tie and 57 are" in said["Ties and near-ties"]
    scenes = "overall 12, object permanence 12, shape constancy 12, spatio-temporal continuity 12"
    assert said["Few groups"] == f"movies: scenes: {scenes}."
    assert not {"Fewer folds than asked", "No intervals", "Uncommitted code", "Frames one by one"} & set(said)


def test_rarer_warnings_are_found(tmp_path, monkeypatch):
    folder = empty(tmp_path, monkeypatch)
    ball_run(folder, n_folds_scored=3, frame_order="static_last")
    table = pd.read_csv(folder / "results_ball.csv").assign(n_groups=4, n_folds=4, protocol="paper")
    table.drop(columns=["r2_nested_pooled", "optimism"]).to_csv(folder / "results_ball.csv", index=False)
    path = folder / "config_ball.json"
    record = json.loads(path.read_text().replace("(abc)", "(abc+dirty)"))
    next(iter(record["clip_sets"].values()))["features"]["encoder"] = {"per_frame": True}
    path.write_text(json.dumps(record))
    said = found(gather(folder))
    assert said["Few groups"] == "ball: speed 4, direction 4."
    assert said["Fewer folds than asked"] == "ball: 4 folds instead of 5."
    assert "1 of 4 folds" in said["Folds without a score"]
    assert "only that protocol was run" in said["Optimistic protocol"]
    assert said["Changed clips"] == "ball: static last."
    assert said["Frames one by one"] == "ball: large."
    assert said["Controls not run"] == "ball: none was run."
    assert {"No intervals", "Uncommitted code"} <= set(said)


def test_every_control_has_a_meaning_and_is_missed_where_it_means_something(results):
    assert all(control.meaning for control in CONTROLS.values())
    assert list(control_meanings(gather(results))) == ["shuffled labels", "position"]
    missing = found(gather(results))["Controls not run"]
    balls, movies = missing.split("movies: ")
    assert "reversed" in balls and "position" not in balls
    assert movies == "none was run."
    assert {*controls_for(MOVIES)} < {*controls_for(BALLS)}


def test_caveats_are_one_list_with_a_subject_each():
    subjects = [caveat.subject for caveat in CAVEATS]
    assert len(set(subjects)) == len(subjects)
    assert all(caveat.why.endswith(".") for caveat in CAVEATS)


def test_some_layers_are_read_at_their_own_place(results):
    path = results / "results_ball.csv"
    table = pd.read_csv(path)
    table[table["layer"].isin([0, 4, 8])].to_csv(path, index=False)
    [run] = [run for run in gather(results).runs if run.name == "ball"]
    speed = numbers_table(run).rows[0]
    assert speed[1:5] == ["0.400", "0.536", "0.544", "8"]  # one third of 12 layers is layer 4
    table[table["layer"].isin([0, 8])].to_csv(path, index=False)
    [run] = [run for run in gather(results).runs if run.name == "ball"]
    assert numbers_table(run).rows[0][2] == "–"


def test_another_kind_of_target_is_reported_by_its_own_score(results, monkeypatch):
    monkeypatch.setitem(KINDS, "toy", Kind("mse", 0.25, 0.6, "hits", ("hits",), lambda *_: {}, {"hits": Pooled(None)}))
    table = pd.DataFrame({"run_name": "toy", "variable": "shape", "layer": LAYERS, "layer_fraction": LAYERS / 12})
    table = table.assign(hits_mean=SPEED, hits_std=0.02, hits_nested_pooled=SPEED, protocol="both", optimism=0.1)
    table = table.assign(hits_nested_pooled_low=SPEED - 0.05, hits_nested_pooled_high=SPEED + 0.05, probe_set="labels")
    table.assign(model="large", weights=WEIGHTS, n_groups=54).to_csv(results / "results_toy.csv", index=False)
    ends = {"hits_pooled": 0.2, "hits_pooled_low": 0.1, "hits_pooled_high": 0.3}
    gained = {"selectivity": 0.35, "selectivity_low": 0.3, "selectivity_high": 0.4}
    other = pd.DataFrame({"run_name": "toy", "control": "pixels", "variable": "shape", "layer": LAYERS})
    other.assign(control_seed=0, **ends, **gained).to_csv(results / "controls_toy.csv", index=False)
    report = gather(results)
    [run] = [run for run in report.runs if run.name == "toy"]
    [curve] = quoted(run)
    assert (curve.metric, curve.words) == ("hits", "pooled hits, nested protocol")
    assert numbers_table(run).rows == [["shape", "0.400", "0.536", "0.556", "6", "0.506 to 0.606", "0.466", "0.100"]]
    said = next(note for note in shown(report) if note.subject == "shape")
    assert said.of.startswith("Pooled hits, nested protocol")
    assert "Highest control there: pixels, 0.200 (the curve minus it: 0.350" in said.text
    row = next(row for table in control_tables(report) for row in table.rows if row[0] == "shape")
    assert row[1:] == ["pixels", "6", "0.556", "0.200", "0.100 to 0.300", "0.350", "0.300 to 0.400"]


def test_real_movies_bring_no_stand_in(results):
    movies_run(results, data="IntPhys dev")
    report = gather(results)
    assert report.movies == []
    assert "Stand-in data" not in {note.subject for note in banners(report)}


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Tags, the addresses in src and href, and the text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.addresses, self.ids, self.images, self.headings = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "data") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values] if tag == "img" else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(results):
    [path] = build_report(results)
    html = path.read_text()
    page = Page(html)
    outside = [address for address in page.addresses if re.match(r"(?i)\s*(https?:)?//", address)]
    assert all(address.startswith("https://arxiv.org/") for address in outside)
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    assert page.tags.count("link") == 1  # the empty icon
    assert not re.search(r"@import|url\((?!['\"]?data:)", html)
    for address in page.addresses:
        if address.startswith("./"):
            assert (results / address[2:]).is_file()
        if address.startswith("#"):
            assert address[1:] in page.ids


def test_pictures_are_inlined_named_and_animated_ones_stay_so(results):
    page = Page(render(gather(results)))
    assert len(page.images) == 9  # 4 figures and audit, 1 sheet, 4 animations
    assert all(image["src"].startswith("data:image/") and len(image["alt"]) > 20 for image in page.images)
    assert sum(image["src"].startswith("data:image/gif") for image in page.images) == 4


def test_headings_descend_one_at_a_time(results):
    levels = Page(render(gather(results))).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


def test_names_are_escaped_wherever_they_stand(results):
    name = "<b>x<script>alert(1)<"
    ball_run(results, name, weights="<img src=x onerror=alert(2)>")
    picture(results / f"figure_{name}.png")
    text = VERDICT.replace("| speed", f"| `{name}` <i>raw</i> ![p](http://example.org/p.png) [l](http://example.org)")
    (results / "figure2c_verdict.md").write_text(text)
    html = render(gather(results))
    page = Page(html)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert all("onerror" not in image for image in page.images)
    assert "example.org" not in " ".join(page.addresses)
    assert "&lt;b&gt;x&lt;script&gt;" in html


def test_verdict_files_are_rendered():
    html = markdown(VERDICT)
    assert "<h3>Figure 2(c), checked</h3>" in html
    assert '<strong class="verdict holds">holds</strong>' in html
    assert html.count("<details") == 1
    assert html.count('<div class="table') == html.count("</table></div>") == 1


def test_pictures_beyond_the_budget_are_left_out_and_named(results, monkeypatch):
    monkeypatch.setattr("pez.figures.report.page.MOST_PICTURE_BYTES", 100)
    html = render(gather(results))
    assert "figure2c_final.png is too large to be shown here" in html
    assert Page(html).images == []
    assert Pictures(gather(results)).uri(results / "figure2c_final.png") is None


def test_plot_figures_writes_it_last(results, capsys):
    for path in results.glob("figure*"):
        path.unlink()
    arguments = ["--results-dir", str(results), "--figures", "report", "6"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.html")
    assert "Figure 6: Possible or impossible" in (results / "report.html").read_text()


# ---------------------------------------------------------------- in a browser

WRAPPER = """<!DOCTYPE html><title>wrapper</title><link rel="icon" href="data:,"><body>
<iframe id="400" src="report.html" width="400" height="900"></iframe>
<iframe id="1400" src="report.html" width="1400" height="900"></iframe>
<iframe id="control" srcdoc="<div style='width:800px'>x</div>" width="400" height="90"></iframe>
<script>
addEventListener("load", () => {
  const seen = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    for (const folded of page.querySelectorAll("details")) folded.open = true;
    seen[frame.id] = {over: root.scrollWidth - root.clientWidth, width: root.clientWidth,
      height: root.scrollHeight, broken: [...page.images].filter(image => !image.naturalWidth).length};
  }
  console.error("the test reads this");
  document.body.textContent = "MEASURED" + JSON.stringify(seen) + "END";
});
</script></body>"""


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, text, *arguments):
        Quiet.asked.append(self.path)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path (apt-get install chromium)")
def test_a_browser_shows_it_without_errors_at_both_widths_and_in_print(results, tmp_path):
    ball_run(results, "a_run_with_a_name_as_long_as_the_main_recipes_of_the_published_reproduction_have_them")
    build_report(results)
    (results / "wrapper.html").write_text(WRAPPER)
    Quiet.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(results)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/wrapper.html"
    try:
        done = chromium(tmp_path, "--virtual-time-budget=10000", "--dump-dom", address)
    finally:
        server.shutdown()
        server.server_close()
    seen = json.loads(re.search("MEASURED(.*)END", done.stdout)[1])
    assert seen["control"]["over"] > 300  # the measure sees an overflow
    for width in ("400", "1400"):
        assert seen[width]["over"] == 0
        assert seen[width]["broken"] == 0
        assert seen[width]["height"] > 2000
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(said) == 1, said
    assert "the test reads this" in said[0]
    assert set(Quiet.asked) == {"/wrapper.html", "/report.html"}  # nothing else was fetched
    page = tmp_path / "page.pdf"
    chromium(tmp_path, f"--print-to-pdf={page}", (results / "report.html").as_uri())
    assert page.read_bytes().startswith(b"%PDF")


def chromium(folder, *arguments) -> subprocess.CompletedProcess:
    """Run a fresh headless browser to its end."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
