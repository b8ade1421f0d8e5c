"""Reading of encoded images in a graph, compared with Pillow's: the same pixels to one level, or an error."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from PIL import Image

from support.graph_reading import pixels_of_files
from support.image_reading import read_image


def photo(height, width, channels=3):
    """An image with smooth colours and some noise."""
    random = np.random.RandomState(height)
    y, x = np.mgrid[:height, :width, :channels][:2]
    waves = 128 + 100 * np.sin(x / 7 + np.arange(channels)) * np.cos(y / 5)
    values = np.clip(waves + random.normal(0, 10, waves.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(values if channels > 1 else values[..., 0])


def content(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation, order=">"):
    """An EXIF block with a maker's name and the orientation; see TIFF 6.0, section 2."""
    return b"Exif\0\0" + struct.pack(order + "2sHIHHHI4sHHIHHI", b"MM" if order == ">" else b"II", 42, 8, 2,
                                     0x010F, 2, 4, b"abc\0", 0x0112, 3, 1, orientation, 0, 0)


def with_chunk(png, name, data, before):
    """A PNG file with a chunk before the first one of another name."""
    place = png.index(before) - 4
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:place] + chunk + png[place:]


def with_segment(jpeg, marker, data):
    """A JPEG file with a segment of metadata at its beginning."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def half_rows_for_colours():
    """A JPEG of 4:4:0, made of one of 4:2:2, whose blocks get other places."""
    jpeg = bytearray(content(photo(80, 160), "JPEG", subsampling=1))
    frame = jpeg.index(b"\xff\xc0")
    assert jpeg[frame + 11] == 0x21
    jpeg[frame + 11] = 0x12
    jpeg[frame + 5:frame + 9] = struct.pack(">HH", 160, 80)
    return bytes(jpeg)


def of_two_channels():
    alpha = Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 40)).astype(np.uint8))
    return Image.merge("RGBA", photo(50, 40).split() + (alpha,))


PALETTE = photo(50, 40).quantize(12)
STEPS = photo(50, 40).point(lambda value: value // 64 * 64)
READ = dict({
    "rgb, the same side": content(photo(28, 28)), "grey, the same side": content(photo(28, 28, 1)),
    "half a pixel": content(photo(29, 28)), "larger": content(photo(151, 333)), "smaller": content(photo(11, 17)),
    "alpha": content(of_two_channels()), "grey and alpha": content(of_two_channels().convert("LA")),
    "1 bit": content(photo(50, 40).convert("1")), "palette of 4 bits": content(PALETTE, bits=4),
    "palette with transparency": content(PALETTE, bits=4, transparency=bytes(range(0, 240, 20))),
    "transparent colour": content(STEPS, transparency=(128, 128, 128)),
    "transparent grey": content(STEPS.convert("L").point(lambda value: value // 64 * 64), transparency=128),
    "EXIF before a transparent colour": with_chunk(content(PALETTE, transparency=3), b"eXIf", exif(6)[6:], b"PLTE"),
    "EXIF behind the pixels": with_chunk(content(photo(50, 40)), b"eXIf", exif(6)[6:], b"IEND"),
    "jpeg, progressive": content(photo(90, 70), "JPEG", progressive=True),
    "jpeg, grey": content(photo(90, 70, 1), "JPEG"),
    "jpeg, upright by XMP": with_segment(content(photo(90, 70), "JPEG"), 0xE1, b'x\0<a tiff:Orientation="1"/>'),
    "jpeg, by EXIF before XMP": with_segment(with_segment(
        content(photo(90, 70), "JPEG"), 0xE1, b'x\0<a tiff:Orientation="3"/>'), 0xE1, exif(6, "<")),
}, **dict(
    {"jpeg, orientation %d" % value: with_segment(content(photo(90, 70), "JPEG"), 0xE1, exif(value, "<>"[value % 2]))
     for value in range(10)},
    **{"jpeg, subsampling %d, side %d" % (kind, side): content(photo(side, side + 33), "JPEG", subsampling=kind)
       for kind in (0, 1, 2) for side in (40, 60, 120, 250)}))
REFUSED = {
    "empty": (b"", "neither a JPEG nor a PNG file"),
    "gif": (content(photo(20, 20), "GIF"), "neither a JPEG nor a PNG file"),
    "bmp": (content(photo(20, 20), "BMP"), "neither a JPEG nor a PNG file"),
    "png, cut": (content(photo(90, 70))[:-9000], "PNG"),
    "png, its beginning": (content(photo(90, 70))[:8], "PNG"),
    "png, damaged": (with_chunk(content(photo(90, 70)), b"IDAT", b"abc", b"IDAT"), "PNG"),
    "jpeg, cut": (content(photo(90, 70), "JPEG")[:-1500], "JPEG"),
    "jpeg, its beginning": (content(photo(90, 70), "JPEG")[:200], "the JPEG file is damaged"),
    "jpeg, CMYK": (content(photo(90, 70).convert("CMYK"), "JPEG"), "neither grey nor RGB"),
    "jpeg, 4:4:0": (half_rows_for_colours(), "half the rows for colours"),
    "jpeg, turned by XMP": (with_segment(content(photo(90, 70), "JPEG"), 0xE1, b'x\0<a tiff:Orientation="6"/>'),
                            "in XMP alone"),
    "jpeg, damaged EXIF": (with_segment(content(photo(90, 70), "JPEG"), 0xE1, exif(6)[:-8]), "EXIF block is damaged"),
    "16 bits": (content(Image.fromarray(np.full([20, 20], 5000, np.uint16))), "16 bits a pixel"),
    "transparent colour of 1 bit": (content(photo(50, 40).convert("1"), transparency=0), "in other than 8 bits"),
    "compressed EXIF": (with_chunk(content(photo(50, 40)), b"zTXt", b"Raw profile type exif\0\0abc", b"IDAT"),
                        "compressed metadata"),
}


def rule(side=28, channels=3, margin=0, pixel_range=None):
    return {"resize": side, "size": side - 2 * margin, "crop": [margin, margin, side - margin, side - margin],
            "channels": channels, "pixel_range": pixel_range}


def reader(rule):
    """A function from a list of files to their pixels."""
    with tf.Graph().as_default() as graph:
        files = tf.placeholder(tf.string, [None])
        pixels = pixels_of_files(files, rule)
    sess = tf.Session(graph=graph)
    assert pixels.shape.as_list() == [None, rule["size"], rule["size"], rule["channels"]]
    return lambda contents: sess.run(pixels, {files: np.array(contents, object)})


@pytest.mark.parametrize("rule", [rule(), rule(channels=1), rule(31, margin=3)], ids=["colour", "grey", "cropped"])
def test_files_are_read_as_pillow_reads_them(rule):
    found = reader(rule)(list(READ.values()))
    left, top, right, bottom = rule["crop"]
    for name, file, pixels in zip(READ, READ.values(), found):
        expected = read_image(io.BytesIO(file), rule["resize"], rule["channels"])[top:bottom, left:right]
        assert np.abs(pixels.astype(int) - expected).max() <= 1, name
        if name.endswith("the same side") and rule["resize"] == 28 and (rule["channels"] == 3 or "grey" in name):
            np.testing.assert_array_equal(pixels, expected)


def test_images_of_16_bits_are_scaled_as_in_training():
    values = np.random.RandomState(0).randint(0, 5000, (40, 50)).astype(np.uint16)
    for channels in (1, 3):
        (found,) = reader(rule(channels=channels, pixel_range=[100.0, 4196.0]))([content(Image.fromarray(values))])
        expected = read_image(io.BytesIO(content(Image.fromarray(values))), 28, channels, (100.0, 4196.0))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_what_cannot_be_read_alike_is_refused():
    read = reader(rule())
    for name, (file, sentence) in REFUSED.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            read([content(photo(30, 30)), file])
        assert sentence in str(error.value), name
    assert read([]).shape == (0, 28, 28, 3)
