"""How is an image file read as pixels, whatever its format and depth?"""

import collections
import io
import os
import re
import warnings

import numpy as np
from PIL import Image

from support.prefetch import mapped_by_threads

# Of images above 89 million pixels, which are the user's own. Pillow refuses twice as many.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

EARLIER_RANGES = ((0.0, 256.0), (0.0, 65536.0))  # of an image whose values are all at most 255, and of any other one
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
           6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}
EMPTY_EXIF = 31  # bytes; a longer block has an entry
ORIENTATION_UNKNOWN = "orientation unknown"
CUT_OFF = "truncated"

# TIFF tags, and some of their values
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339
UNCOMPRESSED, SEPARATE, UNSIGNED, SIGNED = 1, 2, 1, 2
CONTAINERS = ("ICO", "ICNS")  # formats whose header does not say the depth of the images in a file
CONVERTED = {"La": "LA", "LAB": "RGB"}  # the only mode that Pillow converts these to
JPEG, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
NEXT_SEGMENT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither image data nor a restart marker
PNG = b"\x89PNG\r\n\x1a\n"
# Arbitrary image data without the byte FF. A JPEG decoder that still waits for data makes other pixels of each.
FILLERS = (b"", b"\x55" * 64, b"\xaa" * 64, bytes(range(1, 255)))

CHUNK = 2 ** 22  # pixels that are scaled at once, to limit memory
SAMPLED = 2 ** 16  # pixels of an image in which its distinct values are counted
SKETCH = 64  # of these values are kept, evenly spaced
NEARLY_BLACK = 64  # images of 16-bit colour whose brightest 8-bit pixel is below this use at most 14 bits


def read_image(path, side, channels, pixel_range=None, truncated=False, notes=None):
    """Reads an image file as uint8 [side, side, channels], in any format that Pillow reads.

    The EXIF orientation is applied. Transparent images are drawn on white. The image is cropped to a square at its
    centre and resized. A file is also used where only its metadata is damaged, or where only the end marker of a JPEG
    is missing.

    Args:
        path: the image file.
        side: side in pixels of the result.
        channels: 1 for grey, 3 for red, green and blue.
        pixel_range: (low, high), the scale of images with more than 8 bits per grey pixel; see `to_bytes` and
            `range_of`. It does not change other images. None: as earlier versions read a file by itself, in
            `EARLIER_RANGES`.
        truncated: whether the readable part of a truncated file is used; the rest is black or grey.
        notes: a list. What is uncertain about the image is appended: ORIENTATION_UNKNOWN, CUT_OFF.
    Raises:
        Exception: the file is not an image, or it is damaged. Pillow's decoders raise exceptions of many types.
    """
    notes = [] if notes is None else notes
    with opened(path, (side, side), truncated, notes) as stored:
        image = upright(stored, notes)
        if _is_deep(image.mode):
            values = np.asarray(image)
            grey = to_bytes(values, pixel_range or _earlier_range(values))
            # Pillow undoes this by itself in images of 8 bits alone.
            white_is_zero = stored.format == "TIFF" and stored.tag_v2.get(PHOTOMETRIC) == 0
            image = Image.fromarray(255 - grey if white_is_zero else grey)
        if image.mode in CONVERTED:
            image = image.convert(CONVERTED[image.mode])
        if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)  # which copies even where nothing changes
        return np.asarray(_resized_centre(image, side)).reshape(side, side, channels)


def _resized_centre(image, side):
    """The square at an image's centre, resized: what `PIL.ImageOps.fit` with Image.BILINEAR is before Pillow 13.

    That takes the columns or the rows first, as is faster, and the order changes a pixel by up to one level. Here, each
    version gives the same pixels, by which the images that a run was trained on are known again.
    """
    width, height = image.size
    along = min(width, height)
    left, top = (width - along) / 2, (height - along) / 2
    columns = image.resize((side, height), Image.BILINEAR, box=(left, 0, left + along, height))
    return columns.resize((side, side), Image.BILINEAR, box=(0, top, side, top + along))


def to_bytes(values, pixel_range):
    """Scales stored values to uint8: floor(256 · (value - low) / (high - low)), cut off below 0 and above 255.

    NaN becomes 0. With (0, 2^n), integers of n bits keep their upper 8 bits. With (0.0, 1.0), k / 255 becomes k.

    Args:
        values: an array of any shape and type.
        pixel_range: (low, high), with low < high.
    """
    low, high = pixel_range
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, CHUNK * len(values) // max(1, values.size))
    with np.errstate(invalid="ignore"):
        for start in range(0, len(values), rows):
            part = (values[start:start + rows].astype(np.float64) - low) * 256 / (high - low)
            scaled[start:start + rows] = np.fmin(np.fmax(part, 0), 255)
    return scaled


