"""Labels of one's own: every kind read and scored rightly, planted in a store; and what is refused, with its mend."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from probe_stores import settings_of
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from pez.errors import UserError
from pez.probes.data.labels import read_labels
from pez.probes.options import BallOptions
from pez.probes.predictions import from_table
from pez.probes.runs import plan, probe_curves
from pez.probes.scores.score import Scored
from pez.store import FeatureStore, tensor_name

N, WIDTH = 60, 10
pytestmark = pytest.mark.usefixtures("one_thread")


def truth(seed=0) -> pd.DataFrame:
    """Thirty scenes of two clips; every quantity of a scene is its own."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(N // 2), 2)
    return pd.DataFrame(
        {
            "clip_id": [f"clip_{n:02d}" for n in range(N)],
            "scene": [f"scene {n}" for n in scene],
            "height": rng.normal(size=N),
            "heading": rng.uniform(-180, 180, size=N),
            "push_x": rng.normal(size=N),
            "push_y": rng.normal(size=N),
            "material": np.array(["foam", "steel", "wood"])[rng.integers(3, size=N)],
            "won": np.tile([True, False], N // 2),
        }
    )


def planted(root, table: pd.DataFrame, noise=0.2):
    """A store of folder clips whose features hold everything that `truth` says, at layer 1; noise at layer 0."""
    rng = np.random.default_rng(1)
    angle = np.deg2rad(table["heading"])
    classes = pd.get_dummies(table["material"]).to_numpy(dtype=float)
    held = np.column_stack(
        [table["height"], np.cos(angle), np.sin(angle), table["push_x"], table["push_y"], classes, table["won"]]
    )
    settings = {**settings_of("mine", 2, WIDTH, "mean", 0, "tiny", "x", 64, "print"), "captures": ["resid_post"]}
    store = FeatureStore.plan(root / "mine", settings, table[["clip_id"]].assign(n_frames=16), None)
    order = table.set_index("clip_id").index.get_indexer(store.clips["clip_id"])
    mixed = held @ rng.normal(size=(held.shape[1], WIDTH)) + noise * rng.normal(size=(N, WIDTH))
    features = {1: rng.normal(size=(N, WIDTH)), 2: mixed[order]}
    tensors = {tensor_name("mean", s): torch.tensor(v, dtype=torch.float32) for s, v in features.items()}
    store.write_shard(0, tensors)
    return root


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    root, table = tmp_path_factory.mktemp("mine"), truth()
    planted(root / "features", table)
    table.sample(frac=1, random_state=0).to_csv(root / "labels.csv", index=False)
    return root


def asked(mine, *variables, **changes) -> BallOptions:
    given = {"run_name": "t", "feature_root": mine / "features", "targets": mine / "labels.csv", "group": "scene"}
    return BallOptions(**{**given, "variables": variables, "bootstrap": 100, "threads": 1, **changes})


def test_numbers_angles_and_vectors_are_read_where_they_are_planted(mine):
    options = asked(mine, "height:scalar", "heading:angle_deg", "push:vector", control=("shuffled_labels",))
    tables = probe_curves(options)
    score = tables.results.pivot_table(index="variable", columns="layer", values="r2_nested_pooled")
    assert (score[1] > 0.6).all() and (score[0] < 0.2).all()
    heading = tables.results[tables.results["variable"] == "heading"].set_index("layer")
    assert heading.loc[1, "mae_nested_deg"] < 25 < heading.loc[0, "mae_nested_deg"]
    assert (tables.controls["r2_pooled"] < 0.3).all() and set(tables.results["grouping"]) == {"scene"}
    assert set(tables.results["probe_set"]) == {"labels"} and (tables.results["n_groups"] == N // 2).all()
    (curve,) = plan(options)
    table = truth().set_index("clip_id").loc[curve.data.clips["clip_id"]]
    np.testing.assert_allclose(curve.data.variables[0].targets[:, 0], table["height"])
    np.testing.assert_allclose(curve.data.variables[1].targets[:, 0], np.cos(np.deg2rad(table["heading"])))
    np.testing.assert_allclose(curve.data.variables[2].targets, table[["push_x", "push_y"]])


def test_classes_score_as_scikit_learn_has_it(mine):
    tables = probe_curves(asked(mine, "material:class", control=("shuffled_labels",)))
    row = tables.results.set_index("layer")
    assert row.loc[1, "accuracy_nested_pooled"] > 0.8 and row.loc[0, "accuracy_nested_pooled"] < 0.6
    assert row.loc[1, "auc_nested_pooled_low"] > 0.7
    rows = tables.predictions.query("protocol == 'nested' and layer == 1 and control == ''")
    wide = rows.pivot_table(index="clip_id", columns="component", values="prediction")
    label = truth().set_index("clip_id").loc[wide.index, "material"]
    named = wide.columns.to_numpy()[wide.to_numpy().argmax(1)]
    assert row.loc[1, "accuracy_nested_pooled"] == pytest.approx(accuracy_score(label, named))
    assert row.loc[1, "balanced_accuracy_nested_pooled"] == pytest.approx(balanced_accuracy_score(label, named))
    one_rest = [roc_auc_score(label == name, wide[name]) for name in wide]
    assert row.loc[1, "auc_nested_pooled"] == pytest.approx(np.mean(one_rest))
    (again,) = from_table(rows)
    scored = Scored(again, 100)
    assert again.variable.kind == "class"
    assert scored.curve("balanced_accuracy").estimate[0] == pytest.approx(balanced_accuracy_score(label, named))
    assert tables.controls["auc_pooled"].max() < 0.8


def test_pairs_are_set_against_each_other_inside_their_group(mine):
    tables = probe_curves(asked(mine, "won:pair", control=("shuffled_labels",), control_seeds=5))
    row = tables.results.set_index("layer")
    rows = tables.predictions.query("protocol == 'nested' and layer == 1 and control == ''")
    both = rows.merge(truth()[["clip_id", "scene", "won"]], on="clip_id").pivot_table(
        index="scene", columns="won", values="prediction"
    )
    assert row.loc[1, "pairwise_accuracy_nested_pooled"] == pytest.approx((both[True] > both[False]).mean())
    assert row.loc[1, "pairwise_accuracy_nested_pooled"] > 0.9
    shuffled = tables.predictions.query("control == 'shuffled_labels' and layer == 1")
    assert (shuffled.groupby(["control_seed", "group"])["target"].sum() == 1).all()  # one of each pair, still
    changed = shuffled.merge(rows[["clip_id", "target"]], on="clip_id").query("target_x != target_y")
    assert 0.3 < len(changed) / len(shuffled) < 0.7
    assert tables.controls["pairwise_accuracy_pooled"].between(0.2, 0.8).all()
    assert tables.controls.groupby("layer")["selectivity_low"].mean()[1] > 0


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_every_format_says_the_same(tmp_path, suffix):
    table = truth()
    path = tmp_path / f"labels.{suffix}"
    if suffix == "parquet":
        table.to_parquet(path)
    elif suffix == "jsonl":
        path.write_text(table.to_json(orient="records", lines=True, double_precision=15))
    else:
        table.to_csv(path, sep="\t" if suffix == "tsv" else ",", index=False)
    labels = read_labels(path, ["height:scalar", "push:vector"], table[["clip_id"]][::-1], "mine", "scene")
    np.testing.assert_allclose(labels.variables[0].targets[:, 0], table["height"][::-1], rtol=1e-9)
    assert labels.group.tolist() == table["scene"][::-1].tolist()


def test_a_manifest_of_scenes_with_metadata(tmp_path):
    lines = []
    for number in range(6):
        scene = f"scene_{number:04d}"
        folder = tmp_path / "videos" / scene
        folder.mkdir(parents=True)
        metadata = {"physics": {"mass": number / 2, "push": [number, -number]}, "split": "a" if number < 3 else "b"}
        (folder / "metadata.json").write_text(json.dumps(metadata))
        lines.append(json.dumps({"video": f"videos/{scene}/video.mp4"}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    clips = pd.DataFrame({"clip_id": [f"scene_{n:04d}" for n in (5, 0, 3, 1, 2, 4)]})
    labels = read_labels(
        tmp_path / "manifest.jsonl", ["physics.mass:scalar", "physics.push:vector"], clips, "videos", "split"
    )
    assert labels.variables[0].targets[:, 0].tolist() == [2.5, 0, 1.5, 0.5, 1, 2]
    assert labels.variables[1].targets[0].tolist() == [5, -5] and labels.group.tolist() == list("babaab")


@pytest.mark.parametrize(
    "line",
    [
        lambda scene: {"clip_id": scene},
        lambda scene: {"scene_id": scene},
        lambda scene: {"id": int(scene[-4:]), "video_path": f"videos/{scene}/video.mp4"},
        lambda scene: {"scene": "kitchen", "video": f"videos\\{scene}\\video.mp4"},
        lambda scene: {"clip_id": scene, "video": f"./videos/{scene}/film.mkv"},
    ],
    ids=["clip_id", "scene_id", "a number and a video", "another scene and a video", "clip_id and a film"],
)
def test_lines_of_a_manifest_find_their_scene(tmp_path, line):
    scenes = [f"scene_{number:04d}" for number in range(4)]
    for number, scene in enumerate(scenes):
        (tmp_path / "videos" / scene).mkdir(parents=True)
        metadata = json.dumps({"physics": {"mass": number / 2}, "clip_id": "another"})
        (tmp_path / "videos" / scene / "metadata.json").write_text("\ufeff" + metadata)
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(line(scene)) for scene in scenes))
    labels = read_labels(path, ["physics.mass:scalar"], pd.DataFrame({"clip_id": scenes}), "v")
    assert labels.variables[0].targets[:, 0].tolist() == [0, 0.5, 1, 1.5]
    (tmp_path / "videos" / scenes[1] / "metadata.json").write_text("{oops")
    with pytest.raises(UserError, match=r"scene_0001/metadata.json cannot be read .*: write one JSON object a scene"):
        read_labels(path, ["physics.mass:scalar"], pd.DataFrame({"clip_id": scenes}), "v")


def test_without_a_group_clips_of_equal_labels_stay_together(tmp_path):
    table = truth().assign(step=np.arange(N) % 7)
    table.to_csv(tmp_path / "l.csv", index=False)
    labels = read_labels(tmp_path / "l.csv", ["step:scalar"], table[["clip_id"]], "mine")
    assert len(set(labels.group)) == 7 and len(set(zip(labels.group, table["step"]))) == 7
    assert "no --group" in labels.notes[0] and "7 groups of 60 clips" in labels.notes[0]


def test_missing_labels_are_said_and_left_out_only_when_asked(mine, tmp_path):
    table = truth()
    table.loc[3, "height"] = np.nan
    extra = pd.concat([table.iloc[:-2], pd.DataFrame({"clip_id": ["stranger"], "height": [1.0], "scene": ["x"]})])
    extra.to_csv(tmp_path / "some.csv", index=False)
    options = asked(mine, "height:scalar", targets=tmp_path / "some.csv")
    with pytest.raises(
        UserError, match=r"3 of 60 clips have no label, first clip_\d\d; 1 of 59 labels.*first stranger"
    ):
        plan(options)
    (curve,) = plan(asked(mine, "height:scalar", targets=tmp_path / "some.csv", skip_unlabelled=True))
    assert len(curve.data.clips) == 57 and "clip_03" not in set(curve.data.clips["clip_id"])
    assert curve.data.features(1).shape == (57, WIDTH)
    (whole,) = plan(asked(mine, "height:scalar"))
    rows = whole.data.clips["clip_id"].isin(curve.data.clips["clip_id"]).to_numpy()
    torch.testing.assert_close(curve.data.features(1), whole.data.features(1)[torch.from_numpy(np.flatnonzero(rows))])


@pytest.mark.parametrize(
    ("variables", "change", "message"),
    [
        (["height"], {}, "write NAME:kind"),
        (["height:scaler"], {}, "kind must be one of .* Did you mean 'scalar'"),
        (["weight:scalar"], {}, "--variables weight: .* has no such column"),
        (["material:scalar"], {}, "give finite numbers, or name:class"),
        (["push:pair"], {}, "no such column"),
        (["material:pair"], {}, "give true or false"),
        (["height:class"], {"height": 1.0}, "has 1 classes"),
        (["heights:vector"], {}, "neither heights_x, heights_y"),
        (["won:pair"], {"won": True}, "no true and false won"),
        ([], {}, "needs --variables NAME:kind"),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(tmp_path, variables, change, message):
    table = truth().assign(**change)
    table.to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "l.csv", variables, table[["clip_id"]], "mine", "scene")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "is missing"),
        ("l.xlsx", b"x", ".xlsx is not known"),
        ("l.jsonl", b"{not json", "cannot be read"),
        ("l.jsonl", b"[1, 2]\n", "instead of an object"),
        ("l.parquet", b"PAR1", "cannot be read"),
        ("l.csv", b"\xff\xfe\x00\x01", "cannot be read"),
        ("l.csv", b"name,height\na,1\n", "has no column clip_id"),
        ("l.csv", b"clip_id,height\na,1\na,2\n", "has a more than once"),
        ("l.csv", b"clip_id,height\nz,1\n", "no label fits"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / name, ["height:scalar"], pd.DataFrame({"clip_id": ["a"]}), "mine")


PLAIN = [(f"c{n}", n * 1.5, f"s{n // 2}") for n in range(8)]


def as_csv(rows, head="clip_id,h,g", separator=","):
    return "\n".join(separator.join(map(str, row)) for row in [head.split(","), *rows]) + "\n"


def read_odd(path, content, *variables, group="g", skip=False):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    clips = pd.DataFrame({"clip_id": [f"c{n}" for n in range(8)]})
    return read_labels(path, variables, clips, "mine", group, skip)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + as_csv(PLAIN).encode(),
        as_csv(PLAIN).replace("\n", "\r\n"),
        as_csv(PLAIN, separator=";"),
        as_csv([(clip, str(h).replace(".", ","), g) for clip, h, g in PLAIN], separator=";"),
        as_csv(PLAIN, separator="\t"),
        as_csv(PLAIN, head="clip_id , h, g "),
        as_csv([(f" {clip} ", f"{h} ", f" {g}" if n % 2 else g) for n, (clip, h, g) in enumerate(PLAIN)]),
        as_csv([*PLAIN, ("", " ", "")]),
        as_csv([(*row, "") for row in PLAIN], head="clip_id,h,g,"),
    ],
    ids=["BOM", "CRLF", "semicolons", "decimal commas", "tabs", "spaces in names", "spaces", "an empty row", "commas"],
)
def test_tables_as_spreadsheets_write_them_say_the_same(tmp_path, content):
    labels = read_odd(tmp_path / "l.csv", content, "h:scalar")
    assert labels.variables[0].targets[:, 0].tolist() == [h for _, h, _ in PLAIN]
    assert labels.group.tolist() == [g for *_, g in PLAIN] and not labels.notes


