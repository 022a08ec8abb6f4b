"""docs/labels.md as it stands there: its three commands, its audit, its scenes; statements of one's own."""

import json
import os
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from inputs import write_film

import plot_figures
import step2_extract
import step3_probe
from pez.cli import run_script
from pez.errors import UserError
from pez.figures.verdicts.statements import CHECKS, STATEMENTS, Statement, read_statements
from pez.probes.audit import audit_labels
from pez.probes.data.labels import read_labels
from pez.probes.options import BallOptions
from pez.probes.runs import plan
from pez.stimuli.clipset import ClipSet

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (REPOSITORY / "docs" / "labels.md").read_text()
SCRIPTS = {"step2_extract.py": step2_extract, "step3_probe.py": step3_probe, "plot_figures.py": plot_figures}
SMALL = ["--model", "tiny", "--weights", "random", "--model-resolution", "32", "--workers", "0"]
N = 24


def commands() -> list[list[str]]:
    """The command lines of the page, words as a shell has them."""
    blocks = re.findall(r"```\n(python .*?)```", PAGE, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python ")]


def run(command: list[str], folder) -> int:
    """A command of the page with FOLDER and artifacts elsewhere, on a small encoder."""
    name = command[1].removeprefix("./")
    words = [
        word.replace("FOLDER", str(folder)).replace("./artifacts", str(folder / "artifacts")) for word in command[2:]
    ]
    if name == "step2_extract.py":
        words += SMALL
    else:
        words += ["--results-dir", str(folder / "results")]
    return run_script(SCRIPTS[name].make_parser(), SCRIPTS[name].main, words)


def bright(level: int) -> list[np.ndarray]:
    return [np.full((32, 32, 3), level + 2 * frame, np.uint8) for frame in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos as bright as their label says, two of a scene."""
    folder = tmp_path_factory.mktemp("mine")
    levels = np.random.default_rng(0).integers(10, 200, N)
    for number, level in enumerate(levels):
        write_film(folder / "videos" / f"film_{number:02d}.mp4", pictures=bright(int(level)), rate=25)
    table = pd.DataFrame({"clip_id": [f"film_{number:02d}" for number in range(N)], "height": levels / 100})
    table["heading"] = np.random.default_rng(1).uniform(-180, 180, N)
    table["material"] = np.where(levels > 100, "steel", "foam")
    table["scene"] = [f"scene {number // 2}" for number in range(N)]
    table.to_csv(folder / "labels.csv", index=False)
    statements = re.search(r"```\n(variable,claim,check\n.*?)```", PAGE, flags=re.DOTALL)
    (folder / "statements.csv").write_text(statements[1])
    return folder


def test_three_commands_lead_from_videos_and_a_table_to_a_curve_with_controls(folder, capsys):
    first, second, third, audit = commands()
    for command in (first, second, third):
        assert run(command, folder) == 0, capsys.readouterr().err
    rows = pd.read_csv(folder / "results" / "results_mine.csv")
    height = rows[rows["variable"] == "height"].set_index("layer")
    assert height["r2_nested_pooled"].max() > 0.9  # brightness is what the videos differ by
    assert rows[rows["variable"] == "heading"]["r2_nested_pooled"].max() < 0.5  # drawn at random
    assert set(pd.read_csv(folder / "results" / "controls_mine.csv")["control"]) == {
        "shuffled_labels",
        "random_weights",
        "pixels",
    }
    for name in ("figure_mine.png", "figure_mine_verdict.md", "report.html"):
        assert (folder / "results" / name).is_file(), name
    record = json.loads((folder / "results" / "figure_mine_verdict.json").read_text())
    claims = {(each["of"], each["claim"]): each["verdict"] for each in record["statements"]}
    assert set(claims) == {
        ("height", "can be read somewhere"),
        ("heading", "appears at about one third of the depth"),
    }
    against = {finding["against"]: finding["verdict"] for finding in record["statements"][0]["findings"]}
    assert against["chance"] == "holds" and {"shuffled_labels", "pixels"} <= set(against)
    text = (folder / "results" / "figure_mine_verdict.md").read_text()
    assert "# Labels of one's own, statements checked" in text and "| variable | it is said |" in text
    assert run(audit, folder) == 0
    found = pd.read_csv(folder / "results" / "audit_videos_labels.csv").set_index(["measure", "target", "of"])["value"]
    assert found["correlation", "height", "material steel"] > 0.7
    assert (
        found["r2", "height", "the other labels"] > 0.4 and (folder / "results" / "audit_videos_labels.png").is_file()
    )


def test_without_statements_the_verdict_has_onsets_alone(folder):
    given = ["--results-dir", str(folder / "results"), "--figures", "labels"]
    assert run_script(plot_figures.make_parser(), plot_figures.main, given) == 0
    text = (folder / "results" / "figure_mine_verdict.md").read_text()
    assert "None is about these variables" in text and "| height | chance | " in text


def test_scenes_with_a_manifest_are_clips_called_by_their_folder(tmp_path):
    lines = []
    for number in range(6):
        scene = tmp_path / "videos" / f"scene_{number:04d}"
        write_film(scene / "video.mp4", pictures=bright(30 * number), rate=25)
        metadata = {"physics": {"mass": number / 2}, "room": f"room {number // 2}"}
        (scene / "metadata.json").write_text(json.dumps(metadata))
        lines.append(json.dumps({"video": f"videos/scene_{number:04d}/video.mp4"}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    argv = [
        "--clips",
        str(tmp_path / "videos"),
        "--pooling",
        "mean",
        "--output-root",
        str(tmp_path / "features"),
        *SMALL,
    ]
    assert run_script(step2_extract.make_parser(), step2_extract.main, argv) == 0
    options = BallOptions(
        run_name="r",
        feature_root=tmp_path / "features",
        targets=tmp_path / "manifest.jsonl",
        variables=("physics.mass:scalar",),
        group="room",
    )
    (curve,) = plan(options)
    assert curve.data.clips["clip_id"].tolist() == [f"scene_{number:04d}/video" for number in range(6)]
    assert curve.data.variables[0].targets[:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert curve.data.group.tolist() == [f"room {number // 2}" for number in range(6)]


# ---------------------------------------------------------------- audit of labels


def test_labels_of_clips_with_ground_truth_are_decoded_from_place_and_motion(tmp_path):
    rng, n = np.random.default_rng(0), 40
    start, way = rng.uniform(60, 190, (n, 2)), rng.uniform(-3, 3, (n, 2))
    clips = pd.DataFrame({"clip_id": [f"c{k}" for k in range(n)], "n_frames": 16, "taken_s": rng.uniform(1, 2, n)})
    frames = pd.DataFrame({"clip_id": np.repeat(clips["clip_id"], 16), "frame": np.tile(np.arange(16), n)})
    places = start[:, None] + np.arange(16)[None, :, None] * way[:, None]
    frames[["x_px", "y_px"]] = places.reshape(-1, 2)
    (tmp_path / "frames.parquet").touch()  # a set on disk has its tables; these are in memory
    labels = pd.DataFrame(
        {"clip_id": clips["clip_id"], "where": start[:, 0], "pace": way[:, 0], "noise": rng.normal(size=n)}
    )
    labels["clock"] = 2 * clips["taken_s"] + 0.01 * rng.normal(size=n)
    labels.sample(frac=1, random_state=0).to_csv(tmp_path / "l.csv", index=False)
    wanted = [f"{name}:scalar" for name in ("where", "pace", "noise", "clock")]
    read = read_labels(tmp_path / "l.csv", wanted, clips, "mine")
    found = audit_labels(ClipSet(tmp_path, {}, clips, frames), read)
    assert found.correlation.loc["where", "start_x"] == pytest.approx(1)
    assert found.correlation.loc["pace", "displacement_x"] == pytest.approx(1)
    assert found.correlation.loc["pace", "noise"] == pytest.approx(np.corrcoef(way[:, 0], labels["noise"])[0, 1])
    assert found.r2.loc["where", "start"] > 0.95 and found.r2.loc["pace", "two frames, linear"] > 0.95
    assert found.r2.loc["pace", "start"] < 0.3 and found.r2.loc["noise"].max() < 0.3
    assert found.r2.loc["clock", "the clip table"] > 0.95 > found.r2.loc["where", "the clip table"] + 0.5
    assert found.name == f"{tmp_path.name}_labels" and found.n_groups == n


def test_an_audit_without_anything_to_read_from_is_refused(folder, tmp_path, capsys):
    table = pd.read_csv(folder / "labels.csv")[["clip_id", "height"]]
    table.to_csv(tmp_path / "one.csv", index=False)
    given = ["audit", "--feature-root", str(folder / "artifacts/features/mine"), "--targets", str(tmp_path / "one.csv")]
    given += ["--variables", "height:scalar", "--results-dir", str(tmp_path)]
    assert run_script(step3_probe.make_parser(), step3_probe.main, given) == 2
    said = capsys.readouterr().err
    assert "nothing is known of these clips beside height" in said and said.count("\n") == 1


# ---------------------------------------------------------------- statements


def test_the_built_in_statements_are_the_example():
    assert read_statements(REPOSITORY / "docs" / "statements.csv") == STATEMENTS
    assert {check for check in CHECKS if f"| `{check}` |" in PAGE} == set(CHECKS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing: give a CSV with variable, claim, check"),
        ("", "cannot be read"),
        ("variable,claim\nheight,x\n", "has no column check"),
        ("variable,claim,check\n", "has no rows"),
        ("variable,claim,check\nheight,,early\n", "line 2 has no claim: fill it in"),
        ("variable,claim,check\nheight,x,erly\n", "line 2: check must be one of .* Did you mean 'early'"),
        (
            "variable,claim,check\nheight,read, somewhere,early\n",
            "Expected 3 fields in line 2.* a claim with commas in",
        ),
        ("figure,variable,claim,check\n2d,height,x,early\n", "line 2: figure must be one of"),
    ],
)
def test_statements_that_cannot_be_checked_are_told_their_mend(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.csv").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_statements(tmp_path / "s.csv")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "variable , claim, check \nheight , can be read, readable \n,,\n",
        "variable;claim;check\r\nheight;can be read;readable\r\n",
    ],
    ids=["spaces and an empty row", "semicolons"],
)
def test_statements_as_spreadsheets_write_them(tmp_path, text):
    (tmp_path / "s.csv").write_text("\ufeff" + text, newline="")
    assert read_statements(tmp_path / "s.csv") == (Statement("labels", "height", "can be read", "readable"),)


def test_a_pipe_of_statements_never_hangs(tmp_path):
    os.mkfifo(tmp_path / "s.csv")
    with pytest.raises(UserError, match="it is no file.*: save it as CSV"):
        read_statements(tmp_path / "s.csv")


def test_a_statement_about_a_variable_that_no_run_has_is_refused(folder, tmp_path, capsys):
    (tmp_path / "s.csv").write_text("variable,claim,check\nheigth,can be read,readable\n")
    given = ["--results-dir", str(folder / "results"), "--figures", "labels", "--statements", str(tmp_path / "s.csv")]
    assert run_script(plot_figures.make_parser(), plot_figures.main, given) == 2
    said = capsys.readouterr().err
    assert "has heigth, only heading, height: name one that was probed" in said and said.count("\n") == 1
