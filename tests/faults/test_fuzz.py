"""Whatever a file holds, its reader answers with a value or with a UserError: never another exception, never a hang."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path[:0] = [str(Path(__file__).parents[1])]

from intphys_trees import planted_store  # noqa: E402
from test_mends import says_what_to_do  # noqa: E402

from pez import records, tables  # noqa: E402
from pez.encoder.checkpoints import read_checkpoint  # noqa: E402
from pez.errors import UserError  # noqa: E402
from pez.movies.intphys import _status  # noqa: E402
from pez.probes.data.labels import read_labels  # noqa: E402
from pez.probes.results import read_runs  # noqa: E402
from pez.store import FeatureStore  # noqa: E402

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "15")),  # `make faults` tries more
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))
KINDS = list(records.Record.__subclasses__())


def value_or_told(read):
    """What `read` gives; None where it says, in one line with what to do, that it cannot."""
    try:
        return read()
    except UserError as error:
        assert says_what_to_do(str(error)), error
        return None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@FUZZ
@given(value=VALUES)
def test_json_of_any_shape(kind, value, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    found = value_or_told(lambda: records.read_record(path, kind))
    assert found is None or isinstance(found, dict)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@FUZZ
@given(data=st.data())
def test_json_whose_fields_are_of_any_type(kind, data, tmp_path):
    names = list(kind.model_fields) or ["other"]
    value = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, VALUES)))
    if isinstance(value.get("settings"), dict):
        inner = ["model", "depth", "captures", "clip_set", "set", "shard_clips"]
        value["settings"] = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(inner, VALUES)))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    value_or_told(lambda: records.read_record(path, kind))


@FUZZ
@given(content=st.binary(max_size=200))
def test_bytes_of_any_kind(content, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(content)
    for kind in KINDS:
        value_or_told(lambda kind=kind: records.read_record(path, kind))
    for schema in (tables.STORE_CLIPS, tables.FRAMES, tables.PIECE):
        value_or_told(lambda schema=schema: tables.read_parquet(path, schema))
    value_or_told(lambda: tables.read_csv(path, "rerun it"))
    possible, wrong = _status(path)
    assert isinstance(possible, bool) or wrong


COLUMN = st.one_of(
    st.lists(st.integers(-5, 5), min_size=3, max_size=3),
    st.lists(st.floats(), min_size=3, max_size=3),
    st.lists(st.text(max_size=3) | st.none(), min_size=3, max_size=3),
    st.lists(st.booleans() | st.none(), min_size=3, max_size=3),
    st.just([["a"], ["b"], []]),
    st.just(list(pd.to_datetime(["2020-01-01"] * 3))),
)
SCHEMAS = [value for value in vars(tables).values() if isinstance(value, tables.Schema)]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
@FUZZ
@given(data=st.data())
def test_tables_of_any_columns(number, data, tmp_path):
    schema = SCHEMAS[number]
    names = [*schema.required, *schema.optional, "more"]
    frame = pd.DataFrame(data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, COLUMN))))
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    found = value_or_told(lambda: tables.read_parquet(path, schema))
    if found is not None and len(found):
        assert set(schema.required) <= set(found.columns)
        assert not found[list(schema.required)].select_dtypes(exclude="float").isna().any().any()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small store, and its files by name."""
    directory = tmp_path_factory.mktemp("store") / "intphys"
    store = planted_store(directory, n_scenes=2, depth=2, width=4)
    return {path.relative_to(directory): path.read_bytes() for path in store.directory.rglob("*") if path.is_file()}


@FUZZ
@given(data=st.data())
def test_a_store_with_any_byte_changed_is_told_or_reads_the_same(made, data, tmp_path):
    name = data.draw(st.sampled_from(sorted(made)))
    content = bytearray(made[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    for each, whole in made.items():
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_bytes(bytes(content) if each == name else whole)

    def read(directory: Path) -> torch.Tensor:
        return FeatureStore.open(directory).layer("resid_pre", "mean", 1)

    found = value_or_told(lambda: read(tmp_path))
    for each, whole in made.items():
        (tmp_path / each).write_bytes(whole)
    assert found is None or torch.equal(found, read(tmp_path))


@FUZZ
@given(content=st.binary(max_size=120), suffix=st.sampled_from([".csv", ".jsonl", ".parquet", ".tsv"]))
def test_labels_of_any_bytes(content, suffix, tmp_path):
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(content)
    clips = pd.DataFrame({"clip_id": ["a", "b", "c"]})
    value_or_told(lambda: read_labels(path, ["height:scalar"], clips, "set"))


@FUZZ
@given(value=VALUES, prefix=st.sampled_from(["", '{"clip_id": "a", "height": ', '{"video": ']))
def test_labels_of_any_json(value, prefix, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(prefix + json.dumps(value) + ("}" if prefix else ""))
    clips = pd.DataFrame({"clip_id": ["a", "b", "c"]})
    value_or_told(lambda: read_labels(path, ["height:scalar"], clips, "set"))


@FUZZ
@given(value=st.recursive(LEAVES | st.just(np.float32(2)), lambda inner: st.dictionaries(st.text(max_size=5), inner)))
def test_checkpoints_of_any_entries(value, tmp_path):
    torch.save(value, tmp_path / "a.pt")
    value_or_told(lambda: read_checkpoint(tmp_path / "a.pt"))


@FUZZ
@given(text=st.text(alphabet="layer,_fractionru01.5\n\"';\x00é", max_size=80))
def test_results_of_any_text(text, tmp_path):
    (tmp_path / "results_a.csv").write_text(f"run_name,variable,layer,layer_fraction,weights\n{text}", encoding="utf-8")
    value_or_told(lambda: list(read_runs(tmp_path)))
