"""Which batches does an epoch have, and how are their images augmented?"""

import numpy as np

from support import image_folder
from support.data import color_preprocessing

KNOTS = 4  # intervals along each axis within which an elastic displacement varies smoothly


def batches_of_steps(first_step, last_step, data, config, share=slice(None)):
    """Yields the batches of the training steps from first_step to last_step - 1, see `training_batches`."""
    batches_per_epoch = len(data.train) // config.batch_size
    for epoch in range(first_step // batches_per_epoch, last_step // batches_per_epoch):
        first_batch = max(0, first_step - epoch * batches_per_epoch)
        yield from training_batches(data, config, epoch, first_batch, share)


def training_batches(data, config, epoch, first_batch, share=slice(None)):
    """Yields the batches of an epoch: normalized images [N, H, W, C] and labels [N].

    A batch is a pure function of (seed, epoch, batch). Each epoch has a new order of images. The incomplete last batch
    is dropped.

    Args:
        data: a `support.data.DataSet`.
        config: an object with the settings of the group Data in Densenet.py, `batch_size` and `seed`.
        epoch: number of the epoch, from 0.
        first_batch: number of the first batch to yield, from 0. It is greater than 0 when a run resumes within an
            epoch.
        share: the slice of each batch that this process trains on.
    """
    random = np.random.RandomState([config.seed, epoch])
    order = random.permutation(len(data.train))
    last_batch = len(data.train) // config.batch_size
    places = np.arange(first_batch * config.batch_size, last_batch * config.batch_size)
    places = places.reshape(-1, config.batch_size)[:, share]  # [batches, N]
    if config.dataset == "folder":
        boxes = None
        if config.augmentation and config.crop_area < 1.0:
            boxes = image_folder.random_boxes(len(order), config.crop_area, random)[places]
        pixels = data.train.images.crops(order[places], boxes)
    else:
        pixels = (data.train.images[chosen] for chosen in order[places])
    mirrored = None
    if config.flip and config.alternate_flip:
        mirrored = mirrored_in(epoch, len(order), config.seed)
    for batch, (chosen, images) in enumerate(zip(order[places], pixels), start=first_batch):
        images = color_preprocessing(images, data.mean, data.deviation)
        if config.augmentation:
            random = RandomShare(np.random.RandomState([config.seed, epoch, batch]), share, config.batch_size)
            images = data_augmentation(
                images, data.border, random, config.shift, config.rotation, config.flip if mirrored is None
                else mirrored[chosen], config.cutout, config.scaling, config.shear, config.elastic)
        yield images, data.train.labels[chosen]


def mirrored_in(epoch, count, seed):
    """Which of `count` images are mirrored in an epoch, bool [count].

    They are drawn for the first epoch and exchanged with the others after each, so that any two epochs in a row show
    each image both ways (Jordan 2024, arXiv 2404.00498, section 3.6).
    """
    first = np.random.RandomState([seed, 0, 0, 0]).randint(0, 2, count)  # a seed that no batch has
    return (first + epoch) % 2 == 1


def data_augmentation(images, border, random, shift=0, rotation=0.0, flip=False, cutout=0, scaling=0.0, shear=0.0,
                      elastic=0.0):
    """Augments each image at random: distortion, shift, left-right flip and cutout, in this order.

    Args:
        images: normalized images, float32 [N, H, W, C]. They are not modified.
        border: the normalized pixel that fills the area beyond the edges, float32 [C].
        random: a RandomState or RandomShare, seeded with (seed, epoch, batch).
        shift: maximum shift in pixels along each axis (padding and random crop of the paper's section 4.1).
        rotation, scaling, shear, elastic: see `random_distortion`.
        flip: whether images are mirrored left to right with probability 1/2; or which of them are, bool [N].
        cutout: side in pixels of the square that is hidden (DeVries & Taylor 2017, arXiv 1708.04552).
    Returns:
        float32 [N, H, W, C].
    """
    if rotation or scaling or shear or elastic:
        images = random_distortion(images, border, random, rotation, scaling, shear, elastic)
    if shift or flip is not False:
        images = random_crop(images, shift, flip, border, random)
    if cutout:
        images = random_cutout(images, cutout, border, random)
    return images


class RandomShare:
    """Draws random numbers for a slice of a batch.

    It draws numbers for the whole batch and returns the slice, so an image gets the same numbers in any slice.

    Args:
        random: a RandomState.
        share: the slice of the batch.
        total: number of images in the whole batch.
    """

    def __init__(self, random, share, total):
        self._random, self._share, self._total = random, share, total

    def randint(self, low, high, size):
        """Like `RandomState.randint`. The last axis of `size` counts the slice's images."""
        return self._random.randint(low, high, self._whole(size))[..., self._share]

    def uniform(self, low, high, size):
        """Like `RandomState.uniform`. The last axis of `size` counts the slice's images."""
        return self._random.uniform(low, high, self._whole(size))[..., self._share]

    def _whole(self, size):
        """Returns `size` with the number of images in the whole batch as its last axis."""
        return (size[:-1] if isinstance(size, tuple) else ()) + (self._total,)


def random_crop(images, padding, flip, border, random):
    """Pads images [N, H, W, C] by `padding` pixels on each side and crops each at a random place to its old size.

    Args:
        images: the images.
        padding: number of pixels.
        flip: whether images are mirrored left to right with probability 1/2; or which of them are, bool [N].
        border: the pixel for padding, [C].
        random: a RandomState or RandomShare.
    """
    count, height, width, channels = images.shape
    padded = np.empty([count, height + 2 * padding, width + 2 * padding, channels], images.dtype)
    padded[...] = border
    padded[:, padding:padding + height, padding:padding + width] = images
    top, left = random.randint(0, 2 * padding + 1, (2, count))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    if flip is not False:
        mirrored = random.randint(0, 2, count).astype(bool) if flip is True else flip
        columns[mirrored] = columns[mirrored, ::-1]
    image = np.arange(count)[:, None, None] * padded.shape[1]
    places = (image + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    # `take` with a pixel as one item is many times faster than with a row of channels.
    return padded.view([("pixel", padded.dtype, (channels,))]).ravel().take(places)["pixel"]


def random_cutout(images, side, border, random):
    """Replaces a square in each of the images [N, H, W, C] by the pixel `border`.

    The square's side is `side` pixels. The square's centre is a random pixel of the image, so the square may extend
    beyond the edges.
    """
    hidden = []
    for axis in (1, 2):
        start = random.randint(0, images.shape[axis], len(images))[:, None] - side // 2
        places = np.arange(images.shape[axis])
        hidden.append((start <= places) & (places < start + side))
    rows, columns = hidden
    images = images.copy()
    images[rows[:, :, None] & columns[:, None, :]] = border
    return images


def random_distortion(images, border, random, rotation=0.0, scaling=0.0, shear=0.0, elastic=0.0):
    """Rotates, scales, shears and bends each image at random about its centre, with bilinear interpolation.

    Args:
        images: float32 [N, H, W, C].
        border: the pixel beyond the edges, float32 [C].
        random: a RandomState or RandomShare.
        rotation: maximum angle in degrees in either direction.
        scaling: each axis grows or shrinks by a factor of its own, at most e^scaling.
        shear: maximum angle in degrees by which vertical lines are inclined, in either direction.
        elastic: standard deviation in pixels of a smooth displacement, along each axis: see `_displacements`.
    Returns:
        float32 [N, H, W, C].
    """
    count, height, width, channels = images.shape
    down, right = (index.reshape(1, -1).astype(np.float32) for index in np.indices((height, width)))
    centre_down, centre_right = np.float32((height - 1) / 2), np.float32((width - 1) / 2)
    matrix = _source_matrices(count, random, rotation, scaling, shear)
    # [N, H·W]: source position of each pixel, in an image padded by one pixel before and two after along each axis.
    from_down, from_right = (of_down * (down - centre_down) + of_right * (right - centre_right) + (centre + 1)
                             for (of_down, of_right), centre in zip(matrix, (centre_down, centre_right)))
    if elastic:
        from_down += _displacements(count, height, width, elastic, random)
        from_right += _displacements(count, height, width, elastic, random)
    np.clip(from_down, 0, height + 1, out=from_down)
    np.clip(from_right, 0, width + 1, out=from_right)
    top, left = from_down.astype(np.int32), from_right.astype(np.int32)
    below, beside = from_down - top.astype(np.float32), from_right - left.astype(np.float32)
    padded = np.empty([count, height + 3, width + 3, channels], images.dtype)
    padded[...] = border
    padded[:, 1:-2, 1:-2] = images
    corner = top * (width + 3) + left + np.arange(count, dtype=np.int32)[:, None] * ((height + 3) * (width + 3))
    turned = np.empty([count, height * width, channels], images.dtype)
    for channel in range(channels):  # `take` of single values is many times faster than of rows
        pixels = padded[..., channel].ravel()
        upper, lower = pixels.take(corner), pixels.take(corner + (width + 3))
        upper += (pixels.take(corner + 1) - upper) * beside
        lower += (pixels.take(corner + (width + 4)) - lower) * beside
        turned[..., channel] = upper + (lower - upper) * below
    return turned.reshape(images.shape)


def _source_matrices(count, random, rotation, scaling, shear):
    """The matrices from a pixel's place, (rows down, columns right) of the centre, to its source's: 2x2 [N, 1]."""
    def drawn(most):
        values = random.uniform(-most, most, count) if most else np.zeros(count)
        return values.astype(np.float32)[:, None]

    angle, slope = np.radians(drawn(rotation)), np.tan(np.radians(drawn(shear)))
    shrink_down, shrink_right = np.exp(drawn(scaling)), np.exp(drawn(scaling))
    cos, sin = np.cos(angle), np.sin(angle)
    return (((cos + sin * slope) * shrink_down, sin * shrink_right),
            ((cos * slope - sin) * shrink_down, cos * shrink_right))


def _displacements(count, height, width, deviation, random):
    """Random smooth displacements of pixels along one axis, with a standard deviation in pixels, float32 [N, H·W].

    As in Simard et al. 2003 ("Best practices for convolutional neural networks applied to visual document analysis",
    section 2), they are random values that are smoothed. Simard's are one for each pixel, smoothed by a Gaussian of 4
    pixels. These are KNOTS + 3 along each axis, smoothed by cubic B-splines: for 28 pixels about as smooth, for less
    work.
    """
    rows, columns = _splines(height), _splines(width)
    values = random.uniform(-1, 1, (rows.shape[1] * columns.shape[1], count)).T
    values = values.reshape(count, rows.shape[1], columns.shape[1]).astype(np.float32)
    usual = np.sqrt(np.square(rows).sum(1).mean() * np.square(columns).sum(1).mean() / 3)  # a uniform variance is 1/3
    return (rows @ values @ columns.T).reshape(count, -1) * np.float32(deviation / usual)


def _splines(side):
    """The weights of KNOTS + 3 values in each of `side` pixels, by cubic B-splines, float32 [side, KNOTS + 3]."""
    places = (np.arange(side) + 0.5) / side * KNOTS
    distances = np.abs(places[:, None] - np.arange(-1, KNOTS + 2))
    near = 2 / 3 - distances ** 2 + distances ** 3 / 2
    return np.where(distances < 1, near, np.maximum(0, 2 - distances) ** 3 / 6).astype(np.float32)
