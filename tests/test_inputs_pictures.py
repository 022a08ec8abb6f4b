"""Pictures: every format, mode and orientation gives the pixels that one sees (docs/inputs.md)."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from pez.encoder.frames import IMAGE_SUFFIXES, read_frames
from pez.errors import UserError

ROOM = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".avif")


def seen(path) -> np.ndarray:
    """uint8 [H, W, 3] as step 2 reads it."""
    return read_frames([path], 1)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("upper", [False, True])
def test_every_format_that_is_said_to_be_read(tmp_path, suffix, upper):
    path = tmp_path / f"picture{suffix.upper() if upper else suffix}"
    smooth = np.linspace(0, 255, 20).astype(np.uint8)[None, :, None].repeat(12, 0).repeat(3, 2)
    options = {".webp": {"lossless": True}, ".jp2": {}}.get(suffix, {})
    if suffix == ".pbm":
        Image.fromarray(smooth).convert("1").save(path)
        expected = np.asarray(Image.fromarray(smooth).convert("1").convert("RGB"))
    elif suffix == ".pgm":
        Image.fromarray(smooth[..., 0]).save(path)
        expected = smooth
    elif suffix == ".qoi":
        pytest.importorskip("PIL.QoiImagePlugin")
        Image.fromarray(smooth).save(path)
        expected = smooth
    else:
        Image.fromarray(smooth).save(path, **options)
        expected = smooth
    assert np.abs(seen(path).astype(int) - expected).max() <= (6 if suffix in LOSSY else 0)


# EXIF 2.3, tag 0x0112: where the stored 0th row and 0th column are seen
ORIENTATIONS = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: np.rot90(a, -1),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: np.rot90(a, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = np.full((16, 32, 3), 20, np.uint8)
    picture[:8, :8] = 230  # upper left
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(picture).save(tmp_path / f"a{suffix}", exif=exif, **options)
    assert np.abs(seen(tmp_path / f"a{suffix}").astype(int) - ORIENTATIONS[orientation](picture)).max() <= 12


def test_transparency_is_laid_on_black(tmp_path):
    alpha = np.linspace(0, 255, 20).astype(np.uint8)[None].repeat(12, 0)
    on_black = ROOM.astype(float) * alpha[..., None] / 255
    Image.fromarray(np.dstack([ROOM, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(seen(tmp_path / "rgba.png") - on_black).max() <= 0.5
    Image.fromarray(np.dstack([ROOM[..., 0], alpha])).save(tmp_path / "la.png")
    assert np.abs(seen(tmp_path / "la.png")[..., 1] - on_black[..., 0]).max() <= 0.5

    palette = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8)[None], 4, 0)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert seen(tmp_path / "palette.png")[2].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255], [9, 8, 7]]
    key = ROOM.copy()
    key[3, 4] = (1, 2, 3)
    Image.fromarray(key).save(tmp_path / "key.png", transparency=(1, 2, 3))
    expected = key.copy()
    expected[3, 4] = 0
    assert np.array_equal(seen(tmp_path / "key.png"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_not_cut(tmp_path, suffix):
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None], 4, 0)
    Image.fromarray(ramp).save(tmp_path / f"ramp{suffix}")
    assert seen(tmp_path / f"ramp{suffix}")[1, :, 0].tolist() == list(range(256))  # 65535 / 255 = 257


def test_sixteen_bits_of_colour_are_scaled(tmp_path):
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 256, 4, "rgb48be", Fraction(1, 25)
    ramp = np.repeat((np.arange(256) * 257).astype(np.uint16)[None, :, None], 4, 0).repeat(3, 2)
    ramp[..., 1] = ramp[:, ::-1, 1]
    packets = codec.encode(av.VideoFrame.from_ndarray(ramp, format="rgb48be")) + codec.encode()
    (tmp_path / "ramp.png").write_bytes(b"".join(map(bytes, packets)))
    found = seen(tmp_path / "ramp.png")
    assert found[1, :, 0].tolist() == list(range(256)) and found[1, :, 1].tolist() == list(range(255, -1, -1))


def test_grey_palette_two_levels_and_cmyk_look_as_they_do(tmp_path):
    Image.fromarray(ROOM[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(seen(tmp_path / "grey.png"), ROOM[..., :1].repeat(3, 2))
    Image.fromarray(ROOM[..., 0] > 100).save(tmp_path / "bits.png")
    assert np.array_equal(seen(tmp_path / "bits.png")[..., 2], (ROOM[..., 0] > 100) * np.uint8(255))
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "inks.tif")
    white, black = [255] * 3, [0] * 3
    assert seen(tmp_path / "inks.tif")[0].tolist() == [[0, 255, 255], [255, 0, 255], [255, 255, 0], black, white]
    flat = np.full((16, 16, 4), (0, 200, 0, 0), np.uint8)
    Image.fromarray(flat, mode="CMYK").save(tmp_path / "inks.jpg", quality=95)
    assert np.abs(seen(tmp_path / "inks.jpg")[8, 8] - np.array([255, 55, 255])).max() <= 4


@pytest.mark.parametrize(
    "values, reason",
    [(np.full((4, 4), 0.5, np.float32), "decimal numbers"), (np.full((4, 4), 70000, np.int32), "0 ... 65535")],
)
def test_values_without_a_known_white_are_refused(tmp_path, values, reason):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="save it with 8 or 16 bits") as error:
        read_frames([tmp_path / "a.tif"], 1)
    assert reason in str(error.value)
