"""Films: which frames come out, at which times, and how they look (docs/inputs.md)."""

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from inputs import coded, numbers_in, write_film

from pez.encoder import frames
from pez.encoder.frames import look_at_film, read_frames
from pez.encoder.sources import folder_source, remark_lines
from pez.errors import UserError
from pez.sampling import even_indices

KINDS = [
    ("mp4", "libx264"),  # with B-frames: packets are not in the order of display
    ("m4v", "mpeg4"),
    ("mov", "qtrle"),
    ("avi", "mpeg4"),
    ("avi", "mjpeg"),
    ("mkv", "libx264"),
    ("mkv", "ffv1"),
    ("webm", "libvpx"),  # with packets that are never shown
    ("webm", "libvpx-vp9"),
    ("mpg", "mpeg2video"),
    ("ts", "libx264"),
    ("ts", "mpeg2video"),
    ("wmv", "wmv2"),
    ("flv", "flv1"),
    ("gif", "gif"),
    ("apng", "apng"),
    ("y4m", "rawvideo"),
    ("h264", "libx264"),  # a bare stream, without times
    ("avi", "libx264"),
    ("mkv", "mpeg4"),
    ("mpg", "mpeg1video"),
    ("vob", "mpeg2video"),
    ("m2ts", "libx264"),
    ("m2v", "mpeg2video"),
    ("f4v", "libx264"),
    ("asf", "msmpeg4"),
    ("ogv", "libvpx"),
    ("mxf", "mpeg2video"),
    ("nut", "mpeg4"),
    ("ivf", "libvpx-vp9"),
    ("mjpeg", "mjpeg"),
]


@pytest.mark.parametrize("suffix, codec", KINDS)
def test_a_constant_rate_gives_the_frames_of_even_indices(tmp_path, suffix, codec):
    hidden, both_ways = {"auto-alt-ref": "1", "lag-in-frames": "16"}, {"bf": "2"}
    options = {"libvpx": hidden, "libvpx-vp9": hidden, "mpeg4": both_ways, "mpeg2video": both_ways}.get(codec, {})
    film = write_film(tmp_path / f"film.{suffix}", codec, options=options)
    for n_frames in (16, 5, 40):
        assert numbers_in(read_frames([film], n_frames)) == even_indices(40, n_frames)
    with pytest.raises(UserError, match="has 40 frames, 41 are wanted"):
        read_frames([film], 41)


LONG = {"g": "60", "sc_threshold": "0"}


VP9 = {"g": "60", "deadline": "realtime", "cpu-used": "8"}
LONG_FILMS = [
    ("mp4", "libx264", LONG, False),
    ("mkv", "libx264", LONG, False),
    ("mkv", "libx264", LONG, True),
    ("mkv", "libx264", {**LONG, "x264-params": "open-gop=1"}, False),
    ("webm", "libvpx-vp9", VP9, True),
    ("mp4", "mpeg4", LONG, False),
    ("avi", "mpeg4", LONG, False),
    ("ts", "mpeg2video", LONG, False),
    ("mpg", "mpeg2video", LONG, False),
]


@pytest.mark.parametrize("suffix, codec, options, variable", LONG_FILMS)
def test_of_a_long_film_only_what_is_wanted_is_decoded(tmp_path, monkeypatch, suffix, codec, options, variable):
    times = np.cumsum([0] + [10] * 800 + [40] * 799) if variable else np.arange(1600) * 40
    pictures = [coded(number % 251) for number in range(1600)]
    times_ms = times.tolist() if variable else None
    film = write_film(tmp_path / f"film.{suffix}", codec, pictures=pictures, options=options, times_ms=times_ms)
    decoded, n_decoded = frames._decoded, []

    def counted(*arguments):
        for frame in decoded(*arguments):
            n_decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(frames, "_decoded", counted)
    moments = np.linspace(times[0], times[-1], 4)
    expected = [int(np.abs(times - moment).argmin()) for moment in moments]
    assert variable or expected == even_indices(1600, 4)
    assert numbers_in(read_frames([film], 4)) == [index % 251 for index in expected]
    assert len(n_decoded) < 200 or suffix in ("ts", "mpg"), "decoded from end to end"  # they have no index


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60), Fraction(7)])
def test_times_rounded_to_milliseconds_are_a_constant_rate(tmp_path, rate):
    film = write_film(tmp_path / "film.mkv", n_frames=100, rate=rate)
    looked = look_at_film(film)
    assert not looked.is_variable and looked.rate == pytest.approx(float(rate), rel=1e-3)
    assert numbers_in(read_frames([film], 16)) == even_indices(100, 16)


