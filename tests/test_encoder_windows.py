"""Windows over longer videos: which frames each one has, read off the pixels, and what is stored of them."""

import numpy as np
import pytest
import torch
from conftest import DATA
from inputs import coded, numbers_in, write_film, write_pictures

import step2_extract
from pez.cli import run_script
from pez.encoder import frames as reading
from pez.encoder.sources import ClipDataset, Sampling, folder_source
from pez.errors import UserError
from pez.sampling import even_indices
from pez.store import FeatureStore, open_stores

N = 200
SMALL = [
    "--model",
    "custom",
    "--weights",
    DATA / "vjepa2_small_headdim64.pt",
    "--num-heads",
    1,
    "--model-resolution",
    32,
]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A film of 200 frames, 25 a second, with a keyframe every 12; and its frames as pictures."""
    root = tmp_path_factory.mktemp("films")
    write_film(root / "films" / "long.mp4", "libx264", N, options={"g": "12", "bf": "2"})
    write_film(root / "films" / "short.mp4", "libx264", 70, options={"g": "12"})
    write_pictures(root / "pictures" / "long", [f"{number:03d}.png" for number in range(N)])
    return root


def read(source) -> dict[str, list[int]]:
    """Numbers that the pixels of every clip show."""
    dataset = ClipDataset(source, source.clips["clip_id"].tolist(), "resize", "original", 128)
    return {clip: numbers_in(dataset[number]) for number, clip in enumerate(dataset.clip_ids)}


@pytest.mark.parametrize(
    ("sampling", "n_frames", "expected"),
    [
        (Sampling(), 8, [even_indices(N, 8)]),
        (Sampling(stride=3), 16, [list(range(0, 48, 3))]),
        (Sampling(rate=5), 8, [list(range(0, 40, 5))]),
        (Sampling(rate=10), 8, [[0, 2, 5, 8, 10, 12, 15, 18]]),  # 2.5 frames apart: the nearest, halves to the even
        (Sampling(window=64), 64, [list(range(start, start + 64)) for start in (0, 64, 128)]),
        (Sampling(window=64, window_stride=50), 16, [[s + i for i in even_indices(64, 16)] for s in (0, 50, 100)]),
        (Sampling(stride=4, window=16, window_stride=8), 16, [list(range(s, s + 64, 4)) for s in range(0, 129, 32)]),
        (Sampling(rate=5, window=16), 8, [[5 * (s + i) for i in even_indices(16, 8)] for s in (0, 16)]),
    ],
)
def test_every_clip_has_the_frames_that_its_row_says(sampling, n_frames, expected, films):
    source = folder_source(films / "films", n_frames, sampling=sampling, skip_unreadable=True)
    shown = {clip: numbers for clip, numbers in read(source).items() if clip.startswith("long")}
    assert list(shown.values()) == expected
    rows = source.clips[source.clips["clip_id"].isin(shown)]
    assert [list(map(int, text.split())) for text in rows["frame_indices"]] == expected
    times = [[float(time) for time in text.split()] for text in rows["frame_times_s"]]
    assert np.allclose(times, np.array(expected) / 25, atol=1e-4)
    if sampling.window is not None:
        assert rows["clip_id"].tolist() == [f"long@{number:05d}" for number in range(len(expected))]
        assert np.allclose(rows["window_start_s"], [taken[0] / 25 for taken in expected])
        assert np.allclose(rows["window_end_s"], [taken[-1] / 25 for taken in expected])
    if sampling.rate is None:
        pictures = folder_source(films / "pictures", n_frames, sampling=sampling)
        assert list(read(pictures).values()) == expected


def test_a_varying_rate_is_sampled_by_time(tmp_path):
    times = np.concatenate([np.arange(0, 2000, 20), np.arange(2000, 6000, 200)])  # 100 frames at 50 a second, 20 at 5
    write_film(tmp_path / "v.mkv", n_frames=len(times), times_ms=times.tolist())
    ((_, shown),) = read(folder_source(tmp_path, 6, sampling=Sampling(rate=1))).items()
    assert shown == [0, 50, 100, 105, 110, 115]
    windows = read(folder_source(tmp_path, 4, sampling=Sampling(window=40)))
    assert windows["v@00000"] == [0, 13, 26, 39]
    last = times[80:120]
    assert windows["v@00002"] == [
        80 + int(np.abs(last - moment).argmin()) for moment in np.linspace(last[0], last[-1], 4)
    ]


def test_a_window_decodes_no_more_than_from_the_keyframe_before_it(films, monkeypatch):
    source = folder_source(films / "films", 8, sampling=Sampling(window=8), skip_unreadable=True)
    n_decoded, decoded = [0], reading._decoded

    def counting(*arguments):
        for frame in decoded(*arguments):
            n_decoded[0] += 1
            yield frame

    monkeypatch.setattr(reading, "_decoded", counting)
    clips = [clip for clip in source.clips["clip_id"] if clip.startswith("long")]
    dataset = ClipDataset(source, clips, "resize", "original", 128)
    assert numbers_in(dataset[20]) == list(range(160, 168))
    n_decoded[0] = 0
    for number in (0, 5, 12, 24):
        assert numbers_in(dataset[number]) == list(range(8 * number, 8 * number + 8))
    assert n_decoded[0] <= 4 * (8 + 12 + 3)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(rate=5, stride=2), "--frame-rate and --frame-stride both say"),
        (Sampling(rate=0), "--frame-rate must be more than 0; got 0"),
        (Sampling(rate=float("nan")), "--frame-rate must be more than 0"),
        (Sampling(stride=-1), "--frame-stride must be more than 0"),
        (Sampling(window=4), "--window 4 has not --num-frames 8 in it"),
        (Sampling(window_stride=4), "--window-stride is for --window"),
        (Sampling(window=8, window_stride=0), "--window-stride is for --window, and at least 1"),
        (Sampling(stride=40), "short.mp4 has 2 frames of those that are read, 8 are wanted|has 5 frames of those"),
        (Sampling(rate=60), "--frame-rate 60 is above the 25 a second of"),
    ],
)
def test_what_has_no_meaning_is_one_line(sampling, said, films):
    with pytest.raises(UserError, match=said):
        folder_source(films / "films", 8, sampling=sampling)


def test_pictures_have_no_rate(films):
    with pytest.raises(UserError, match="does not say when its frames were taken: give --frame-stride"):
        folder_source(films / "pictures", 8, sampling=Sampling(rate=5))


def run(*arguments) -> int:
    return run_script(step2_extract.make_parser(), step2_extract.main, list(map(str, arguments)))


def test_windows_are_rows_or_are_made_one(films, tmp_path, capsys):
    model = [*SMALL, "--workers", 0]
    cut = ["--clips", films / "films", "--num-frames", 8, "--window", 32, "--window-stride", 16]
    poolings = ["--pooling", "mean", "temporal_last_patch", "--store-dtype", "float32"]
    assert run(*model, *cut, *poolings, "--output-root", tmp_path / "none") == 0
    windows = open_stores(tmp_path / "none")["films"]
    assert windows.settings["clip_set"]["settings"]["window_stride"] == 16
    assert (windows.clips["video"] == "long").sum() == 11 and (windows.clips["video"] == "short").sum() == 3
    for pooling, reduce in {
        "mean": lambda those: those.mean(0),
        "max": lambda those: those.max(0).values,
        "last": lambda those: those[-1],
    }.items():
        root = tmp_path / pooling
        arguments = [*model, *cut, *poolings, "--window-pooling", pooling, "--output-root", root]
        assert run(*arguments) == 0
        store = open_stores(root)["films"]
        assert list(open_stores(root)) == ["films"] and store.clips["clip_id"].tolist() == ["long", "short"]
        assert store.clips["n_windows"].tolist() == [11, 3] and store.settings["window_pooling"] == pooling
        assert np.allclose(store.clips["video_end_s"], [191 / 25, 63 / 25])
        for layer, name in ((0, "mean"), (2, "temporal_last_patch")):
            each = windows.layer("resid_post", name, layer)
            for row, video in enumerate(("long", "short")):
                those = each[torch.tensor((windows.clips["video"] == video).tolist())]
                torch.testing.assert_close(
                    store.layer("resid_post", name, layer)[row], reduce(those), rtol=1e-6, atol=1e-6
                )
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")}
        assert run(*arguments) == 0
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")} == before
    capsys.readouterr()
    assert run(*model, *cut[:-2], *poolings, "--output-root", tmp_path / "none") == 2
    assert "clip_set.settings.window_stride = 16, now asked for 32" in capsys.readouterr().err
    assert run(*model, *cut[:4], "--window-pooling", "mean", "--output-root", tmp_path / "x") == 2
    assert "--window-pooling is for --window" in capsys.readouterr().err


def test_an_edited_film_is_pooled_again(tmp_path):
    films = tmp_path / "films"
    write_film(films / "a.mkv", "ffv1", 40)
    write_film(films / "b.mkv", "ffv1", 40)
    arguments = [*SMALL, "--workers", 0, "--clips", films]
    arguments += ["--num-frames", 8, "--window", 20, "--window-pooling", "mean", "--pooling", "mean"]
    arguments += ["--output-root", tmp_path / "out"]
    assert run(*arguments) == 0
    first = FeatureStore.open(tmp_path / "out" / "films").layer("resid_post", "mean", 2)
    size = (films / "b.mkv").stat().st_size
    write_film(films / "b.mkv", "ffv1", pictures=[coded(number ^ 1) for number in range(40)])
    if (films / "b.mkv").stat().st_size != size:  # another fingerprint of the set
        arguments.append("--overwrite")
    assert run(*arguments) == 0
    second = FeatureStore.open(tmp_path / "out" / "films").layer("resid_post", "mean", 2)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
