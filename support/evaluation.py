"""How is a network evaluated on a split, and what are the figures?"""

import dataclasses

import numpy as np

from support.data import color_preprocessing

SHOWN_MISTAKES = 25
SHOWN_CLASSES = 20  # a confusion matrix of more classes is too wide to be read


@dataclasses.dataclass
class Evaluation:
    """The mean loss and the predicted classes.

    `confusion`: int64 [true class, predicted class], numbers of images. `mistakes`: [(index of the image in its split,
    true class, predicted class, its probability)], the most confident first, at most SHOWN_MISTAKES.
    """

    loss: float
    confusion: np.ndarray
    mistakes: list

    @property
    def accuracy(self):
        """The share of images that were classified correctly."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def class_accuracies(self):
        """For each class the share of its images that were classified correctly; None where it has no images."""
        return [int(right) / int(count) if count else None
                for right, count in zip(np.diagonal(self.confusion), self.confusion.sum(1))]

    def confusions(self):
        """[(number of images, true class, predicted class)] of the pairs that were confused, the most frequent first"""
        pairs = [(int(count), true, predicted) for (true, predicted), count in np.ndenumerate(self.confusion)
                 if count and true != predicted]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))

    def as_json(self, class_names):
        """The figures as plain values."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "images": int(self.confusion.sum()),
            "class_names": list(class_names),
            "class_accuracies": self.class_accuracies(),
            "confusion_matrix": self.confusion.tolist(),
        }

    def table(self, class_names):
        """Lines of text: the accuracy of each class, and the confusion matrix or the most frequent confusions."""
        width = max(map(len, class_names))
        if len(class_names) > SHOWN_CLASSES:
            for name, accuracy in zip(class_names, self.class_accuracies()):
                yield "%-*s  %s" % (width, name, _percent(accuracy))
            yield "most often taken for another class:"
            for count, true, predicted in self.confusions()[:SHOWN_CLASSES]:
                yield "%5d times  %s for %s" % (count, class_names[true], class_names[predicted])
            return
        cell = max(5, len(str(self.confusion.max())))
        yield "%-*s  accuracy  taken for" % (width, "class")
        yield "%-*s            %s" % (width, "", "  ".join("%*s" % (cell, name[:cell]) for name in class_names))
        for name, accuracy, row in zip(class_names, self.class_accuracies(), self.confusion):
            yield "%-*s   %7s  %s" % (width, name, _percent(accuracy), "  ".join(
                "%*s" % (cell, count or ".") for count in row.tolist()))


def _percent(share):
    return "none" if share is None else "%.2f%%" % (100 * share)


def evaluate_split(sess, net, split, data, cluster=None):
    """Evaluates every image of a split, those of the incomplete last batch included; returns an `Evaluation`.

    Args:
        net: the result of `Densenet.build_evaluation`: placeholders and tensors.
        split: a `support.data.Split`; `data`: its DataSet.
        cluster: the `support.workers.Cluster` whose workers take turns with the batches; None: one process. Figures are
            of all workers, `mistakes` of this one.
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
        if count < batch_size:  # pads with copies of the first image and does not count them
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
