"""How does a graph read JPEG and PNG files, as `support.image_reading.read_image` reads them with Pillow?

An exported network can then take files as they are, wherever TensorFlow runs. The pixels differ by one level at most.
What cannot be read so is refused, by tf.errors.InvalidArgumentError when it is run.
"""

import tensorflow.compat.v1 as tf

from support.image_reading import JPEG, ORIENTATION, PNG

PADDING = 32  # zeros after a file's content, so that its header can be read without checks of the length
LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue for grey, of 2^16
MIRRORED, UPSIDE_DOWN, TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)  # EXIF orientations; transposed first
ANYWHERE = r"(?s)\C*(%s)\C*"  # a regular expression for files that have this somewhere
TURNED_BY_XMP = ANYWHERE % "tiff:Orientation(=[\"']|>)[2-8]"
HIDDEN_METADATA = ANYWHERE % r"Raw profile type exif|XML:com\.adobe\.xmp\x00\x01"  # compressed


def pixels_of_files(files, rule):
    """The pixels of encoded images, ready for the network.

    Refused are, beside damaged files and other formats: JPEGs in CMYK or with half the rows for colours (4:4:0), an
    orientation that is not in an intact EXIF block, 16-bit grey where `pixel_range` is not known, and a transparent
    colour in other than 8 bits.

    Args:
        files: the content of JPEG and PNG files, string [N].
        rule: see `support.modes.preparation_of`.
    Returns:
        uint8 [N, size, size, channels].
    """
    left, top, right, bottom = rule["crop"]

    def read(file):
        data = tf.concat([tf.decode_raw(file, tf.uint8), tf.zeros([PADDING], tf.uint8)], 0)
        image, orientation = tf.cond(
            _has(data, 0, PNG), lambda: _read_png(file, data, rule["pixel_range"]),
            lambda: _read_jpeg(file, data, rule["resize"]))
        if rule["channels"] == 1:
            image = tf.floor((tf.reduce_sum(image * LUMA, 2, keepdims=True) + 2 ** 15) / 2 ** 16)  # exact: below 2^24
        square = _upright(_resized_centre(image, rule["resize"]), orientation)
        pixels = tf.cast(square[top:bottom, left:right], tf.uint8)
        pixels.set_shape([rule["size"], rule["size"], rule["channels"]])
        return pixels

    with tf.name_scope("read_files"):
        return tf.map_fn(tf.autograph.experimental.do_not_convert(read), files, tf.uint8)


def _require(*conditions):
    """A context whose operations fail unless all conditions hold, [(bool, sentence)]."""
    return tf.control_dependencies([tf.Assert(condition, [sentence]) for condition, sentence in conditions])


