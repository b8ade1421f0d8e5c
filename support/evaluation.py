"""How is a network evaluated on a split, and which metrics result?"""

import collections
import dataclasses
import math
import types

import numpy as np
import tensorflow.compat.v1 as tf

from support.data import color_preprocessing
from support.explanations import class_maps, classifier_kernel
from support.projector import shown_images

SHOWN_MISTAKES = 12
SHOWN_CLASSES = 20  # a confusion matrix of more classes is too wide to read
MATRIX_CLASSES = 200  # with more classes there is no confusion matrix, which would grow with their square
UNBALANCED = 1.5  # times as many images in the largest class as in the smallest
TOP_5_CLASSES = 10  # with more classes, the accuracy among the five most probable classes is counted
LISTED_CONFUSIONS = 200  # in the metrics, where there is no confusion matrix

# Of a network after training, tensors [N, classes], [N, H, W, C] and [N, C]: see `Densenet.DenseNet`.
Outputs = collections.namedtuple("Outputs", "logits features embedding")


@dataclasses.dataclass
class Evaluation:
    """The result of an evaluation. Its memory grows with the number of images and classes, not with classes squared.

    Attributes:
        loss: the mean loss.
        labels: the true class of each image of the split, int64 [N].
        predicted: the predicted class of each image, int64 [N].
        class_num: the number of classes.
        mistakes: [(index of the image in its split, true class, predicted class, probability of the predicted class)],
            at most SHOWN_MISTAKES, in order of decreasing probability.
        maps: the class activation map of each mistake's predicted class, float32 [mistakes, h, w]; None without any.
        in_top_5: the number of images whose true class is among the five most probable ones; None: not counted.
        embedding: (indices of images in their split, int64 [n]; what global average pooling gives for them, float32
            [n, C]); None: not asked for.
    """

    loss: float
    labels: np.ndarray
    predicted: np.ndarray
    class_num: int
    mistakes: list
    maps: np.ndarray = None
    embedding: tuple = None
    in_top_5: int = None

    @property
    def accuracy(self):
        """The share of images that are classified correctly."""
        return int(np.count_nonzero(self.labels == self.predicted)) / len(self.labels)

    @property
    def balanced_accuracy(self):
        """The mean recall of the classes that have images (Brodersen et al. 2010), however many images each has."""
        return float(np.mean([recall for recall in self.class_recall() if recall is not None]))

    @property
    def top_5_accuracy(self):
        """The share of images whose true class is among the five most probable ones; None: not counted."""
        return None if self.in_top_5 is None else self.in_top_5 / len(self.labels)

    def score(self, best_by):
        """What the best weights have the highest value of, above 0; `best_by`: as the setting."""
        # exp(-loss): the geometric mean of the probabilities of the true classes
        return math.exp(-self.loss) if best_by == "loss" else getattr(self, best_by)

    def accuracies(self, with_balanced=False):
        """The accuracies as text, see `accuracies_as_text`; with_balanced: see `balanced_is_asked_for`."""
        return accuracies_as_text(self.labels, with_balanced, self.accuracy, self.balanced_accuracy,
                                  self.top_5_accuracy)

    @property
    def confusion(self):
        """The confusion matrix of all classes, see `confusion_of`; None for more than MATRIX_CLASSES classes."""
        return self.confusion_of(range(self.class_num)) if self.class_num <= MATRIX_CLASSES else None

    def confusion_of(self, classes):
        """Returns the confusion matrix of some classes.

        Args:
            classes: the classes, each once.
        Returns:
            int64 [true class, predicted class], in numbers of images, with rows and columns in the order of `classes`.
            Images that have another true or predicted class are left out.
        """
        place = np.full(self.class_num, -1)
        place[list(classes)] = np.arange(len(classes))
        rows, columns = place[self.labels], place[self.predicted]
        shown = (rows >= 0) & (columns >= 0)
        confusion = np.zeros([len(classes)] * 2, np.int64)
        np.add.at(confusion, (rows[shown], columns[shown]), 1)
        return confusion

    def class_counts(self):
        """Returns the number of images of each class, int64 [class_num]."""
        return np.bincount(self.labels, minlength=self.class_num)

    def class_recall(self):
        """Returns each class's share of images that are classified correctly; None for a class without images."""
        right = np.bincount(self.labels[self.labels == self.predicted], minlength=self.class_num)
        return [int(right) / int(count) if count else None for right, count in zip(right, self.class_counts())]

    def confusions(self):
        """Returns [(number of images, true class, predicted class)] of the wrong predictions, most frequent first."""
        wrong = self.labels != self.predicted
        pairs, counts = np.unique(self.labels[wrong] * self.class_num + self.predicted[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")  # equally frequent ones by their classes, as np.unique sorts them
        return [(int(counts[place]),) + divmod(int(pairs[place]), self.class_num) for place in order]

    def most_confused(self, most):
        """Returns at most `most` classes, in ascending order: those of the most frequent confusions."""
        found = []
        for _, *pair in self.confusions():
            found += [one for one in pair if one not in found]
            if len(found) >= most:
                break
        return sorted(found[:most])

    def as_json(self, class_names):
        """Returns the metrics as a dictionary of plain values.

        Up to MATRIX_CLASSES classes it has the confusion matrix; above, the LISTED_CONFUSIONS most frequent confusions.
        """
        content = {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "images": len(self.labels),
            "class_names": list(class_names),
            "class_recall": self.class_recall(),
        }
        if self.top_5_accuracy is not None:
            content["top_5_accuracy"] = self.top_5_accuracy
        if self.class_num <= MATRIX_CLASSES:
            return dict(content, confusion_matrix=self.confusion.tolist())
        return dict(content, frequent_confusions=[
            {"images": count, "true": class_names[true], "predicted": class_names[predicted]}
            for count, true, predicted in self.confusions()[:LISTED_CONFUSIONS]])

    def table(self, class_names):
        """Yields lines of text: each class's recall, and the confusion matrix or the most frequent confusions.

        Of more than MATRIX_CLASSES classes, only those with the lowest recall are shown.
        """
        if self.class_num > SHOWN_CLASSES:
            yield from self._long_table(class_names)
            return
        confusion = self.confusion
        width = max(map(len, class_names))
        heads = next(heads for heads in ([name[:5] for name in class_names], [name[-5:] for name in class_names],
                                         class_names) if len(set(heads)) == len(class_names))
        cell = max(5, len(str(confusion.max())), *map(len, heads))
        yield "%-*s    recall  predicted class" % (width, "class")
        yield "%-*s            %s" % (width, "", "  ".join("%*s" % (cell, head) for head in heads))
        for name, recall, row in zip(class_names, self.class_recall(), confusion):
            yield "%-*s   %7s  %s" % (width, name, _percent(recall), "  ".join(
                "%*s" % (cell, count or ".") for count in row.tolist()))

    def _long_table(self, class_names):
        recall = self.class_recall()
        shown = list(range(self.class_num))
        if self.class_num > MATRIX_CLASSES:
            tested = [one for one in shown if recall[one] is not None]
            shown = sorted(tested, key=lambda one: recall[one])[:SHOWN_CLASSES]
            yield "lowest recall, of %d classes%s:" % (
                self.class_num, "" if len(tested) == self.class_num else ", %d of them with images" % len(tested))
        else:
            yield "recall of each class:"
        width = max(len(class_names[one]) for one in shown)
        for one in shown:
            yield "%-*s  %s" % (width, class_names[one], _percent(recall[one]))
        yield "most frequent confusions:"
        for count, true, predicted in self.confusions()[:SHOWN_CLASSES]:
            yield "%5d times  %s for %s" % (count, class_names[true], class_names[predicted])


def balanced_is_asked_for(config):
    """Whether the settings of a run are for classes of unequal size, so that it always shows balanced accuracy."""
    return config.class_weights == "balanced" or config.best_by == "balanced_accuracy"


def accuracies_as_text(labels, with_balanced, accuracy, balanced_accuracy=None, top_5_accuracy=None):
    """The accuracies that are shown: balanced accuracy only if asked for, or if the classes differ much in size.

    Args:
        labels: those of the split, int64 [N].
        with_balanced: whether balanced accuracy is asked for.
        accuracy, balanced_accuracy, top_5_accuracy: as of `Evaluation`; None: not known.
    """
    counts = np.bincount(labels)
    unbalanced = counts.max() > UNBALANCED * counts[counts > 0].min()  # accuracy says little about the small classes
    shown = {"accuracy": accuracy, "balanced accuracy": balanced_accuracy if with_balanced or unbalanced else None,
             "top-5 accuracy": top_5_accuracy}
    return ", ".join("%s %s" % (name, _percent(share)) for name, share in shown.items() if share is not None)


def _percent(share):
    return "none" if share is None else "%.2f%%" % (100 * share)


def evaluate_split(sess, net, split, data, cluster=None, embed=False):
    """Evaluates all images of a split, including the incomplete last batch; returns an `Evaluation`.

    Args:
        sess: the session.
        net: the result of `Densenet.build_evaluation`: placeholders and tensors.
        split: a `support.data.Split`.
        data: the `support.data.DataSet` of the split.
        cluster: a `support.workers.Cluster`; its workers evaluate the batches in turn, and each gets the result of all.
            None: this process evaluates all batches.
        embed: whether to collect the embedding, of the images that `support.projector.shown_images` chooses.
    """
    batch_size = int(net.images.shape[0])
    task, workers = (cluster.task, len(cluster.workers)) if cluster else (0, 1)
    counts_top_5 = len(data.class_names) > TOP_5_CLASSES
    tensors = [net.losses, net.predicted, net.probabilities, net.in_top_5] + ([net.embedding] if embed else [])
    channels = int(net.embedding.shape[1]) if embed else 0
    embedded = shown_images(len(split), channels)
    sums = np.zeros(2)  # of the losses, and of images with the true class among the five most probable ones
    # Of the images of other workers, everything is 0.
    of_images = np.zeros([2, len(split)])  # predicted class and its probability
    embedding = np.zeros([len(embedded), channels], np.float32)
    for start in range(task * batch_size, len(split), workers * batch_size):
        rows = np.arange(start, min(start + batch_size, len(split)))
        losses, predicted, probabilities, in_top_5, *pooled = _run_on(sess, net, tensors, split, data, rows)
        sums += losses.sum(dtype=np.float64), np.count_nonzero(in_top_5)
        of_images[:, rows] = predicted, probabilities
        if embed:
            here = (embedded >= start) & (embedded < start + len(rows))
            embedding[here] = pooled[0][embedded[here] - start]
    totals = np.concatenate([sums, of_images.ravel(), embedding.ravel()])
    if cluster:
        totals = np.asarray(cluster.total(sess, totals))
    (loss_sum, in_top_5), of_images, vectors = np.split(totals, [2, 2 + of_images.size])
    predicted, probabilities = of_images.reshape(2, -1)
    predicted = predicted.astype(np.int64)
    labels = np.asarray(split.labels)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-probabilities[wrong], kind="stable")][:SHOWN_MISTAKES]
    mistakes = [(int(index), int(labels[index]), int(predicted[index]), float(probabilities[index]))
                for index in shown]
    maps = [_run_on(sess, net, [net.maps], split, data, shown[start:start + batch_size])[0]
            for start in range(0, len(shown), batch_size)]
    return Evaluation(float(loss_sum) / len(split), labels, predicted, len(data.class_names), mistakes,
                      maps=np.concatenate(maps) if maps else None, in_top_5=int(in_top_5) if counts_top_5 else None,
                      embedding=(embedded, vectors.reshape(-1, channels).astype(np.float32)) if embed else None)


