"""How is a network evaluated on a split, and which metrics result?"""

import dataclasses

import numpy as np
import tensorflow.compat.v1 as tf

from support.data import color_preprocessing

SHOWN_MISTAKES = 25
SHOWN_CLASSES = 20  # a confusion matrix of more classes is too wide to read


@dataclasses.dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: the mean loss.
        confusion: the confusion matrix, int64 [true class, predicted class], in numbers of images.
        mistakes: [(index of the image in its split, true class, predicted class, probability of the predicted class)],
            at most SHOWN_MISTAKES, in order of decreasing probability.
    """

    loss: float
    confusion: np.ndarray
    mistakes: list

    @property
    def accuracy(self):
        """The share of images that are classified correctly."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def class_accuracies(self):
        """Returns each class's share of images that are classified correctly; None for a class without images."""
        return [int(right) / int(count) if count else None
                for right, count in zip(np.diagonal(self.confusion), self.confusion.sum(1))]

    def confusions(self):
        """Returns [(number of images, true class, predicted class)] of the wrong predictions, most frequent first."""
        pairs = [(int(count), true, predicted) for (true, predicted), count in np.ndenumerate(self.confusion)
                 if count and true != predicted]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))

    def as_json(self, class_names):
        """Returns the metrics as a dictionary of plain values."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "images": int(self.confusion.sum()),
            "class_names": list(class_names),
            "class_accuracies": self.class_accuracies(),
            "confusion_matrix": self.confusion.tolist(),
        }

    def table(self, class_names):
        """Yields lines of text: each class's accuracy, and the confusion matrix or the most frequent confusions."""
        width = max(map(len, class_names))
        if len(class_names) > SHOWN_CLASSES:
            for name, accuracy in zip(class_names, self.class_accuracies()):
                yield "%-*s  %s" % (width, name, _percent(accuracy))
            yield "most frequent confusions:"
            for count, true, predicted in self.confusions()[:SHOWN_CLASSES]:
                yield "%5d times  %s for %s" % (count, class_names[true], class_names[predicted])
            return
        cell = max(5, len(str(self.confusion.max())))
        yield "%-*s  accuracy  predicted class" % (width, "class")
        yield "%-*s            %s" % (width, "", "  ".join("%*s" % (cell, name[:cell]) for name in class_names))
        for name, accuracy, row in zip(class_names, self.class_accuracies(), self.confusion):
            yield "%-*s   %7s  %s" % (width, name, _percent(accuracy), "  ".join(
                "%*s" % (cell, count or ".") for count in row.tolist()))


def _percent(share):
    return "none" if share is None else "%.2f%%" % (100 * share)


def evaluate_split(sess, net, split, data, cluster=None):
    """Evaluates all images of a split, including the incomplete last batch; returns an `Evaluation`.

    Args:
        sess: the session.
        net: the result of `Densenet.build_evaluation`: placeholders and tensors.
        split: a `support.data.Split`.
        data: the `support.data.DataSet` of the split.
        cluster: a `support.workers.Cluster`; its workers evaluate the batches in turn. None: this process evaluates
            all batches. The loss and the confusion matrix cover all workers; `mistakes` covers only this worker.
    """
    batch_size = int(net.images.shape[0])
    task, workers = (cluster.task, len(cluster.workers)) if cluster else (0, 1)
    loss_sum = 0.0
    confusion = np.zeros([len(data.class_names)] * 2)
    mistakes = []
    for start in range(task * batch_size, len(split), workers * batch_size):
        images = color_preprocessing(split.images[start:start + batch_size], data.mean, data.deviation)
        labels = split.labels[start:start + batch_size]
        count = len(labels)
        if count < batch_size:  # pad with copies of the first image, which are not counted
            images = np.concatenate([images, images[:1].repeat(batch_size - count, axis=0)])
            labels = np.concatenate([labels, labels[:1].repeat(batch_size - count)])
        losses, predicted, probabilities = (values[:count] for values in sess.run(
            [net.losses, net.predicted, net.probabilities], {net.images: images, net.labels: labels}))
        labels = labels[:count]
        loss_sum += losses.sum(dtype=np.float64)
        np.add.at(confusion, (labels, predicted), 1)
        mistakes += [(start + place, int(labels[place]), int(predicted[place]), float(probabilities[place]))
                     for place in np.flatnonzero(predicted != labels)]
    totals = np.append(loss_sum, confusion)
    loss_sum, *confusion = cluster.total(sess, totals) if cluster else totals
    mistakes.sort(key=lambda mistake: -mistake[3])
    return Evaluation(float(loss_sum) / len(split), np.array(confusion, np.int64).reshape([len(data.class_names)] * 2),
                      mistakes[:SHOWN_MISTAKES])


def views_of(images, flip, shift):
    """Returns the views of images whose logits a test averages (test-time augmentation).

    Args:
        images: normalized images [N, H, W, C].
        flip: whether every second view is mirrored left to right.
        shift: if not 0, the images are shifted diagonally by this many pixels, in four directions. The border is
            filled with 0, the mean colour.
    Returns:
        a list of tensors [N, H, W, C].
    """
    views = [images, images] if flip else [images]
    if shift:
        height, width = (int(side) for side in images.shape[1:3])
        padded = tf.pad(images, [[0, 0], [shift, shift], [shift, shift], [0, 0]])
        views = [padded[:, y:y + height, x:x + width] for y in (0, 2 * shift) for x in (0, 2 * shift)]
    if flip:
        views[1::2] = [tf.reverse(view, [2]) for view in views[1::2]]
    return views