def test_a_variable_rate_is_sampled_in_time_and_the_table_tells_it(tmp_path):
    times = np.cumsum([0] + [20] * 40 + [100] * 20 + [500]).tolist()
    write_film(tmp_path / "mine" / "film.mkv", n_frames=len(times), times_ms=times)
    write_film(tmp_path / "mine" / "even.mp4", n_frames=32, rate=50)
    source = folder_source(tmp_path / "mine", 16)
    wanted = np.linspace(0, times[-1], 16)
    nearest = [int(np.abs(np.array(times) - moment).argmin()) for moment in wanted]
    assert nearest != even_indices(len(times), 16)
    assert numbers_in(read_frames(source.paths["film"], 16)) == nearest
    row = source.clips.set_index("clip_id").loc["film"]
    assert row["variable_rate"] and row["frame_indices"] == " ".join(map(str, nearest))
    assert row["n_frames_there"] == len(times) and row["n_frames"] == 16
    assert row["frames_per_second"] == pytest.approx(61 / (times[-1] / 1000))
    assert [float(second) for second in row["frame_times_s"].split()] == [times[index] / 1000 for index in nearest]
    even = source.clips.set_index("clip_id").loc["even"]
    assert not even["variable_rate"] and even["frames_per_second"] == pytest.approx(50)
    assert [float(second) for second in even["frame_times_s"].split()] == pytest.approx(
        [index / 50 for index in even_indices(32, 16)], abs=1e-4
    )
    assert remark_lines(source) == ["variable frame rate, sampled evenly in time: 1 clip (film)"]


SIGNS = (1, -1)
MATRICES = [*itertools.product(SIGNS, [0], [0], SIGNS), *itertools.product([0], SIGNS, SIGNS, [0])]


def marked(height: int = 48, width: int = 96) -> np.ndarray:
    """A dark picture with one bright block whose centre is (72.0, 12.0), x to the right, y down."""
    picture = np.full((height, width, 3), 20, np.uint8)
    picture[8:16, 64:80] = 230
    return picture


def centre_of_mark(frame: torch.Tensor) -> tuple[float, float]:
    rows, columns = (frame.float().mean(dim=0) > 125).nonzero(as_tuple=True)
    return float(columns.float().mean()) + 0.5, float(rows.float().mean()) + 0.5


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize(
    "a, b, c, d", [*itertools.product([1, -1], [0], [0], [1, -1])] + [*itertools.product([0], [1, -1], [1, -1], [0])]
)
def test_a_film_is_turned_and_mirrored_as_its_container_says(tmp_path, suffix, a, b, c, d):
    """QuickTime: a decoded point (x, y) is shown at (a x + c y, b x + d y), moved so that the picture starts at 0."""
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    film = write_film(
        tmp_path / f"film.{suffix}", pictures=[marked()] * 4, prepare=lambda stream: stream.set_display_matrix(matrix)
    )
    corners = np.array([[0, 0], [96, 0], [0, 48], [96, 48]]) @ [[a, b], [c, d]]
    width, height = corners.max(axis=0) - corners.min(axis=0)
    expected = np.array([72, 12]) @ [[a, b], [c, d]] - corners.min(axis=0)
    frames = read_frames([film], 2)
    assert frames.shape == (2, 3, height, width)
    assert centre_of_mark(frames[0]) == pytest.approx(tuple(expected), abs=0.6)
    said = "turned or mirrored as the container says" in look_at_film(film).remarks
    assert said == ((a, b, c, d) != (1, 0, 0, 1))


