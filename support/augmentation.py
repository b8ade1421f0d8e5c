"""Which batches does an epoch have, and how are their images augmented?"""

import numpy as np

from support import image_folder
from support.data import color_preprocessing


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
    for batch, (chosen, images) in enumerate(zip(order[places], pixels), start=first_batch):
        images = color_preprocessing(images, data.mean, data.deviation)
        if config.augmentation:
            random = RandomShare(np.random.RandomState([config.seed, epoch, batch]), share, config.batch_size)
            images = data_augmentation(images, data.border, random, config.shift, config.rotation, config.flip,
                                       config.cutout)
        yield images, data.train.labels[chosen]


def data_augmentation(images, border, random, shift=0, rotation=0.0, flip=False, cutout=0):
    """Augments each image at random: rotation, shift, left-right flip and cutout, in this order.

    Args:
        images: normalized images, float32 [N, H, W, C]. They are not modified.
        border: the normalized pixel that fills the area beyond the edges, float32 [C].
        random: a RandomState or RandomShare, seeded with (seed, epoch, batch).
        shift: maximum shift in pixels along each axis (padding and random crop of the paper's section 4.1).
        rotation: maximum rotation in degrees in either direction.
        flip: whether images are mirrored left to right with probability 1/2.
        cutout: side in pixels of the square that is hidden (DeVries & Taylor 2017, arXiv 1708.04552).
    Returns:
        float32 [N, H, W, C].
    """
    if rotation:
        images = random_rotation(images, rotation, border, random)
    if shift or flip:
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
        flip: whether images are mirrored left to right with probability 1/2.
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
    if flip:
        mirrored = random.randint(0, 2, count).astype(bool)
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


def random_rotation(images, degrees, border, random):
    """Rotates each image about its centre by a random angle, with bilinear interpolation.

    Args:
        images: float32 [N, H, W, C].
        degrees: maximum angle in either direction.
        border: the pixel beyond the edges, float32 [C].
        random: a RandomState or RandomShare.
    Returns:
        float32 [N, H, W, C].
    """
    count, height, width, channels = images.shape
    angles = np.radians(random.uniform(-degrees, degrees, count)).astype(np.float32)[:, None]
    down, right = (index.reshape(1, -1).astype(np.float32) for index in np.indices((height, width)))
    centre_down, centre_right = np.float32((height - 1) / 2), np.float32((width - 1) / 2)
    cos, sin = np.cos(angles), np.sin(angles)
    # [N, H·W]: source position of each pixel, in an image padded by one pixel before and two after along each axis.
    from_down = cos * (down - centre_down) + sin * (right - centre_right) + (centre_down + 1)
    from_right = cos * (right - centre_right) - sin * (down - centre_down) + (centre_right + 1)
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