def range_of(paths, truncated=False, given=None):
    """Finds one scale for all images with more than 8 bits per grey pixel.

    Only the headers of other files are read. Files that cannot be read are passed over. The scale is, for
    - integers from 0 to below 2^n, for the smallest n from 8 to 16: (0, 2^n);
    - floating-point numbers from 0 to 1: (0, 1);
    - floating-point numbers from 0 to 255: (0, 256), which keeps whole numbers;
    - all others: (minimum, maximum). NaN and infinity do not count.

    Args:
        paths: the image files.
        truncated: see `read_image`.
        given: the scale that the user sets, or None.
    Returns:
        ((low, high) for `to_bytes`, or None if no image has more than 8 bits per grey pixel;
         sentences about images that this scale, or Pillow, would make nearly black or flat).
    """
    found = [facts for facts in mapped_by_threads(lambda path: _depth(path, truncated), paths, ahead=1024) if facts]
    notes = _about_colour([facts for facts in found if facts.values is None])
    deep = [facts for facts in found if facts.values is not None]
    if not deep:
        if given:
            notes.append("the scale %g to %g changes nothing: no grey image has more than 8 bits" % tuple(given))
        return None, notes
    kinds = {facts.floating: facts.path for facts in deep}
    known = [facts for facts in deep if len(facts.values)] or [_Depth("", 0.0, 0.0, True, np.zeros(1))]
    pixel_range = given or _scale(min(facts.low for facts in known), max(facts.high for facts in known), any(kinds))
    if len(kinds) == 2:
        notes.append("%s holds floating-point numbers and %s integers: one scale, %g to %g, is used for both"
                     % (kinds[True], kinds[False], *pixel_range))
    return tuple(map(float, pixel_range)), notes + _about_contrast(known, pixel_range, given)


_Depth = collections.namedtuple("_Depth", "path low high floating values")
_Depth.__doc__ = """What `range_of` keeps of an image: its finite extremes, and up to SKETCH distinct values, sorted.

`values` is None for an image of 16-bit colour, of which Pillow keeps the upper 8 bits."""