def test_a_quarter_turn_counter_clockwise(tmp_path):
    film = write_film(
        tmp_path / "film.mp4", pictures=[marked()] * 4, prepare=lambda stream: stream.set_display_rotation(90)
    )
    plain = write_film(tmp_path / "plain.mp4", pictures=[marked()] * 4)
    turned, upright = (read_frames([path], 4).numpy() for path in (film, plain))
    assert np.array_equal(turned, np.rot90(upright, 1, axes=(2, 3)))


@pytest.mark.parametrize(
    "aspect, shape, centre", [(Fraction(2), (48, 192), (144, 12)), (Fraction(1, 2), (96, 96), (72, 24))]
)
def test_pixels_that_are_not_square_are_stretched(tmp_path, aspect, shape, centre):
    def prepare(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    film = write_film(tmp_path / "film.mp4", pictures=[marked()] * 4, prepare=prepare)
    frames = read_frames([film], 4)
    assert frames.shape == (4, 3, *shape)
    assert centre_of_mark(frames[2]) == pytest.approx(centre, abs=0.6)


def test_a_transparent_film_is_laid_on_black(tmp_path):
    picture = np.zeros((16, 32, 4), np.uint8)
    picture[...] = (200, 100, 50, 255)
    picture[:, 16:, 3] = 128
    film = write_film(tmp_path / "film.mov", "qtrle", pictures=[picture] * 4, pixel_format="argb", given_as="rgba")
    frames = read_frames([film], 2)
    assert frames[0, :, 3, 3].tolist() == [200, 100, 50]
    assert frames[1, :, 3, 20].tolist() == [100, 50, 25]  # 128 / 255 of it
    assert look_at_film(film).remarks == ["transparent, laid on black"]
    assert look_at_film(write_film(tmp_path / "film.gif", "gif")).remarks == []


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 16, axis=0)
    film = write_film(
        tmp_path / "film.mkv",
        "ffv1",
        pictures=[ramp] * 4,
        pixel_format="gray16le",
        given_as="gray16le",
        options={"level": "3"},
    )
    frames = read_frames([film], 2)
    assert np.abs(frames[0, 1, 5].numpy() - ramp[0] / 257).max() <= 2


def two_streams(path, first: list[np.ndarray], second: list[np.ndarray], codecs, dispositions):
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec in codecs]
        for stream, codec, pictures, disposition in zip(streams, codecs, (first, second), dispositions):
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
        for stream, pictures in zip(streams, (first, second)):
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return path


def test_the_default_stream_is_read(tmp_path):
    clips = [[coded(number) for number in range(0, 20)], [coded(number) for number in range(100, 120)]]
    for default, start in ((0, 0), (1, 100)):
        marks = [Disposition.default if index == default else Disposition(0) for index in range(2)]
        film = two_streams(tmp_path / f"{default}.mkv", *clips, ("mpeg4", "mpeg4"), marks)
        assert numbers_in(read_frames([film], 4)) == [start + index for index in even_indices(20, 4)]
        assert look_at_film(film).remarks == ["several video streams, the default one is read"]


def test_a_cover_picture_is_not_the_film(tmp_path):
    frames = [coded(number) for number in range(20)]
    marks = (Disposition.attached_pic, Disposition.default)
    film = two_streams(tmp_path / "film.mp4", [coded(255, 64, 256)], frames, ("mjpeg", "mpeg4"), marks)
    with av.open(str(film)) as container:
        assert len(container.streams.video) == 2, "there is no cover picture to be misled by"
    assert numbers_in(read_frames([film], 5)) == even_indices(20, 5)


def test_interlaced_films_are_said(tmp_path):
    write_film(tmp_path / "mine" / "film.mpg", "mpeg2video", options={"flags": "+ildct+ilme"})
    write_film(tmp_path / "mine" / "plain.mpg", "mpeg2video")
    assert remark_lines(folder_source(tmp_path / "mine", 16)) == [
        "interlaced, both fields are read as one frame: 1 clip (film)"
    ]