def test_words_for_what_is_missing(tmp_path):
    """None is a class, of numbers a missing one; classes are called as they are written."""
    words = ["None", "steel", "None", "steel", "NA", "steel", "", "None"]
    rows = [(clip, word, g) for (clip, _, g), word in zip(PLAIN, words)]
    labels = read_odd(tmp_path / "l.csv", as_csv(rows), "h:class", skip=True)
    assert labels.variables[0].components == ("None", "steel") and len(labels.rows) == 6
    numbers = [(clip, "None" if n == 3 else h, g) for n, (clip, h, g) in enumerate(PLAIN)]
    assert 3 not in read_odd(tmp_path / "l.csv", as_csv(numbers), "h:scalar", skip=True).rows
    objects = [{"clip_id": clip, "h": n % 2 if n else None, "g": g} for n, (clip, _, g) in enumerate(PLAIN)]
    path = tmp_path / "l.json"
    labels = read_odd(path, json.dumps(objects), "h:class", skip=True)  # a list of objects
    assert labels.variables[0].components == ("0", "1") and len(labels.rows) == 7
    pd.DataFrame(PLAIN, columns=["clip_id", "h", "g"]).set_index("clip_id").to_parquet(tmp_path / "l.parquet")
    content = (tmp_path / "l.parquet").read_bytes()
    assert read_odd(tmp_path / "l.parquet", content, "h:scalar").variables[0].targets[3, 0] == 4.5


