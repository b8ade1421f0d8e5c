"""How is a network evaluated on a split, and which metrics result?"""

import dataclasses

import numpy as np
import tensorflow.compat.v1 as tf

from support.data import color_preprocessing

SHOWN_MISTAKES = 12
SHOWN_CLASSES = 20  # a confusion matrix of more classes is too wide to read
MATRIX_CLASSES = 200  # with more classes there is no confusion matrix, which would grow with their square
LISTED_CONFUSIONS = 200  # in the metrics, where there is no confusion matrix


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
    """

    loss: float
    labels: np.ndarray
    predicted: np.ndarray
    class_num: int
    mistakes: list

    @property
    def accuracy(self):
        """The share of images that are classified correctly."""
        return int(np.count_nonzero(self.labels == self.predicted)) / len(self.labels)

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

    def class_accuracies(self):
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
            "images": len(self.labels),
            "class_names": list(class_names),
            "class_accuracies": self.class_accuracies(),
        }
        if self.class_num <= MATRIX_CLASSES:
            return dict(content, confusion_matrix=self.confusion.tolist())
        return dict(content, frequent_confusions=[
            {"images": count, "true": class_names[true], "predicted": class_names[predicted]}
            for count, true, predicted in self.confusions()[:LISTED_CONFUSIONS]])

    def table(self, class_names):
        """Yields lines of text: each class's accuracy, and the confusion matrix or the most frequent confusions.

        Of more than MATRIX_CLASSES classes, only those with the lowest accuracy are shown.
        """
        if self.class_num > SHOWN_CLASSES:
            yield from self._long_table(class_names)
            return
        confusion = self.confusion
        width = max(map(len, class_names))
        cell = max(5, len(str(confusion.max())))
        yield "%-*s  accuracy  predicted class" % (width, "class")
        yield "%-*s            %s" % (width, "", "  ".join("%*s" % (cell, name[:cell]) for name in class_names))
        for name, accuracy, row in zip(class_names, self.class_accuracies(), confusion):
            yield "%-*s   %7s  %s" % (width, name, _percent(accuracy), "  ".join(
                "%*s" % (cell, count or ".") for count in row.tolist()))

    def _long_table(self, class_names):
        accuracies = self.class_accuracies()
        shown = list(range(self.class_num))
        if self.class_num > MATRIX_CLASSES:
            tested = [one for one in shown if accuracies[one] is not None]
            shown = sorted(tested, key=lambda one: accuracies[one])[:SHOWN_CLASSES]
            yield "lowest accuracies, of %d classes%s:" % (
                self.class_num, "" if len(tested) == self.class_num else ", %d of them with images" % len(tested))
        width = max(len(class_names[one]) for one in shown)
        for one in shown:
            yield "%-*s  %s" % (width, class_names[one], _percent(accuracies[one]))
        yield "most frequent confusions:"
        for count, true, predicted in self.confusions()[:SHOWN_CLASSES]:
            yield "%5d times  %s for %s" % (count, class_names[true], class_names[predicted])


def _percent(share):
    return "none" if share is None else "%.2f%%" % (100 * share)


def evaluate_split(sess, net, split, data, cluster=None):
    """Evaluates all images of a split, including the incomplete last batch; returns an `Evaluation`.

    Args:
        sess: the session.
        net: the result of `Densenet.build_evaluation`: placeholders and tensors.
        split: a `support.data.Split`.
        data: the `support.data.DataSet` of the split.
        cluster: a `support.workers.Cluster`; its workers evaluate the batches in turn, and each gets the result of all.
            None: this process evaluates all batches.
    """
    batch_size = int(net.images.shape[0])
    task, workers = (cluster.task, len(cluster.workers)) if cluster else (0, 1)
    loss_sum = 0.0
    of_images = np.zeros([2, len(split)])  # predicted class and its probability; 0 for the images of other workers
    for start in range(task * batch_size, len(split), workers * batch_size):
        images = color_preprocessing(split.images[start:start + batch_size], data.mean, data.deviation)
        labels = split.labels[start:start + batch_size]
        count = len(labels)
        if count < batch_size:  # pad with copies of the first image, which are not counted
            images = np.concatenate([images, images[:1].repeat(batch_size - count, axis=0)])
            labels = np.concatenate([labels, labels[:1].repeat(batch_size - count)])
        losses, predicted, probabilities = (values[:count] for values in sess.run(
            [net.losses, net.predicted, net.probabilities], {net.images: images, net.labels: labels}))
        loss_sum += losses.sum(dtype=np.float64)
        of_images[:, start:start + count] = predicted, probabilities
    totals = np.append(loss_sum, of_images)
    if cluster:
        totals = np.asarray(cluster.total(sess, totals))
    predicted, probabilities = totals[1:].reshape(of_images.shape)
    predicted = predicted.astype(np.int64)
    labels = np.asarray(split.labels)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-probabilities[wrong], kind="stable")][:SHOWN_MISTAKES]
    mistakes = [(int(index), int(labels[index]), int(predicted[index]), float(probabilities[index]))
                for index in shown]
    return Evaluation(float(totals[0]) / len(split), labels, predicted, len(data.class_names), mistakes)


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