def _read_jpeg(file, data, side):
    """(a JPEG's colours, float32 [H, W, 3], decoded at the fraction of its size that suffices; its orientation)."""
    with _require((_has(data, 0, JPEG), "the image is neither a JPEG nor a PNG file")):
        start, end, place, frame = _parts_of_jpeg(data)
    luma, chroma = _number(data, frame + 11, 1), _number(data, frame + 14, 1)  # of samples, 16 · columns + rows
    with _require((tf.equal(_number(data, place, 2), 0xFFDA), "the JPEG file is damaged"),
                  # libjpeg smooths these colours since version 2.1 only, which TensorFlow does not have.
                  (tf.not_equal(luma // 16, chroma // 16) | tf.not_equal(luma % 16, 2 * (chroma % 16)),
                   "the JPEG file has half the rows for colours (4:4:0): save it with 4:4:4 or 4:2:0")):
        orientation = _orientation(file, data, start, end)
    with tf.control_dependencies([orientation]):
        height, width, components = tf.unstack(tf.image.extract_jpeg_shape(file))
    decoders = {ratio: lambda ratio=ratio: tf.image.decode_jpeg(file, 3, ratio, dct_method="INTEGER_ACCURATE")
                for ratio in (8, 4, 2, 1)}
    fits = tf.minimum(height // side, width // side)  # as Pillow's draft mode chooses
    with _require((tf.equal(components, 1) | tf.equal(components, 3),
                   "the JPEG file is neither grey nor RGB: convert it")):
        image = tf.case([(fits >= ratio, decoders[ratio]) for ratio in (8, 4, 2)], decoders[1])
    return tf.cast(image, tf.float32), orientation


def _read_png(file, data, pixel_range):
    """(a PNG's colours on white, float32 [H, W, 3]; its orientation)."""
    depth, kind = _number(data, 24, 1), _number(data, 25, 1)
    start, end, has_key = _exif_of_png(data)
    deep = tf.equal(depth, 16) & tf.equal(kind, 0)  # grey
    transparent = has_key | tf.equal(kind, 4) | tf.equal(kind, 6)
    with _require(
            (~has_key | tf.equal(depth, 8) | tf.equal(kind, 3),
             "the PNG file has a transparent colour in other than 8 bits: convert it"),
            (~deep | (pixel_range is not None),
             "the PNG file has 16 bits a pixel, and the network was trained on images of 8 bits: convert it"),
            (~tf.strings.regex_full_match(file, HIDDEN_METADATA),
             "the PNG file has compressed metadata, which may say how it is turned: save it without")):
        orientation = _orientation(file, data, start, end)

    def scaled():  # see `support.image_reading.to_bytes`
        low, high = pixel_range or (0.0, 256.0)
        values = (tf.cast(tf.image.decode_png(file, 1, tf.uint16), tf.float64) - low) * 256 / (high - low)
        return tf.tile(tf.cast(tf.floor(tf.clip_by_value(values, 0, 255)), tf.float32), [1, 1, 3])

    def opaque():
        return tf.cast(tf.image.decode_png(file, 3), tf.float32)

    def on_white():  # not for other images: of less than 8 bits, TensorFlow makes them transparent
        colours, alpha = tf.split(tf.cast(tf.image.decode_png(file, 4), tf.float32), [3, 1], 2)
        return tf.floor((colours * alpha + 255 * (255 - alpha) + 127) / 255)

    with tf.control_dependencies([orientation]):
        return tf.case([(deep, scaled), (transparent, on_white)], opaque), orientation


def _resized_centre(image, side):
    """The square at the centre of an image, resized as in `support.image_reading`.

    Args:
        image: float32 [H, W, C], whole numbers.
        side: side in pixels of the result.
    Returns:
        float32 [side, side, C], whole numbers.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    along = tf.minimum(height, width)
    # Columns first, and rounded in between, as there.
    columns = _rounded(tf.tensordot(image, _weights(width, along, side), [[1], [1]]))
    rows = _rounded(tf.tensordot(_weights(height, along, side), columns, [[1], [0]]))  # [side, C, side]
    return tf.transpose(rows, [0, 2, 1])


def _weights(length, along, side):
    """How much each of `length` pixels adds to each of `side` pixels of a centred square; float32 [side, length].

    A triangle as wide as two new pixels, or two old ones if these are larger: bilinear interpolation with antialiasing.
    """
    scale = tf.cast(along, tf.float64) / side
    centres = tf.cast(length - along, tf.float64) / 2 + (tf.range(side, dtype=tf.float64) + 0.5) * scale
    distances = tf.abs(tf.range(tf.cast(length, tf.float64), dtype=tf.float64) + 0.5 - centres[:, None])
    weights = tf.maximum(1 - distances / tf.maximum(scale, 1), 0)
    return tf.cast(weights / tf.reduce_sum(weights, 1, keepdims=True), tf.float32)


def _rounded(values):
    return tf.floor(values + 0.5)


def _upright(square, orientation):
    """Applies an EXIF orientation, int64, to an image [S, S, C]."""
    def among(orientations):
        return tf.cast(tf.reduce_any(tf.equal(orientation, tf.constant(orientations, tf.int64))), tf.int32)

    last = tf.shape(square)[0] - 1
    swapped = among(TRANSPOSED)
    square = tf.transpose(square, tf.stack([swapped, 1 - swapped, 2]))
    square = tf.gather(square, tf.abs(tf.range(last + 1) - last * among(UPSIDE_DOWN)))
    return tf.gather(square, tf.abs(tf.range(last + 1) - last * among(MIRRORED)), axis=1)


def _orientation(file, data, start, end):
    """The orientation that the EXIF block from `start` to `end` tells, int64; 1 where it tells none.

    See TIFF 6.0, section 2: a header, then a directory of entries with tag, type, number of values, and value.
    """
    little = _has(data, start, b"II*\0")
    directory = start + _number(data, start + 4, 4, little)
    entries = directory + 2 + 12 * tf.range(tf.where(start > 0, _number(data, directory, 2, little), 0))
    intact = tf.equal(start, 0) | (little | _has(data, start, b"MM\0*")) & (
        directory + 2 + 12 * tf.size(entries, out_type=tf.int64) <= tf.minimum(end, _size(data)))
    entries = tf.boolean_mask(entries, tf.equal(_number(data, entries, 2, little), ORIENTATION))
    known = tf.size(entries) > 0
    entry = tf.reduce_max(tf.concat([entries, [0]], 0))
    short = tf.equal(_number(data, entry + 2, 2, little), 3) & tf.equal(_number(data, entry + 4, 4, little), 1)
    with _require((intact & (short | ~known), "the image's EXIF block is damaged, so that its orientation is unknown"),
                  (known | ~tf.strings.regex_full_match(file, TURNED_BY_XMP),
                   "the image's orientation is not in EXIF, but in XMP alone: turn it upright")):
        return tf.where(known, _number(data, entry + 8, 2, little), tf.constant(1, tf.int64))


def _parts_of_jpeg(data):
    """(start and end of a JPEG's EXIF block, 0 and 0 without one; place of its image data; place of its frame)."""
    def goes_on(place, *_):
        marker = _number(data, place, 2)
        return (place < _size(data)) & (marker >= 0xFF01) & tf.not_equal(marker, 0xFFDA)

    def following(place, start, end, frame):
        code = _number(data, place + 1, 1)
        after = place + 2 + _number(data, place + 2, 2)
        found = tf.equal(start, 0) & tf.equal(code, 0xE1) & _has(data, place + 4, b"Exif\0\0")
        alone = tf.equal(code, 1) | (code >= 0xD0) & (code <= 0xD9)  # markers without a length
        after_it = tf.where(tf.equal(code, 0xFF), place + 1, tf.where(alone, place + 2, after))
        return (after_it, tf.where(found, place + 10, start), tf.where(found, after, end),
                tf.where((code >= 0xC0) & (code <= 0xC2), place, frame))

    zero = tf.constant(0, tf.int64)
    place, start, end, frame = tf.while_loop(goes_on, following, [zero + 2, zero, zero, zero])
    return start, end, place, frame


def _exif_of_png(data):
    """(start and end of a PNG's EXIF block, 0 and 0 without one; whether it has a tRNS chunk)."""
    # The pixels are in many chunks. Those behind are read only if one of them may have EXIF.
    last = tf.shape(data)[0] - 4
    anywhere = tf.reduce_any(tf.reduce_all([tf.equal(data[place:last + place], letter)
                                            for place, letter in enumerate(b"eXIf")], 0))

    def goes_on(place, start, *_):
        return (place + PADDING < _size(data)) & (
            ~_has(data, place + 4, b"IDAT") | anywhere & tf.equal(start, 0))

    def following(place, start, end, has_key):
        after = place + 12 + _number(data, place, 4)
        found = _has(data, place + 4, b"eXIf")
        return (after, tf.where(found, place + 8, start), tf.where(found, after - 4, end),
                has_key | _has(data, place + 4, b"tRNS"))

    zero = tf.constant(0, tf.int64)
    return tf.while_loop(goes_on, following, [zero + len(PNG), zero, zero, tf.constant(False)])[1:]


def _size(data):
    return tf.size(data, out_type=tf.int64)


def _number(data, place, length, little=False):
    """The whole number in `length` bytes from `place` on, int64 of the shape of `place`; big-endian or `little`."""
    places = tf.expand_dims(tf.cast(place, tf.int64), -1) + tf.range(length, dtype=tf.int64)
    values = tf.cast(tf.gather(data, tf.clip_by_value(places, 0, _size(data) - 1)), tf.int64)
    powers = [256 ** power for power in range(length)]
    powers = tf.where(little, tf.constant(powers, tf.int64), tf.constant(powers[::-1], tf.int64))
    return tf.reduce_sum(values * powers, -1)


def _has(data, place, content):
    """Whether the data have this content, bytes, from `place` on."""
    places = tf.cast(place, tf.int64) + tf.range(len(content), dtype=tf.int64)
    found = tf.gather(data, tf.clip_by_value(places, 0, _size(data) - 1))
    return tf.reduce_all(tf.equal(found, tf.constant(list(content), tf.uint8)))