def test_lists_in_a_csv_are_vectors(tmp_path):
    rows = [(clip, f'"[{h}, {-h}]"', g) for clip, h, g in PLAIN]
    labels = read_odd(tmp_path / "l.csv", as_csv(rows), "h:vector")
    assert labels.variables[0].targets.tolist() == [[h, -h] for _, h, _ in PLAIN]


def test_clips_without_their_mate_are_left_out_with_those_without_a_label(tmp_path):
    rows = [(clip, ("true", "F")[n % 2] if n else "", g) for n, (clip, _, g) in enumerate(PLAIN)]
    labels = read_odd(tmp_path / "l.csv", as_csv(rows), "h:pair", skip=True)
    assert labels.rows.tolist() == [2, 3, 4, 5, 6, 7] and labels.variables[0].targets[:, 0].tolist() == [1, 0] * 3
    assert "1 of 7 clips without a mate, of group s0" in labels.notes[1]


def test_what_a_label_lets_expect_is_said(tmp_path):
    far = [(clip, h * 30, g) for clip, h, g in PLAIN]
    (note,) = read_odd(tmp_path / "l.csv", as_csv(far), "h:angle_rad").notes
    assert "h is up to 315, in radians" in note and not read_odd(tmp_path / "l.csv", as_csv(far), "h:angle_deg").notes
    near = [(clip, h / 5, g) for clip, h, g in PLAIN]
    assert "say h:angle_rad" in read_odd(tmp_path / "l.csv", as_csv(near), "h:angle_deg").notes[0]
    rare = [(clip, "x" if n else "rare", g) for n, (clip, _, g) in enumerate(PLAIN)]
    (note,) = read_odd(tmp_path / "l.csv", as_csv(rare), "h:class").notes
    assert "1 of 2 classes are in one group of clips only, first rare" in note