def _run_on(sess, net, tensors, split, data, rows):
    """The values of tensors [N, …] for at most a batch of a split's images, those of the indices `rows`."""
    count = len(rows)
    rows = np.append(rows, np.repeat(rows[:1], int(net.images.shape[0]) - count))  # copies, which are not counted
    images = color_preprocessing(split.images[rows], data.mean, data.deviation)
    return [values[:count] for values in sess.run(tensors, {net.images: images, net.labels: split.labels[rows]})]


def outputs_of(images, labels, parts, loss_of):
    """What `evaluate_split` runs and feeds, a namespace.

    Args:
        images, labels: the placeholders, [N, H, W, C] and [N].
        parts: for each part of the images, its Outputs or a list in their order.
        loss_of: `Densenet.loss_of`.
    Returns:
        images, labels; of each image [N] `losses`, `predicted`, its class, `probabilities`, that of the class, and
        `in_top_5`, whether the true class is among the five most probable ones; `embedding` [N, channels]; `maps`
        [N, h, w], the class activation map of the predicted class.
    """
    logits, features, embedding = (tf.concat(each, 0) for each in zip(*parts))
    predicted = tf.argmax(logits, 1)
    maps = class_maps(features, classifier_kernel(), predicted)
    return types.SimpleNamespace(
        images=images, labels=labels, losses=loss_of(logits, labels), embedding=embedding, predicted=predicted,
        maps=maps, probabilities=tf.reduce_max(tf.nn.softmax(logits), 1), in_top_5=in_top(logits, labels, 5))


