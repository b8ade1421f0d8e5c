"""Reading image files: every format and depth, one scale for a data set, damaged metadata, damaged ends."""

import contextlib
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

from support import image_reading
from support.image_reading import CUT_OFF, ORIENTATION_UNKNOWN, range_of, read_image, to_bytes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(image_reading.__file__)))
RANDOM = np.random.RandomState(0)
GARBAGE = bytes(RANDOM.randint(0, 256, 120).tolist())


def ramp(low, high, side=16):
    """side × side values from low to high, evenly spaced."""
    return np.linspace(low, high, side * side).reshape(side, side)


def saved(path, values, dtype):
    """Writes grey values as a PNG of 16 bits (uint16) or as a TIFF (int32, float32); returns the path."""
    values = np.asarray(values).astype(dtype)
    if dtype == "uint16":
        Image.frombytes("I;16", values.shape[::-1], values.astype("<u2").tobytes()).save(str(path) + ".png")
        return str(path) + ".png"
    Image.fromarray(values).save(str(path) + ".tif")
    return str(path) + ".tif"


def grey_of(path, pixel_range, side=16):
    return read_image(path, side, 1, pixel_range)[..., 0]


def content_of(image, kind, **options):
    output = io.BytesIO()
    image.save(output, kind, **options)
    return output.getvalue()


def put(path, content):
    with open(str(path), "wb") as file:
        file.write(content)
    return str(path)


def smooth(width, height, random=RANDOM):
    """An RGB image without sharp edges."""
    small = random.randint(0, 256, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.BILINEAR)