def _is_deep(mode):
    """Whether an image's grey pixels have more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def _depth(path, truncated):
    """Returns the _Depth of an image; None for images of 8 bits and for files that cannot be read."""
    try:
        with open(path, "rb") as file:
            if file.read(len(JPEG)) == JPEG:  # 8 bits; Pillow would read more of its header
                return None
        with Image.open(path) as header:
            coloured = any(";16" in str(tile[3]) for tile in header.tile)
            if not (_is_deep(header.mode) or coloured or header.format in CONTAINERS):
                return None
    except Exception:  # of any type: see read_image, which may still be able to read the file
        coloured = False
    try:
        with opened(path, None, truncated, []) as image:
            if _is_deep(image.mode):
                return _sketch(path, np.asarray(image))
            extremes = np.reshape(image.getextrema(), (-1, 2))
            colours = [band.upper() not in "AX" for band in image.getbands()]
            return _Depth(path, 0, int(extremes[colours].max()), False, None) if coloured else None
    except Exception:  # read_image reports it
        return None


def _sketch(path, values):
    """Returns the _Depth of grey values [H, W]."""
    floating = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if floating else values
    if not finite.size:
        return _Depth(path, 0.0, 0.0, floating, finite)
    step = max(1, int((values.size / SAMPLED) ** 0.5))
    distinct = np.unique(values[::step, ::step])
    distinct = distinct[np.isfinite(distinct)]
    kept = distinct[np.linspace(0, len(distinct) - 1, min(SKETCH, len(distinct))).astype(int)]
    return _Depth(path, float(finite.min()), float(finite.max()), floating, kept)


def _scale(low, high, floating):
    """(low, high) for `to_bytes`, of the extremes of all values; see `range_of`."""
    if low >= 0 and floating and high <= 255:
        return (0.0, 1.0) if high <= 1 else (0.0, 256.0)
    if low >= 0 and not floating and high < 2 ** 16:
        return 0.0, 2.0 ** max(8, int(high).bit_length())
    return low, high if high > low else low + max(1.0, abs(low))


def _earlier_range(values):
    """The scale of an image by itself, as earlier versions read it."""
    return EARLIER_RANGES[int(values.dtype.kind != "f" and values.max() > 255)]


def _about_contrast(deep, pixel_range, given):
    """Sentences about a scale of which more than a twentieth of the images use little."""
    few = _flattened(deep, pixel_range)
    spared = min(len(deep) // 2, max(1, len(deep) // 20))  # number of images that may be outliers
    if len(few) <= spared:
        return []
    loss = "fewer than 32 grey levels of %d of %d images with more than 8 bits" % (len(few), len(deep))
    better = _better_range(deep, len(few), spared)
    if not better:
        return ["the scale %g to %g leaves %s, such as %s (%g to %g): if images were saved with different scales, save "
                "all of them with one scale; pixel_range=low,high sets the scale"
                % (*pixel_range, loss, few[0].path, few[0].low, few[0].high)]
    low, high = better
    lowest, highest = min(deep, key=lambda facts: facts.low), max(deep, key=lambda facts: facts.high)
    usual = _scale(low, high, any(facts.floating for facts in deep))  # without the values outside low to high
    below = min(low - lowest.low, usual[0] - pixel_range[0])
    above = min(highest.high - high, pixel_range[1] - usual[1])
    if given or max(below, above) < high - low:
        return ["the scale %g to %g leaves %s: most of their values are within %g to %g; pixel_range=%g,%g uses that "
                "range" % (*pixel_range, loss, low, high, low, high)]
    outlier, value = (lowest.path, lowest.low) if below > above else (highest.path, highest.high)
    return ["%s has the pixel value %g, and the scale %g to %g, which includes it, leaves %s; set pixel_range=low,high "
            "to cut such values off, for example pixel_range=%g,%g" % (outlier, value, *pixel_range, loss, low, high)]


def _flattened(deep, pixel_range):
    """The images of which a scale keeps fewer than half of the sketched values apart."""
    return [facts for facts in deep if 2 * len(np.unique(to_bytes(facts.values, pixel_range))) < len(facts.values)]


def _better_range(deep, flattened, spared):
    """(low, high) of all images but a few outlying ones; None if it would not halve the number of flattened images.

    At most `spared` images are left out, and never all images of a folder, which may be a class.
    """
    # Without the outermost values of an image: one of them may stand for "no data".
    inner = [facts.values[1:-1] if len(facts.values) > 2 else facts.values for facts in deep]
    lows, highs = np.array([(values[0], values[-1]) for values in inner], np.float64).T
    order = np.argsort(np.maximum(np.median(lows) - lows, highs - np.median(highs)))
    folders = np.array([os.path.dirname(facts.path) for facts in deep])
    for shift in range(spared.bit_length(), -1, -1):  # 0 images are left out, then 1, about twice as many each time
        kept = order[:len(deep) - (spared >> shift)]
        low, high = float(lows[kept].min()), float(highs[kept].max())
        if 0 <= low < high / 8:
            low = 0
        complete = low < high and set(folders[kept]) == set(folders)
        if complete and 2 * len(_flattened(deep, (low, high))) <= flattened:
            return low, high
    return None


def _about_colour(coloured):
    """Sentences about images of 16-bit colour, whose upper 8 bits alone Pillow keeps."""
    if not coloured or np.median([facts.high for facts in coloured]) >= NEARLY_BLACK:
        return []
    return ["most of the %d images with 16 bits per colour, such as %s, are nearly black: their values need fewer "
            "bits, and only the upper 8 are read; save them with 8 bits per colour" % (len(coloured), coloured[0].path)]


def upright(image, notes):
    """Applies the EXIF orientation; notes where it cannot be known."""
    if image.format == "TIFF":  # Pillow has turned it; before version 10 it leaves the tag, which counts no more
        return image
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        method = UPRIGHT.get(orientation)
        unknown = orientation not in range(9) or not len(exif) and len(image.info.get("exif", b"")) > EMPTY_EXIF
    except MemoryError:
        raise
    except Exception:  # of any type: the block may hold anything
        method, unknown = None, True
    if unknown:
        notes.append(ORIENTATION_UNKNOWN)
    return image if method is None else image.transpose(method)


def _decoded(source, size):
    """Opens and decodes an image from a path or a file; a large JPEG at the fraction of its size that suffices."""
    image = Image.open(source)
    try:
        if size:
            image.draft("RGB", size)
        image.load()
    except BaseException:
        image.close()
        raise
    return image


def opened(path, size, truncated, notes):
    """Opens and decodes an image file, as far as it is readable. See `read_image`."""
    image = _opened_or_repaired(path, size, truncated, notes)
    kind = _misread(image)
    if kind:
        image.close()
        raise ValueError("its values are %s, which Pillow reads as others: save it in another way" % kind)
    return image


def _misread(image):
    """The type of the values of a TIFF image that Pillow takes for those of another type; None: it is read right."""
    if image.format != "TIFF":
        return None
    bits, kind = image.tag_v2.get(BITS, (1,))[0], image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0]
    planes = image.tag_v2.get(SAMPLES, 1) if image.tag_v2.get(PLANES) == SEPARATE else 1
    if bits == 16 and planes > 1 and image.tag_v2.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED:
        return "16 bits in a plane for each colour, not compressed"
    if bits == 8 and kind == SIGNED:
        return "signed integers of 8 bits"
    if bits == 32 and kind == UNSIGNED and image.mode == "I" and image.getextrema()[0] < 0:
        return "unsigned integers of 32 bits above 2^31"
    return None


def _opened_or_repaired(path, size, truncated, notes):
    try:
        return _decoded(path, size)
    except MemoryError:
        raise
    except Exception as error:
        if getattr(error, "errno", None):  # not caused by the content
            raise
        with open(path, "rb") as file:
            content = file.read()
        image = _repaired(content, size, truncated, notes)
        if image is None:
            raise
        return image


def _repaired(content, size, truncated, notes):
    """Decodes a file that Pillow refuses: without its metadata, with an end marker, or in part. None if it is lost."""
    for version, bare in ((content, False), (_without_metadata(content), True)):
        whole, end = True, b""
        if version.startswith(JPEG) and not version.endswith(JPEG_END):
            whole, end = _lacks_only_the_end(version), JPEG_END
        if (whole or truncated) and (end or bare and version != content):
            image = _attempt(lambda mended=version + end: _decoded(io.BytesIO(mended), size))
            if image is not None and (whole or not _is_uniform(image)):
                notes += [ORIENTATION_UNKNOWN] * bare + [CUT_OFF] * (not whole)
                return image
    image = _attempt(lambda: _decoded_part(content)) if truncated else None
    if image is None or _is_uniform(image):
        return None
    notes.append(CUT_OFF)
    return image


def _attempt(decode):
    """Returns what `decode` returns, or None if it raises an exception that the content of the file may cause."""
    try:
        return decode()
    except MemoryError:
        raise
    except Exception:
        return None


def _decoded_part(content):
    """Decodes a file up to its damage. Pillow's own switch for this is not used, because it is the whole process's."""
    image = Image.open(io.BytesIO(content))
    if _attempt(image.load) is None:
        image.tile = []  # nothing is left to decode: the pixels found so far are used
        image.load()
    return image


def _is_uniform(image):
    """Whether all pixels are equal, as they are where nothing of a file was readable. The colours of a JPEG round."""
    return bool((np.ptp(np.reshape(image.getextrema(), (-1, 2)), 1) <= 2).all())


def _lacks_only_the_end(content):
    """Whether a JPEG without an end marker has all of its image data: then bytes that follow change no pixel."""
    if _scans_are_missing(content):
        return False
    data = content.rstrip(b"\xff")
    decoded = [_attempt(lambda filler=filler: np.asarray(_decoded(io.BytesIO(data + filler + JPEG_END), None)))
               for filler in FILLERS]
    return all(other is not None and np.array_equal(decoded[0], other) for other in decoded)


def _scans_are_missing(content):
    """Whether coefficients of a JPEG are in no scan at their full precision. See ITU-T T.81, section B.2."""
    missing, place = None, 2
    while place + 4 <= len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2:place + 4], "big")
        segment = content[place + 4:place + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) > 5:  # frame
            missing = {(component, index) for component in segment[6::3] for index in range(64)}
        place += 2 + length
        if marker == 0xDA and missing is not None and len(segment) == length - 2 > 3:  # scan
            first, last, precision = segment[-3], segment[-2], segment[-1] & 15
            if not precision:
                missing -= {(component, index) for component in segment[1:-3:2] for index in range(first, last + 1)}
            following = NEXT_SEGMENT.search(content, place)
            place = following.start() if following else len(content)
    return missing is None or bool(missing)


def _without_metadata(content):
    """Returns a JPEG or PNG file without the parts that do not change its pixels; other files as they are."""
    if content.startswith(JPEG):
        return _without_segments(content)
    if not content.startswith(PNG):
        return content
    kept, place = [PNG], len(PNG)
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place:place + 4], "big")
        kind = content[place + 4:place + 8]
        if kind == b"tRNS" or kind[:1].isupper():  # needed for the pixels
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def _without_segments(content):
    """Returns a JPEG without comments and application data, except for those that say how its colours are stored."""
    kept, place = [content[:2]], 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(content[place + 2:place + 4], "big")
        if not (0xE1 <= content[place + 1] <= 0xEF or content[place + 1] == 0xFE) or content[place + 1] == 0xEE:
            kept.append(content[place:end])
        place = end
    return b"".join(kept) + content[place:]