def in_top(logits, labels, most):
    """Whether the true class is among the `most` most probable ones, bool [N]; `logits`: [N, classes].

    Of equal logits the first ones count, as in argmax. tf.nn.in_top_k counts all, also of a network that has collapsed.
    """
    indices = tf.math.top_k(logits, min(most, int(logits.shape[1]))).indices
    return tf.reduce_any(tf.equal(tf.cast(indices, labels.dtype), labels[:, None]), 1)


def views_of(images, flip, shift, border=None):
    """Returns the views of images whose logits a test averages (test-time augmentation).

    Args:
        images: normalized images [N, H, W, C].
        flip: whether every second view is mirrored left to right.
        shift: if not 0, the images are shifted diagonally by this many pixels, in four directions.
        border: the normalized pixel that fills what a shift uncovers, [C]; None: 0, the mean colour.
    Returns:
        a list of tensors [N, H, W, C].
    """
    views = [images, images] if flip else [images]
    if shift:
        height, width = (int(side) for side in images.shape[1:3])
        around = [[0, 0], [shift, shift], [shift, shift], [0, 0]]
        padded = tf.pad(images, around)
        if border is not None:
            outside = 1 - np.pad(np.ones([1, height, width, 1], np.float32), around, "constant")
            padded += tf.constant(outside) * border
        views = [padded[:, y:y + height, x:x + width] for y in (0, 2 * shift) for x in (0, 2 * shift)]
    if flip:
        views[1::2] = [tf.reverse(view, [2]) for view in views[1::2]]
    return views