def chunk(kind, data, damage=0):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def png_of_16_bit_colour(values):
    """A PNG file of RGB values, uint16 [H, W, 3]."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("highest,bits", [(100, 8), (255, 8), (256, 9), (1023, 10), (1024, 11), (4095, 12), (4096, 13),
                                          (32767, 15), (32768, 16), (65535, 16)])
def test_integers_keep_the_upper_8_of_the_bits_that_the_data_set_uses(tmp_path, highest, bits):
    paths = [saved(tmp_path / "dark", ramp(0, highest // 3), "uint16"),
             saved(tmp_path / "a", ramp(0, highest), "uint16"), saved(tmp_path / "b", ramp(0, highest), "int32")]
    pixel_range, notes = range_of(paths)
    assert (pixel_range, notes) == ((0, 2 ** bits), [])
    for path in paths:
        stored = ramp(0, highest // 3 if "dark" in path else highest).astype(int)
        np.testing.assert_array_equal(grey_of(path, pixel_range), stored * 256 // 2 ** bits)


@pytest.mark.parametrize("low,high,expected", [(0, 1, (0, 1)), (0.2, 0.9, (0, 1)), (0, 255, (0, 256)),
                                               (3, 200, (0, 256)), (0, 300, (0, 300)), (-1, 1, (-1, 1)),
                                               (-1000, 3000, (-1000, 3000)), (7e5, 9e9, (7e5, 9e9))])
def test_floating_point_numbers_have_one_scale(tmp_path, low, high, expected):
    path = saved(tmp_path / "a", ramp(low, high), "float32")
    pixel_range, notes = range_of([path])
    assert notes == [] and np.allclose(pixel_range, expected, rtol=1e-6)
    exact = (ramp(low, high).astype(np.float32).astype(float) - expected[0]) / (expected[1] - expected[0]) * 256
    assert np.abs(grey_of(path, pixel_range) - np.clip(np.floor(exact), 0, 255)).max() <= 1


def test_bytes_that_were_divided_by_255_come_back(tmp_path):
    path = saved(tmp_path / "a", np.arange(256).reshape(16, 16) / np.float32(255), "float32")
    np.testing.assert_array_equal(grey_of(path, range_of([path])[0]).ravel(), np.arange(256))


@pytest.mark.parametrize("low,high", [(-32768, 32767), (-5, 90), (0, 65536), (0, 2 ** 31 - 1), (-2 ** 31, 2 ** 31 - 1)])
def test_signed_and_large_integers_go_from_minimum_to_maximum(tmp_path, low, high):
    path = saved(tmp_path / "a", ramp(low, high), "int32")
    stored = ramp(low, high).astype(np.int32).astype(object)
    pixel_range, notes = range_of([path])
    assert (pixel_range, notes) == ((low, high), [])
    expected = np.minimum((stored - low) * 256 // (high - low), 255)
    np.testing.assert_array_equal(grey_of(path, pixel_range), expected.astype(int))


@pytest.mark.parametrize("kind,low,high,white_is_zero", [
    ("uint16", 0, 4095, False), ("int32", -5, 90, False), ("float32", 0, 1, False), ("uint8", 0, 255, False),
    ("uint16", 0, 4095, True), ("uint8", 0, 255, True)])
def test_the_documented_way_to_prepare_images_reads_the_same(tmp_path, kind, low, high, white_is_zero):
    """`prepare.py` in docs/deployment.md, which is for those who do not have this project."""
    with open(os.path.join(ROOT, "docs", "deployment.md"), encoding="utf-8") as page:
        (code,) = re.findall(r"^```python prepare.py\n(.*?)^```$", page.read(), re.MULTILINE | re.DOTALL)
    program = {}
    exec(code, program)
    values = ramp(low, high)
    if kind == "float32":
        values[0, :3] = np.nan, np.inf, -np.inf
    path = saved(tmp_path / "a", values, kind)
    if white_is_zero:
        path = tiff(tmp_path / "b.tif", values.astype(kind), white_is_zero)
    pixel_range, _ = range_of([path])
    with open(str(tmp_path / "model.json"), "w") as file:
        json.dump({"mode": "L", "resize": 16, "crop": [0, 0, 16, 16], "size": 16, "channels": 1,
                   "pixel_range": pixel_range}, file)
    expected = read_image(path, 16, 1, pixel_range)
    np.testing.assert_array_equal(program["pixels"](path, str(tmp_path)), expected[None])
    assert np.ptp(expected) > 200


def test_what_is_no_number_does_not_count_and_is_black_or_white(tmp_path):
    values = ramp(0, 1)
    values[0, :3] = np.nan, np.inf, -np.inf
    path = saved(tmp_path / "a", values, "float32")
    assert range_of([path]) == ((0, 1), [])
    assert grey_of(path, (0, 1))[0, :4].tolist() == [0, 255, 0, 3]
    nothing = saved(tmp_path / "b", np.full((16, 16), np.nan), "float32")
    assert range_of([nothing, path]) == ((0, 1), [])
    assert not grey_of(nothing, range_of([nothing])[0]).any()


@pytest.mark.parametrize("value", [0, -7, 5e6, 3e38])
def test_a_single_value_is_a_scale_too(tmp_path, value):
    path = saved(tmp_path / "a", np.full((16, 16), value), "float32")
    (low, high), _ = range_of([path])
    assert low < high and not grey_of(path, (low, high)).any()


def test_8_bit_images_need_their_headers_alone(tmp_path, monkeypatch):
    paths = []
    for number, mode in enumerate(("1", "L", "P", "RGB", "RGBA", "LA")):
        paths.append(str(tmp_path / ("%d.png" % number)))
        smooth(16, 16).convert(mode).save(paths[-1])
    monkeypatch.setattr(image_reading, "_sketch", None)
    monkeypatch.setattr(Image.Image, "load", None)
    assert range_of(paths) == (None, [])
    assert range_of(paths, given=(0, 9)) == (
        None, ["the scale 0 to 9 changes nothing: no grey image has more than 8 bits"])
    assert range_of([]) == (None, [])


def test_an_8_bit_image_among_deeper_ones_keeps_its_pixels(tmp_path):
    plain = str(tmp_path / "plain.png")
    Image.fromarray(ramp(0, 255).astype(np.uint8)).save(plain)
    pixel_range, notes = range_of([plain, saved(tmp_path / "deep", ramp(0, 4095), "uint16")])
    assert (pixel_range, notes) == ((0, 4096), [])
    np.testing.assert_array_equal(grey_of(plain, pixel_range), ramp(0, 255).astype(np.uint8))


def test_one_image_that_takes_the_contrast_of_the_others_is_named(tmp_path):
    paths = [saved(tmp_path / str(number), ramp(0, 4000), "uint16") for number in range(5)]
    assert range_of(paths) == ((0, 4096), [])
    paths.insert(2, saved(tmp_path / "bright", ramp(0, 65000), "uint16"))
    pixel_range, (note,) = range_of(paths)
    assert pixel_range == (0, 65536) and "bright.png has the pixel value 65000" in note and "5 of 6 images" in note
    low, high = map(float, note.split("pixel_range=")[-1].split(","))
    assert low == 0 and 3900 < high <= 4000
    assert range_of(paths, given=(low, high)) == ((low, high), [])
    assert len(np.unique(grey_of(paths[0], (low, high)))) > 200
    _, (note,) = range_of(paths, given=(0, 255))  # all values but a few are white
    assert "the scale 0 to 255 leaves fewer than 32 grey levels of 6 of 6 images" in note


@pytest.mark.parametrize("several", [False, True])
def test_a_value_that_stands_for_no_data_is_named(tmp_path, several):
    paths = []
    for number in range(5):
        values = ramp(0.1, 3)
        if several or number == 3:
            values[5, 5] = -9999
        paths.append(saved(tmp_path / str(number), values, "float32"))
    (low, high), (note,) = range_of(paths)
    assert (low, high) == (-9999, 3) and "%d.tif has the pixel value -9999" % (0 if several else 3) in note
    assert note.endswith("pixel_range=0,%s" % note.rsplit(",", 1)[1]) and 2.8 < float(note.rsplit(",", 1)[1]) <= 3


def test_a_scale_of_which_all_images_use_little_is_pointed_out(tmp_path):
    paths = [saved(tmp_path / str(number), ramp(0, 1.01), "float32") for number in range(3)]
    pixel_range, (note,) = range_of(paths)  # slightly more than 1: enlarged by a spline, for example
    assert pixel_range == (0, 256) and "the scale 0 to 256 leaves fewer than 32 grey levels of 3 of 3 images" in note
    assert float(note.split("pixel_range=0,")[1].split(" ")[0]) < 1.01


def two_classes(folder, first, second, dtype, counts=(12, 12)):
    """Saves images of the values first = (low, high) into a/ and of second into b/; returns the paths."""
    paths = []
    for name, (low, high), count in zip("ab", (first, second), counts):
        os.makedirs(str(folder / name))
        for number in range(count):
            shift = (high - low) * number / count / 9  # no two images are alike
            paths.append(saved(folder / name / str(number), ramp(low + shift, high - shift), dtype))
    return paths


@pytest.mark.parametrize("counts", [(12, 12), (60, 2), (2, 60)])
def test_the_range_that_is_suggested_blackens_no_class(tmp_path, counts):
    paths = two_classes(tmp_path, (0.3, 0.5), (0.8, 1.0), "float32", counts)
    values = ramp(0.3, 0.5)
    values[3, 3] = 1.02
    saved(tmp_path / "a" / "0", values, "float32")
    pixel_range, (note,) = range_of(paths)
    assert pixel_range == (0, 256) and "grey levels of %d of %d images" % (len(paths), len(paths)) in note
    assert os.sep not in note  # no file is blamed
    low, high = map(float, re.search("pixel_range=(.*),(.*) uses", note).groups())
    assert 0.3 <= low < 0.31 and 0.98 < high <= 1
    assert range_of(paths, given=(low, high)) == ((low, high), [])
    assert all(len(np.unique(grey_of(path, (low, high)))) > 40 for path in paths)


def test_only_a_value_that_stretches_the_scale_is_blamed(tmp_path):
    paths = [saved(tmp_path / str(number), ramp(0.8, 0.9), "float32") for number in range(6)]
    for number, value in ((2, 0.5), (4, 1.02)):  # the scale starts at 0 with or without the 0.5
        values = ramp(0.8, 0.9)
        values[5, 5] = value
        saved(tmp_path / str(number), values, "float32")
    pixel_range, (note,) = range_of(paths)
    assert pixel_range == (0, 256) and "4.tif has the pixel value 1.02" in note


def test_an_outlying_image_is_left_out_and_a_small_class_is_not(tmp_path):
    paths = two_classes(tmp_path, (0, 1000), (2000, 3000), "uint16", (78, 2))
    paths.append(saved(tmp_path / "a" / "bright", ramp(0, 65000), "uint16"))
    _, (note,) = range_of(paths)
    low, high = map(float, note.split("pixel_range=")[-1].split(","))
    assert "bright.png has the pixel value 65000" in note and low == 0 and 2900 < high <= 3000


@pytest.mark.parametrize("dtype,first,second,scale", [("float32", (0, 1), (0, 255), 256),
                                                      ("uint16", (100, 300), (40000, 60000), 65536)])
@pytest.mark.parametrize("counts", [(12, 12), (2, 30), (13, 12), (30, 1)])
def test_a_class_of_another_scale_is_pointed_out(tmp_path, dtype, first, second, scale, counts):
    paths = two_classes(tmp_path, first, second, dtype, counts)
    pixel_range, (note,) = range_of(paths)
    dark = [path for path in paths if grey_of(path, pixel_range).max() <= 1]
    assert pixel_range == (0, scale) and dark == paths[:counts[0]]
    assert ("the scale 0 to %d leaves fewer than 32 grey levels of %d of %d images with more than 8 bits, such as %s "
            "(%d to %d)" % (scale, counts[0], sum(counts), paths[0], *first)) in note
    assert note.endswith("save all of them with one scale; pixel_range=low,high sets the scale")


def test_dark_images_among_bright_ones_need_no_note(tmp_path):
    highs = [1000, 4000, 600, 2500] * 10 + [60, 60]  # less than an eighth of the scale: a twentieth of the images
    paths = [saved(tmp_path / str(number), ramp(0, high), "uint16") for number, high in enumerate(highs)]
    assert range_of(paths) == ((0, 4096), [])
    paths.append(saved(tmp_path / "third", ramp(0, 60), "uint16"))
    assert "of 3 of 43 images" in range_of(paths)[1][0]


def test_dim_images_keep_their_scale_without_a_note(tmp_path):
    paths = [saved(tmp_path / str(number), ramp(0, 12000 + 5000 * number), "uint16") for number in range(5)]
    assert range_of(paths) == ((0, 32768), [])
    masks = [saved(tmp_path / "mask", ramp(0, 1).round() * 65535, "uint16")]
    assert range_of(masks) == ((0, 65536), [])


def test_integers_and_floating_point_numbers_in_one_data_set_are_pointed_out(tmp_path):
    paths = [saved(tmp_path / "a", ramp(0, 60000), "uint16"), saved(tmp_path / "b", ramp(0, 1), "float32")]
    _, notes = range_of(paths)
    assert "b.tif holds floating-point numbers and" in notes[0] and "a.png integers" in notes[0]


def test_16_bit_colour_of_fewer_bits_is_pointed_out(tmp_path):
    values = RANDOM.randint(0, 4096, (16, 16, 3)).astype(np.uint16)
    dark, full = put(tmp_path / "dark.png", png_of_16_bit_colour(values)), tmp_path / "full.png"
    put(full, png_of_16_bit_colour(values * 16))
    np.testing.assert_array_equal(read_image(dark, 16, 3), values >> 8)  # what Pillow keeps
    np.testing.assert_array_equal(read_image(str(full), 16, 3), values >> 4)
    pixel_range, (note,) = range_of([dark])
    assert pixel_range is None and "dark.png, are nearly black" in note
    assert range_of([str(full)]) == (None, [])


def test_without_a_scale_deep_images_are_read_as_by_earlier_versions(tmp_path):
    for high, bits in ((255, 8), (4095, 16), (65535, 16)):
        path = saved(tmp_path / "a", ramp(0, high), "uint16")
        np.testing.assert_array_equal(grey_of(path, None), ramp(0, high).astype(int) >> (bits - 8))


def test_large_arrays_are_scaled_in_parts(monkeypatch):
    monkeypatch.setattr(image_reading, "CHUNK", 50)
    values = RANDOM.randint(0, 4096, (37, 13))
    np.testing.assert_array_equal(to_bytes(values, (0, 4096)), values // 16)
    np.testing.assert_array_equal(to_bytes(values.astype(">u2")[:1], (0, 4096)), values[:1] // 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
def test_garbage_in_the_exif_block_is_noted_and_changes_nothing(tmp_path, kind):
    image = smooth(20, 12)
    plain = read_image(put(tmp_path / "plain", content_of(image, kind)), 12, 3)
    for start in (b"", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08"):
        notes = []
        path = put(tmp_path / "damaged", content_of(image, kind, exif=b"Exif\0\0" + start + GARBAGE))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(read_image(path, 12, 3, notes=notes), plain)
        assert notes == [ORIENTATION_UNKNOWN]
    notes = []
    good = Image.Exif()
    good[0x0112] = 1
    read_image(put(tmp_path / "good", content_of(image, kind, exif=good.tobytes())), 12, 3, notes=notes)
    assert notes == []


def test_a_known_orientation_is_used_though_other_metadata_are_damaged(tmp_path):
    entries = [(0x0112, 3, 1, b"\x06\0\0\0"), (0x0131, 2, 5, b"\xff\xff\xff\x7f"), (0x8769, 4, 1, b"\xff\xff\xff\x7f")]
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + b"".join(
        struct.pack("<2HI", *entry[:3]) + entry[3] for entry in entries) + b"\0\0\0\0"
    image, notes = smooth(16, 16), []
    path = put(tmp_path / "a.png", content_of(image, "PNG", exif=b"Exif\0\0" + block))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read_image(path, 16, 3, notes=notes), np.rot90(np.asarray(image), -1))
    assert notes == []


@pytest.mark.parametrize("damaged", [chunk(b"tEXt", b"a\0b", damage=1),
                                     chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 ** 21))),
                                     chunk(b"iCCP", b"a\0\0" + GARBAGE, damage=1), chunk(b"eXIf", GARBAGE, damage=1)])
def test_damaged_metadata_of_a_png_do_not_matter(tmp_path, damaged):
    content = content_of(smooth(16, 16), "PNG")
    plain = read_image(put(tmp_path / "a", content), 16, 3)
    path = put(tmp_path / "b", content[:33] + damaged + content[33:])
    np.testing.assert_array_equal(read_image(path, 16, 3), plain)
    broken = content.replace(b"IDAT", b"IDAT\x55", 1)
    with pytest.raises(Exception):  # noqa: B017 - of any type
        read_image(put(tmp_path / "c", broken), 16, 3)


def test_a_deep_image_with_damaged_metadata_counts_for_the_scale(tmp_path):
    with open(saved(tmp_path / "a", ramp(0, 1000), "uint16"), "rb") as file:
        content = file.read()
    path = put(tmp_path / "b", content[:33] + chunk(b"gAMA", GARBAGE[:2]) + content[33:])
    assert range_of([put(tmp_path / "text.png", b"no image"), path]) == ((0, 1024), [])


def tiff(path, values, white_is_zero=False, kind=1, orientation=1):
    """Writes values [H, W] of any type as an uncompressed TIFF file (TIFF 6.0, sections 2 and 4, tag 339)."""
    data, (height, width) = values.tobytes(), values.shape
    tags = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, int(not white_is_zero)),
            (273, 8 + 2 + 12 * 11 + 4), (274, orientation), (277, 1), (278, height), (279, len(data)), (339, kind)]
    with open(str(path), "wb") as file:
        file.write(b"II*\0" + struct.pack("<IH", 8, len(tags)))
        file.write(b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags))
        file.write(struct.pack("<I", 0) + data)
    return str(path)


@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_white_may_be_zero(tmp_path, dtype):
    grey = np.tile(np.arange(8, dtype=np.uint8) * 32, (8, 1))
    values = (grey.astype(dtype) << (8 * (np.dtype(dtype).itemsize - 1))).astype(dtype)
    for white_is_zero in (False, True):
        path = tiff(tmp_path / "a.tif", values, white_is_zero)
        expected = np.repeat(255 - grey if white_is_zero else grey, 3).reshape(8, 8, 3)
        np.testing.assert_array_equal(read_image(path, 8, 3, (0.0, 65536.0)), expected)


@pytest.mark.parametrize("values,kind,name", [
    (np.tile(np.arange(-64, 64, 16, dtype=np.int8), (8, 1)), 2, "signed integers of 8 bits"),
    (np.tile(np.arange(8, dtype="<u4") * 500000000, (8, 1)), 1, "unsigned integers of 32 bits above 2")])
def test_values_that_pillow_reads_as_others_are_no_image(tmp_path, values, kind, name):
    path = tiff(tmp_path / "a.tif", values, kind=kind)
    error, sentence = ValueError, name
    if kind == 2 and PIL.__version__.startswith("9."):  # which does not know this type
        error, sentence = UnidentifiedImageError, "cannot identify"
    for truncated in (False, True):
        with pytest.raises(error, match=sentence):
            read_image(path, 8, 3, truncated=truncated)
        assert range_of([path], truncated) == (None, [])
    path = tiff(tmp_path / "b.tif", np.abs(values.astype("<i4")) // 2, kind=1)
    assert read_image(path, 8, 3).shape == (8, 8, 3)


# What is shown of stored values, by TIFF 6.0, section 8: where its row 0 and its column 0 are.
SHOWN = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
         5: lambda x: x.T, 6: lambda x: x[::-1].T, 7: lambda x: x[::-1, ::-1].T, 8: lambda x: x[:, ::-1].T}


@pytest.mark.parametrize("kind", ["tif", "pages", "png", "webp"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_images_are_turned_upright_once(tmp_path, kind, orientation):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    path = str(tmp_path / "a") + "." + kind
    exif = Image.Exif()
    exif[274] = orientation
    if kind == "tif":
        tiff(path, values, orientation=orientation)
    elif kind == "pages":
        page = Image.fromarray(values)
        page.save(path, "TIFF", save_all=True, append_images=[page], exif=exif)
    else:
        Image.fromarray(values).convert("RGB").save(path, lossless=True, exif=exif)
    notes = []
    np.testing.assert_array_equal(read_image(path, 4, 1, notes=notes)[..., 0], SHOWN[orientation](values))
    assert not notes


@pytest.mark.parametrize("size,digest", [
    ((10, 20), "0581dd8f"), ((17, 28), "622323cf"), ((48, 118), "eaf692ee"), ((90, 54), "8a68899b")])
def test_each_version_of_pillow_gives_the_same_pixels(tmp_path, size, digest):
    """`digest`: of what Pillow 9.5 and 12.0 make of the image, both by ImageOps.fit; Pillow 13 makes others."""
    values = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    path = str(tmp_path / "a.png")
    Image.fromarray(values).save(path)
    assert hashlib.md5(read_image(path, 16, 3).tobytes()).hexdigest()[:8] == digest


@pytest.mark.parametrize("samples", [3, 4])
def test_planes_of_16_bits_are_no_image(tmp_path, samples):
    """Pillow takes their bytes for those of planes of 8 bits."""
    plane = np.tile(np.arange(8, dtype="<u2") * 8192, (8, 1)).tobytes()
    lists = 8 + 2 + 12 * 10 + 4  # where the values of tags are that have several
    data = lists + 3 * 8 * samples
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, samples, lists), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, samples, lists + 8 * samples), (277, 3, 1, samples), (278, 3, 1, 8),
            (279, 4, samples, lists + 16 * samples), (284, 3, 1, 2)]
    with open(str(tmp_path / "a.tif"), "wb") as file:
        file.write(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags))
        file.write(struct.pack("<I", 0) + struct.pack("<4H", *[16] * 4) * (samples // 2) + b"\0" * (samples % 2 * 8))
        file.write(struct.pack("<%dI" % samples, *(data + len(plane) * index for index in range(samples))).ljust(
            8 * samples, b"\0"))
        file.write(struct.pack("<%dI" % samples, *[len(plane)] * samples).ljust(8 * samples, b"\0") + plane * samples)
    with pytest.raises(ValueError, match="16 bits in a plane for each colour"):
        read_image(str(tmp_path / "a.tif"), 8, 3)


def test_damaged_metadata_of_a_jpeg_do_not_matter(tmp_path):
    content = content_of(smooth(40, 40), "JPEG")
    plain = read_image(put(tmp_path / "a", content), 16, 3)
    for marker, start in ((0xE1, b"Exif\0\0"), (0xE2, b"ICC_PROFILE\0"), (0xE2, b"MPF\0"), (0xED, b"Photoshop 3.0\0"),
                          (0xFE, b"")):
        for length in (0, 3, 60):
            data = start + GARBAGE[:length]
            segment = bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
            path = put(tmp_path / "b", content[:20] + segment + content[20:])
            np.testing.assert_array_equal(read_image(path, 16, 3), plain)


@pytest.mark.parametrize("options", [dict(), dict(progressive=True), dict(quality=95, subsampling=0), dict(restart=1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_used(tmp_path, mode, options):
    options = dict(options)
    if options.pop("restart", None):
        options["restart_marker_rows"] = 1
    content = content_of(smooth(83, 57).convert(mode), "JPEG", **options)
    plain = read_image(put(tmp_path / "a", content), 20, 3)
    for ending in (content[:-2], content[:-1], content[:-2] + b"\0" * 9):
        notes = []
        np.testing.assert_array_equal(read_image(put(tmp_path / "b", ending), 20, 3, notes=notes), plain)
        assert notes == []
    scan = content.rindex(b"\xff\xda")
    for length in {len(content) - 30, (scan + len(content)) // 2, content.index(b"\xff\xda") + 30}:
        with pytest.raises(Exception):  # noqa: B017 - of any type
            read_image(put(tmp_path / "c", content[:length]), 20, 3)


def test_a_progressive_jpeg_without_its_last_scans_is_truncated(tmp_path):
    content = content_of(smooth(83, 57), "JPEG", progressive=True)
    scans = [place for place in range(len(content)) if content[place:place + 2] in (b"\xff\xda", b"\xff\xc4")]
    for place in scans[-4:]:
        with pytest.raises(OSError, match="truncated"):
            read_image(put(tmp_path / "a", content[:place]), 20, 3)


@pytest.mark.parametrize("kind,share", [("JPEG", 0.7), ("PNG", 0.6), ("BMP", 0.6), ("PPM", 0.6),
                                        ("TIFF", 0.9), ("GIF", 0.7)])
def test_the_readable_part_of_a_truncated_file_is_used_where_it_is_wanted(tmp_path, kind, share):
    image = Image.fromarray(RANDOM.randint(0, 256, (64, 64, 3)).astype(np.uint8))
    content = content_of(image, kind, **({"interlace": 0} if kind == "GIF" else {}))
    if kind == "TIFF":  # with the directory at the front, as other writers have it
        content = b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(struct.pack("<2HII", *entry) for entry in (
            (256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122),
            (277, 3, 1, 1), (278, 3, 1, 64), (279, 4, 1, 4096))) + bytes(4) + np.asarray(image.convert("L")).tobytes()
    whole = read_image(put(tmp_path / "a", content), 64, 3)
    path, notes = put(tmp_path / "b", content[:int(len(content) * share)]), []
    with pytest.raises(Exception):  # noqa: B017 - of any type
        read_image(path, 64, 3, notes=notes)
    assert notes == []
    part = read_image(path, 64, 3, truncated=True, notes=notes)
    equal = (part == whole).all((1, 2))
    rows = equal[::-1] if kind == "BMP" else equal  # stored from the bottom
    assert 20 < rows.sum() < 64 and rows[:20].all() and notes == [CUT_OFF] and not ImageFile.LOAD_TRUNCATED_IMAGES
    np.testing.assert_array_equal(read_image(put(tmp_path / "a", content), 64, 3, truncated=True, notes=notes), whole)
    assert notes == [CUT_OFF]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_a_file_with_no_readable_part_is_never_used(tmp_path, kind):
    content = content_of(smooth(64, 64), kind)
    start = {"JPEG": content.find(b"\xff\xda") + 14, "PNG": content.find(b"IDAT") + 6, "BMP": 54}.get(kind, 40)
    for part in (content[:start], content[:10], b"", b"no image"):
        with pytest.raises(Exception):  # noqa: B017 - of any type
            read_image(put(tmp_path / "a", part), 16, 3, truncated=True)


def test_a_truncated_deep_image_counts_for_the_scale_where_it_is_used(tmp_path):
    with open(saved(tmp_path / "a", RANDOM.randint(0, 4096, (64, 64)), "uint16"), "rb") as file:
        content = file.read()
    path = put(tmp_path / "b.png", content[:len(content) // 2])
    assert range_of([path]) == (None, []) and range_of([path], truncated=True) == ((0, 4096), [])


def test_errors_of_the_operating_system_are_raised_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(str(tmp_path / "nothing.png"), 8, 3)
    with pytest.raises(IsADirectoryError):
        read_image(str(tmp_path), 8, 3, truncated=True)


# The fuzz: an independent description of what each file shows.

MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B")


def random_image(mode, width, height, random):
    colour = smooth(width, height, random)
    if mode[0] in "IF":
        grey = np.asarray(colour.convert("L")).astype(float) / 255
        low, high = [(0, 200), (0, 1023), (0, 60000), (-500, 3000)][random.randint(4)]
        if mode == "F" and random.randint(2):
            low, high = 0, 1
        grey = low + grey * (high - low)
        if mode in "IF":
            return Image.fromarray(grey.astype(np.int32 if mode == "I" else np.float32))
        values = np.maximum(grey, 0).astype(">u2" if "B" in mode else "<u2")
        return Image.frombytes(mode, (width, height), values.tobytes())
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), colour.tobytes())
    image = colour.convert("P").convert("PA") if mode == "PA" else colour.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(smooth(width, height, random).convert("L"))
    return image


def sensible_range(values):
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > (255 if values.dtype.kind == "f" else 65535):
        return low, high if low < high else low + max(1, abs(low))
    if values.dtype.kind == "f":
        return (0, 1) if high <= 1 else (0, 256)
    return 0, max(256, 2 ** int(np.ceil(np.log2(high + 1))))


def shown(content, side):
    """What an intact file shows: its scale or None, and float64 [side, side, 3]."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        pixel_range = None
        if image.mode[0] in "IF":
            values = np.asarray(image)
            low, high = pixel_range = sensible_range(values)
            grey = np.clip(np.floor((values.astype(float) - low) * 256 / (high - low)), 0, 255)
            pixels = np.repeat(grey[..., None], 3, 2)
        else:
            pixels = np.asarray(image.convert("RGB")).astype(float)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                alpha = np.asarray(image.convert("RGBA")).astype(float)
                pixels = alpha[..., :3] * alpha[..., 3:] / 255 + 255 - alpha[..., 3:]
    height, width = pixels.shape[:2]
    square = min(width, height)
    left, top = (width - square) / 2, (height - square) / 2
    channels = [Image.fromarray(pixels[..., channel].astype(np.float32)).resize(
        (side, side), Image.BILINEAR, box=(left, top, left + square, top + square)) for channel in range(3)]
    return pixel_range, np.stack([np.asarray(channel) for channel in channels], 2)