def changed(column, value, row=0):
    rows = [list(each) for each in PLAIN]
    rows[row][column] = value
    return as_csv(rows)


@pytest.mark.parametrize(
    ("content", "variables", "message"),
    [
        (changed(1, "inf"), ["h:scalar"], "h of clip c0 is inf: give finite numbers"),
        (changed(1, "tall", 5), ["h:scalar"], "h of clip c5 is tall: give finite numbers"),
        (changed(1, "1e300", 2), ["h:scalar"], "h of clip c2 is too large: change its unit"),
        (changed(1, "nan"), ["h:scalar"], "1 of 8 clips have no label, first c0: complete it"),
        (changed(0, "C3", 3), ["h:scalar"], r"first C3 \(a clip is called c3\): complete it"),
        (changed(0, "videos/c3.mp4", 3), ["h:scalar"], r"first videos/c3.mp4 \(a clip is called c3\)"),
        (changed(0, ""), ["h:scalar"], "has 1 rows without a clip_id: fill it in"),
        (as_csv([*PLAIN, ("c0 ", 1, "s0")]), ["h:scalar"], "has c0 more than once"),
        (as_csv([(clip, 3, g) for clip, _, g in PLAIN]), ["h:scalar"], "h is the same in every clip"),
        (as_csv([(clip, 90, g) for clip, _, g in PLAIN]), ["h:angle_deg"], "h is the same in every clip"),
        (as_csv([(clip, n, n, n) for n, (clip, *_) in enumerate(PLAIN)], "clip_id,h,h,g"), ["h:scalar"], "columns h"),
        (as_csv(PLAIN), ["h:scalar", "h:angle_deg"], "--variables h is named twice"),
        (as_csv(PLAIN), ["clip_id:class"], "every class of clip_id is in one group of clips only"),
        (as_csv(PLAIN) + "c9,1,s,5\n", ["h:scalar"], r"Expected 3 fields in line 10, saw 4\): mend it"),
        (changed(1, "True"), ["h:pair"], "h of clip c1 is 1.5: give true or false"),
    ],
)
def test_odd_cells_are_named_with_their_clip(tmp_path, content, variables, message):
    with pytest.raises(UserError, match=message) as error:
        read_odd(tmp_path / "l.csv", content, *variables)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        ([True, False] * 4, "scalar", "h of clip c0 is True"),
        ([[1, 2]] * 7 + [3], "vector", "no column of lists of one length"),
        ([[1, 2]] * 7 + [[1, "a"]], "vector", "h_1 of clip c7 is a"),
        ([[1, 2]] * 8, "scalar", r"h of clip c0 is \[1, 2\]"),
    ],
)
def test_odd_values_of_json_are_named(tmp_path, cells, kind, message):
    rows = [{"clip_id": clip, "h": cell, "g": g} for (clip, _, g), cell in zip(PLAIN, cells)]
    with pytest.raises(UserError, match=message):
        read_odd(tmp_path / "l.jsonl", "\n".join(map(json.dumps, rows)), f"h:{kind}")
    with pytest.raises(UserError, match="line 2: .*write one JSON object a line"):
        read_odd(tmp_path / "l.jsonl", json.dumps(rows[0]) + "\n{oops", f"h:{kind}")


def test_pairs_need_a_group(tmp_path):
    with pytest.raises(UserError, match="NAME:pair needs --group"):
        read_odd(tmp_path / "l.csv", as_csv(PLAIN), "h:pair", group=None)


def test_kinds_of_unlike_loss_do_not_share_a_run(mine):
    with pytest.raises(UserError, match="in a run of their own"):
        plan(asked(mine, "height:scalar", "material:class"))
    with pytest.raises(UserError, match="--solver trainable for classes"):
        plan(asked(mine, "material:class", solver="ridge"))
    with pytest.raises(UserError, match="--probe-set of the ball sets, or --targets"):
        plan(asked(mine, "height:scalar", probe_set="fig2c"))
