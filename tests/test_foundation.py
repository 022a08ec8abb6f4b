"""Atomic files, locks, one-line errors, the feature store's planning, constants."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from pez.cli import Parser, run_script, script_arguments
from pez.errors import UserError, check_choice
from pez.files import atomic_path, exclusive, fingerprint, read_json, remove_partial, write_json, write_text
from pez.store import FeatureStore, open_stores, state_index, states_of, tensor_name


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path):
    path = write_text(tmp_path / "a" / "table.csv", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["table.csv"]


def test_atomic_path_replaces_folders_whole(tmp_path):
    for content in ("first", "second"):
        with atomic_path(tmp_path / "clip") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert os.listdir(tmp_path / "clip") == ["second"]
    assert os.listdir(tmp_path) == ["clip"]


def test_remove_partial_clears_what_a_killed_run_left(tmp_path):
    (tmp_path / ".partial-abc").mkdir()
    (tmp_path / ".partial-abc" / "shard").write_text("half")
    (tmp_path / "shard_0").write_text("whole")
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["shard_0"]


def test_exclusive_refuses_a_second_holder_and_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pez.files import exclusive\n"
        "with exclusive(sys.argv[2]):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(REPOSITORY), str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"being written by process {holder.pid}"), exclusive(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with exclusive(tmp_path):
        pass


def test_fingerprint_sees_values_not_order():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1, "b": [2, 3]}) != fingerprint({"a": 1, "b": [3, 2]})


def test_damaged_json_names_the_file(tmp_path):
    write_text(tmp_path / "features.json", '{"settings": ')
    with pytest.raises(UserError, match="features.json is not readable JSON"):
        read_json(tmp_path / "features.json")


def test_check_choice_offers_the_nearest():
    assert check_choice("--pooling", "mean", ["mean", "all"]) == "mean"
    with pytest.raises(UserError, match="one of zscore, center, none; got 'zscroe'. Did you mean 'zscore'"):
        check_choice("--norm-mode", "zscroe", ["zscore", "center", "none"])


def example_parser() -> Parser:
    parser = Parser(prog="step")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--backend", choices=["auto", "kubric"], default="auto")
    return parser


def test_arguments_after_a_bare_double_dash():
    assert script_arguments(["--background", "--python", "x.py", "--", "--workers", "3"]) == ["--workers", "3"]
    assert script_arguments(["--workers", "3"]) == ["--workers", "3"]
    seen = []
    assert run_script(example_parser(), lambda args: seen.append(args.workers), ["--", "--workers", "3"]) == 0
    assert seen == [3]


@pytest.mark.parametrize("arguments", [["--workers", "many"], ["--backend", "kubrik"], ["--workrs", "3"]])
def test_bad_arguments_exit_2_with_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        code = run_script(example_parser(), lambda args: None, arguments)
        raise SystemExit(code)
    captured = capsys.readouterr().err
    assert left.value.code == 2
    assert captured.startswith("error: ") and captured.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("first\n  second"), "error: first second\n"),
        (OSError(28, "No space left on device", "shard_1"), "error: no space left while writing shard_1: "),
        (PermissionError(13, "Permission denied", "results"), "error: no permission for results: "),
        (FileExistsError(17, "File exists", "out"), "error: out: File exists: choose another folder or name\n"),
        (NotADirectoryError(20, "Not a directory", "out/a"), "error: out/a: Not a directory: choose another folder"),
        (OSError(36, "File name too long", "xx"), "error: xx: File name too long: choose another folder or name\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, line, capsys):
    def fail(_args):
        raise error

    assert run_script(example_parser(), fail, []) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(line) and captured.count("\n") == 1
    assert run_script(example_parser(), fail, ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("defect", [ZeroDivisionError(), OSError("no file named"), ValueError("of what?")])
def test_a_defect_keeps_its_traceback(defect):
    def fail(_args):
        raise defect

    with pytest.raises(type(defect)):
        run_script(example_parser(), fail, [])


def test_sigterm_unwinds_like_ctrl_c(tmp_path):
    code = (
        "import sys, tempfile, time; sys.path.insert(0, sys.argv[1])\n"
        "from pez.cli import Parser, run_script\n"
        "def main(args):\n"
        "    with tempfile.TemporaryDirectory(dir=sys.argv[2]):\n"
        "        print('working', flush=True); time.sleep(60)\n"
        "sys.exit(run_script(Parser(), main, []))"
    )
    command = [sys.executable, "-c", code, str(REPOSITORY), str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "working\n" and os.listdir(tmp_path)
    running.terminate()
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 143 and errors.startswith("interrupted: ") and errors.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_captures_are_views_of_the_same_states():
    assert states_of(["resid_pre"], 3) == [0, 1, 2]
    assert states_of(["resid_post"], 3) == [1, 2, 3]
    assert states_of(["resid_post", "resid_pre"], 3) == [0, 1, 2, 3]
    assert state_index("resid_pre", 2) == 2 and state_index("resid_post", 2) == 3
    with pytest.raises(UserError, match="Did you mean 'resid_post'"):
        states_of(["resid_pots"], 3)


def planned(directory, **changes) -> FeatureStore:
    settings = {"model": "tiny", "weights_label": "none", "transform": "resize", "captures": ["resid_post"]}
    settings |= {"poolings": ["mean"], "depth": 2, "width": 4, "shard_clips": 2, **changes}
    return FeatureStore.plan(directory, settings, pd.DataFrame({"clip_id": ["c", "a", "b"]}), None)


def test_store_plans_rows_by_clip_id_and_reads_them_back(tmp_path):
    store = planned(tmp_path / "velocity")
    assert store.clips["clip_id"].tolist() == ["a", "b", "c"]
    assert store.missing_shards() == [0, 1]
    for shard in (1, 0):
        n = len(store.clips_of(shard))
        rows = torch.arange(2 * shard, 2 * shard + n)[:, None].expand(n, 4).float()
        store.write_shard(shard, {tensor_name("mean", state): rows + 10 * state for state in (1, 2)})
    read = open_stores(tmp_path)["velocity"]
    assert read.layer("resid_post", "mean", 1)[:, 0].tolist() == [20, 21, 22]
    assert read.layer("resid_post", "mean", 0, ["c", "a"])[:, 0].tolist() == [12, 10]
    with pytest.raises(UserError, match="layer 2 is not in 0 ... 1"):
        read.layer("resid_post", "mean", 2)
    with pytest.raises(UserError, match="holds pooling mean, not all"):
        read.check("resid_post", "all")


def test_store_refuses_other_settings_by_name(tmp_path):
    planned(tmp_path)
    planned(tmp_path)
    with pytest.raises(UserError, match=r"width = 4, now asked for 5"):
        planned(tmp_path, width=5)


def test_open_stores_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no features under"):
        open_stores(tmp_path)


def test_paths_come_from_the_environment_and_relative_ones_from_the_repository(tmp_path):
    code = "import constants; print(constants.CHECKPOINT_DIR); print(constants.RESULTS_DIR); print(constants.DATA_DIR)"
    environment = {**os.environ, "PEZ_CHECKPOINT_DIR": str(tmp_path), "PEZ_ARTIFACTS_DIR": "elsewhere"}
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [
        str(tmp_path),
        str(REPOSITORY / "elsewhere" / "results"),
        str(REPOSITORY / "elsewhere" / "data"),
    ]


def test_constants_import_only_the_standard_library():
    code = "import sys; import constants; print(sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    third_party = set(eval(run.stdout)) - set(sys.stdlib_module_names) - {"constants"}
    assert not {name for name in third_party if not name.startswith("__")}


def test_write_json_is_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize("script", ["step3_probe", "plot_figures"])
def test_who_reads_features_does_not_load_what_encodes(script):
    code = f"import sys, {script}; sys.exit('transformers' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