def damage(image, kind, content, random):
    """Returns (damaged content, whether the pixels must still be read)."""
    garbage = bytes(random.randint(0, 256, random.randint(1, 300)).tolist())
    choice = random.randint(6)
    try:
        if choice == 0:
            return content_of(image, kind, exif=b"Exif\0\0" + (b"II*\0\x08\0\0\0" * random.randint(2)) + garbage), True
        if choice == 1:
            return content_of(image, kind, icc_profile=garbage), True
    except Exception:  # the writer checks it
        return content, True
    if choice == 2 and kind == "PNG":
        name = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"gAMA")[random.randint(7)]
        place = (33, len(content) - 12)[random.randint(2)]
        return content[:place] + chunk(name, garbage, damage=random.randint(2)) + content[place:], True
    if choice in (3, 4):
        return content[:max(1, len(content) - random.randint(1, (10, len(content))[choice == 4] + 1))], False
    return content, True


def check_an_image(path, random, extreme):
    """Writes an image of a random format, mode and size, damages it, and compares what is read; False: not writable."""
    kinds = sorted(kind for kind in Image.SAVE if kind in Image.OPEN)
    kind, mode = kinds[random.randint(len(kinds))], MODES[random.randint(len(MODES))]
    sizes = [(1, 1), (12000, 20), (20, 12000), (1, 300)] if extreme else [random.randint(1, 70, 2)]
    width, height = sizes[random.randint(len(sizes))]
    image = random_image(mode, int(width), int(height), random)
    try:
        content = content_of(image, kind)
        pixel_range, expected = shown(content, 24)
    except Exception:  # not written in this mode, or not read by Pillow
        return False
    content, readable = damage(image, kind, content, random)
    if not readable:
        with contextlib.suppress(Exception):  # else it must be read as if it were intact, or be refused
            pixel_range, expected = shown(content, 24)  # a palette at the end may be cut off, for example
    put(path, content)
    case = "%s %s %dx%d" % (kind, mode, width, height)
    try:
        found_range, _ = range_of([path])
        found = read_image(path, 24, 3, found_range)
    except Exception as error:
        assert not readable, "%s: %s" % (case, error)
        return True
    finally:
        for truncated in (False, True):
            try:
                assert read_image(path, 24, 1, (0, 256), truncated).shape == (24, 24, 1)
            except AssertionError:
                raise
            except Exception:  # the file is damaged
                assert not readable, case
    if pixel_range is not None:
        assert found_range is not None and np.allclose(found_range, pixel_range), case
    difference = np.abs(found - expected)
    most, usual = 2, 1
    if kind in ("JPEG", "MPO") and min(width, height) >= 48:  # decoded at a fraction of its size
        most, usual = (80, 20) if mode == "1" else (40, 4)  # black and white dots are averaged in another way
    assert difference.max() <= most and difference.mean() <= usual, case
    return True


