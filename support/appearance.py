"""Does an image look like those that a network was trained on, and how is handwriting made to look like them?

A network answers for any image, also for one unlike all that it has seen: a black digit on white, where the training
images are white on black, gets a confident wrong answer. What training saw is measured once and kept with the run.
"""

import numpy as np
from PIL import Image, ImageFilter

MEASURED = 2000  # maximum number of training images, evenly spaced
STROKE = 64  # grey levels by which a pixel differs from the background
TOLERANCE = 0.05  # beyond the range of the training images
SMALL = 64  # pixels, the longer side of an image in which a background is sought
ROOM = 0.6  # share of an image's side up to which a character leaves enough paper around each of its strokes
HANDWRITTEN = ("mnist", "digits", "kmnist", "emnist")  # the data sets' names begin so


def is_handwritten(dataset):
    """Whether a data set, by its name, consists of single handwritten characters on a plain background."""
    return dataset.startswith(HANDWRITTEN)


def measures_of(image):
    """Measures of an image, uint8 [H, W, C]: {name: a number from 0 to 1}.

    brightness: mean pixel. background: median pixel of the outermost rows and columns. contrast: range of the pixels.
    extent: the longer side of the box around all pixels that differ from the background, as a share of the image's.
    offset: distance of the box's centre from the image's, as a share of the image's longer side.
    """
    grey = image.mean(2)
    background = float(np.median(_frame_of(grey)))
    rows, columns = np.nonzero(np.abs(grey - background) > STROKE)
    extent = offset = 0.0
    if len(rows):
        side = max(grey.shape)
        extent = (max(np.ptp(rows), np.ptp(columns)) + 1) / side
        offset = np.hypot(rows.min() + rows.max() + 1 - grey.shape[0],
                          columns.min() + columns.max() + 1 - grey.shape[1]) / 2 / side
    return {"brightness": float(grey.mean() / 255), "background": background / 255,
            "contrast": float(np.ptp(grey) / 255), "extent": float(extent), "offset": float(offset)}


def _frame_of(array):
    """What an array [H, W, …] has in its outermost rows and columns."""
    return np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])