def test_a_film_that_was_cut_at_its_start_begins_at_its_first_keyframe(tmp_path):
    whole = write_film(tmp_path / "whole.mkv", "libx264", options={"g": "10", "sc_threshold": "0"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if number >= 5 and packet.size:
                packet.stream = stream
                target.mux(packet)
    found = numbers_in(read_frames([tmp_path / "cut.mkv"], 30))
    assert found == list(range(10, 40))


def test_a_film_trimmed_by_an_edit_list_is_what_a_player_shows(tmp_path):
    film = write_film(tmp_path / "film.mp4")  # 40 frames of 512 ticks; the film's clock has 1000
    content = bytearray(film.read_bytes())
    edit = content.find(b"elst") + 12  # behind the name, version and number of edits
    assert struct.unpack(">II", content[edit : edit + 8]) == (1600, 0)
    content[edit : edit + 8] = struct.pack(">II", 20 * 40, 5 * 512)
    film.write_bytes(content)
    assert look_at_film(film).n_frames == 20
    assert numbers_in(read_frames([film], 20)) == list(range(5, 25))


def cut(path, share: float):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def noise(number: int) -> np.ndarray:
    picture = coded(number)
    return np.clip(picture + np.random.default_rng(number).integers(-20, 20, picture.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "suffix, codec, options",
    [
        ("mp4", "libx264", {}),
        ("avi", "mpeg4", {}),
        ("mkv", "libx264", {}),
        ("webm", "libvpx-vp9", {}),
        ("mpg", "mpeg2video", {}),
        ("flv", "flv1", {}),
        ("wmv", "wmv2", {}),
        ("gif", "gif", {}),
    ],
)
def test_a_film_that_is_cut_off_is_refused(tmp_path, suffix, codec, options):
    film = write_film(tmp_path / f"film.{suffix}", codec, pictures=[noise(number) for number in range(40)])
    assert read_frames([film], 8).shape[0] == 8
    cut(film, 0.6)
    with pytest.raises(UserError, match=r"film\.\w+ is damaged"):
        read_frames([film], 8)


@pytest.mark.parametrize("suffix, codec", [("mkv", "mpeg4"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_of_a_matroska_film_every_byte_must_be_there(tmp_path, suffix, codec):
    film = write_film(tmp_path / f"film.{suffix}", codec, n_frames=20)
    assert numbers_in(read_frames([film], 8)) == even_indices(20, 8)
    content = film.read_bytes()
    film.write_bytes(content + b"\0" * 100)  # what lies behind a film is not its own
    assert numbers_in(read_frames([film], 8)) == even_indices(20, 8)
    film.write_bytes(content[: int(len(content) * 0.97)])
    with pytest.raises(UserError, match=f"of its {len(content)} bytes are there"):
        read_frames([film], 8)


def test_a_film_whose_index_comes_first_and_that_is_cut_off_is_refused(tmp_path):
    film = write_film(tmp_path / "film.mp4", pictures=[noise(number) for number in range(40)])
    with (
        av.open(str(film)) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert numbers_in(read_frames([tmp_path / "fast.mp4"], 8)) == even_indices(40, 8)
    cut(tmp_path / "fast.mp4", 0.6)
    with pytest.raises(UserError, match=r"of its 40 frames are there"):
        read_frames([tmp_path / "fast.mp4"], 8)


@pytest.mark.parametrize(
    "suffix, codec", [("mp4", "mpeg4"), ("mp4", "libx264"), ("avi", "mjpeg"), ("mpg", "mpeg2video")]
)
def test_a_film_with_corrupt_frames_is_refused(tmp_path, suffix, codec):
    film = write_film(tmp_path / f"film.{suffix}", codec, pictures=[noise(number) for number in range(40)])
    content = bytearray(film.read_bytes())
    middle = len(content) * 4 // 10
    content[middle : middle + 200] = b"\x5a" * 200
    film.write_bytes(content)
    with pytest.raises(UserError, match=r"film\.\w+ is damaged"):
        read_frames([film], 8)


@pytest.mark.parametrize("content", [b"", b"not a film" * 100, b"GIF89a"])
@pytest.mark.parametrize("suffix", ["mp4", "avi", "gif", "webm", "ts"])
def test_what_is_no_film_is_refused(tmp_path, suffix, content):
    (tmp_path / f"film.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=rf"film.{suffix} is damaged") as error:
        read_frames([tmp_path / f"film.{suffix}"], 8)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