def fuzz(path, count, extreme, seed):
    Image.init()  # all formats
    random, checked = np.random.RandomState(seed), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while checked < count:
            checked += check_an_image(path, random, extreme)


def test_images_of_every_writer_are_read_as_they_are_shown(tmp_path):
    fuzz(str(tmp_path / "image"), 150, False, seed=1)


@pytest.mark.once
def test_many_images_of_every_writer_are_read_as_they_are_shown(tmp_path, request):
    """2,000 with --long."""
    count = 1960 if request.config.getoption("--long") else 500
    fuzz(str(tmp_path / "image"), count, False, seed=int(os.environ.get("FUZZ_SEED", 2)))
    fuzz(str(tmp_path / "image"), 40, True, seed=3)


def test_a_large_image_is_read_without_a_warning(tmp_path):
    """In a process of its own: pytest has filters of its own for warnings."""
    Image.new("RGB", (12, 12)).save(str(tmp_path / "large.png"))
    script = ("import sys, PIL.Image, support.image_reading as reading; PIL.Image.MAX_IMAGE_PIXELS = 100; "
              "print(reading.read_image(sys.argv[1], 4, 3).shape)")
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path / "large.png")], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, cwd=ROOT)
    assert found.stdout.strip() == b"(4, 4, 3)" and b"DecompressionBombWarning" not in found.stderr