def appearance_of(images):
    """What training images look like: {measure: [lowest, median, highest]}; see `measures_of`.

    Args:
        images: uint8 [N, H, W, C], or an object that reads images when it is indexed; at most MEASURED are measured.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), MEASURED)).astype(int))
    found = [measures_of(image) for place in chosen for image in images[place:place + 1]]
    return {name: [float(value) for value in np.percentile([measures[name] for measures in found], [0, 50, 100])]
            for name in found[0]}


def differences(image, appearance, handwritten):
    """What makes an image unlike the training images, as parts of a sentence; empty if nothing does.

    Args:
        image: uint8 [H, W, C], as the network gets it.
        appearance: of the training images, see `appearance_of`; empty for runs that did not record it.
        handwritten: whether the place and size of what is drawn matter, as in MNIST.
    """
    if not appearance:
        return []
    measures = measures_of(image)

    def beyond(name):
        """-1 below the range of the training images, 1 above it, else 0."""
        low, _, high = appearance[name]
        return (measures[name] > high + TOLERANCE) - (measures[name] < low - TOLERANCE)

    if beyond("contrast") < 0:
        if measures["contrast"] > appearance["contrast"][0] / 2:
            return ["its contrast is lower than that of all training images"]
        return ["it is almost blank" + (": what is drawn may be too small, pale or transparent" if handwritten else "")]
    found = []
    if handwritten and beyond("background"):
        return ["its background is %s than that of all training images"
                % ("lighter" if beyond("background") > 0 else "darker")]
    if handwritten and beyond("extent"):
        low, high = ("%.0f" % (100 * share) for share in appearance["extent"][::2])
        found.append("what is drawn is as long as %.0f%% of the image's side, in the training images %s%%"
                     % (100 * measures["extent"], low if low == high else low + " to " + high))
    if handwritten and beyond("offset") > 0:
        found.append("what is drawn is not in the centre")
    if not found and beyond("brightness"):
        found.append("it is %s than all training images" % ("lighter" if beyond("brightness") > 0 else "darker"))
    return found


def as_handwriting(image, side, appearance):
    """Makes an image of a handwritten character as MNIST's were made (LeCun et al. 1998, section III.A).

    White on black, without shadows on the paper, cropped to what is drawn, resized to the usual extent of the training
    images, and placed so that the centre of mass is the image's centre.

    Args:
        image: an upright PIL image of any mode and size.
        side: side of the result in pixels.
        appearance: of the training images, see `appearance_of`; empty: MNIST's extent, 20 of 28 pixels.
    Returns:
        uint8 [side, side, 1].
    """
    grey = _grey_of(image)
    grey = np.abs(grey - _background_of(grey))
    rows, columns = _places_of(grey)
    if not len(rows):
        return np.zeros([side, side, 1], np.uint8)
    grey = grey[rows.min():rows.max() + 1, columns.min():columns.max() + 1] * (255 / grey.max())
    longest = max(1, round(side * (appearance["extent"][1] if appearance else 20 / 28)))
    height, width = (max(1, round(length * longest / max(grey.shape))) for length in grey.shape)
    character = Image.fromarray(grey.clip(0, 255).astype(np.uint8)).resize((width, height), Image.LANCZOS)
    weights = np.asarray(character, np.float64)  # of thin strokes, resizing has made the brightest pixels darker
    weights = np.round(weights * (255 / max(weights.max(), 1)))
    character = Image.fromarray(weights.astype(np.uint8))
    down, right = (np.average(np.arange(len(sums)) + 0.5, weights=sums) for sums in (weights.sum(1), weights.sum(0)))
    top, left = (int(np.clip(round(side / 2 - centre), 0, side - length))
                 for centre, length in ((down, height), (right, width)))
    result = Image.new("L", (side, side))
    result.paste(character, (left, top))
    return np.asarray(result)[..., None]


def _places_of(strokes):
    """(rows, columns) of what is drawn; `strokes`: differences from the background, [H, W]."""
    return np.nonzero(strokes > max(STROKE / 2, strokes.max() / 4))


def _background_of(grey):
    """The grey levels of the paper, with the shadows on it: float64 [H, W], or a number where it is even.

    Where the outermost pixels are not even, it is the median of the neighbourhood, half of the image wide, around a
    small character. Of a larger one, the median would take strokes away: there it is a quadratic function of the place,
    if that fits the outermost pixels better than a single number does (docs/tuning.md: Shadows on paper).
    """
    height, width = grey.shape
    scale = min(1, SMALL / max(grey.shape))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = _resized(grey, size)

    def share_that_fits(background):
        return np.mean(np.abs(_frame_of(small - background)) < STROKE / 8)

    even = np.median(_frame_of(small))
    if share_that_fits(even) > 0.95:
        return even
    reach = max(1, min(size) // 4)
    padded = Image.fromarray(np.pad(small, reach, "edge").clip(0, 255).round().astype(np.uint8))
    median = np.asarray(padded.filter(ImageFilter.MedianFilter(2 * reach + 1)), np.float64)
    median = median[reach:-reach, reach:-reach]
    if all((np.ptp(places) + 1 if len(places) else 0) <= ROOM * side
           for places, side in zip(_places_of(np.abs(small - median)), small.shape)):
        return _resized(median, (width, height))
    curved = _quadratic_of(small)
    is_better = share_that_fits(curved) > share_that_fits(even) + 0.2
    return _resized(curved, (width, height)) if is_better else even


def _quadratic_of(grey):
    """The quadratic function of row and column that has the least absolute deviations from the outermost pixels.

    It is found by least squares, with weights from the deviations before (Schlossmacher 1973,
    https://doi.org/10.1080/01621459.1973.10481459).
    """
    rows, columns = (np.linspace(-1, 1, length) for length in grey.shape)
    rows, columns = np.meshgrid(rows, columns, indexing="ij")
    terms = np.stack([np.ones_like(rows), rows, columns, rows ** 2, rows * columns, columns ** 2], -1)
    outermost, levels = _frame_of(terms), _frame_of(grey)
    deviations = levels - np.median(levels)
    for _ in range(15):
        weights = 1 / np.sqrt(np.maximum(np.abs(deviations), 1))
        factors = np.linalg.lstsq(outermost * weights[:, None], levels * weights, rcond=None)[0]
        deviations = levels - outermost @ factors
    return terms @ factors


def _resized(grey, size):
    """Grey levels, resized to (width, height): float64 [height, width]."""
    how = Image.BOX if size[0] < grey.shape[1] or size[1] < grey.shape[0] else Image.BICUBIC
    return np.asarray(Image.fromarray(grey.astype(np.float32)).resize(size, how), np.float64)


def _grey_of(image):
    """The grey pixels of a PIL image, float64 [H, W]; transparent ones on white, or on black if that shows more."""
    if image.mode not in ("L", "1", "RGB") and ("A" in image.mode or "a" in image.mode
                                                or "transparency" in image.info):
        image = image.convert("RGBA")
        on = [np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("L"), np.float64)
              for colour in ("white", "black")]
        return max(on, key=np.ptp)
    grey = np.array(image if image.mode[0] in "IF" else image.convert("L"), np.float64)
    numbers = np.isfinite(grey)
    grey[~numbers] = np.median(grey[numbers]) if numbers.any() else 0  # the median is the background
    most = 1.0 if image.mode == "F" and grey.max() <= 1 else max(255.0, grey.max())
    return grey * (255 / most)
