"""Draws the pictures of README.md and docs/ as SVG files beside this one, with the standard library alone.

    python docs/draw.py               all of them; from curves.json, growth.json and equal_minutes.json
    python docs/draw.py logs/mnist    first takes the curves from the logs of a run (this needs TensorFlow)
"""

import glob
import html
import json
import math
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
INK, PALE, PAPER = "#24323d", "#8a99a6", "#ffffff"
COLOURS = {"input": "#d9dee3", "conv": "#9fc5e8", "norm": "#ffe08a", "relu": "#f6b26b", "pool": "#b6d7a8",
           "concat": "#d5c8ea", "out": "#ea9999"}
LAYERS = ("#9fc5e8", "#b6d7a8", "#ffe08a", "#f6b26b", "#ea9999", "#d5c8ea")


class Drawing:
    """An SVG picture on white, that reads on a dark page, too."""

    def __init__(self, width, height):
        self.width, self.height = width, height
        self.parts = [
            '<rect width="%d" height="%d" rx="8" fill="%s"/>' % (width, height, PAPER),
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="%s"/></marker></defs>' % INK]

    def box(self, x, y, width, height, text="", colour=PAPER, size=13, dashed=False):
        """A rectangle with lines of text in its middle."""
        self.parts.append('<rect x="%g" y="%g" width="%g" height="%g" rx="5" fill="%s" stroke="%s"%s/>' % (
            x, y, width, height, colour, INK, ' stroke-dasharray="5 4"' if dashed else ""))
        lines = text.split("\n")
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + (number - (len(lines) - 1) / 2) * (size + 3), line, size)

    def text(self, x, y, text, size=13, anchor="middle", colour=INK, bold=False):
        """A line of text at a point."""
        self.parts.append('<text x="%g" y="%g" font-size="%g" text-anchor="%s" fill="%s" dominant-baseline="central"%s>'
                          '%s</text>' % (x, y, size, anchor, colour, ' font-weight="bold"' if bold else "",
                                         html.escape(text)))

    def arrow(self, *points, bend=0.0, colour=INK):
        """From the first point to the last, straight, or once with a bend upwards of so many pixels."""
        (x, y), (to_x, to_y) = points[0], points[-1]
        if bend:
            way = "M%g,%g C%g,%g %g,%g %g,%g" % (x, y, x, y - bend, to_x, to_y - bend, to_x, to_y)
        else:
            way = "M" + " L".join("%g,%g" % point for point in points)
        self.parts.append('<path d="%s" fill="none" stroke="%s" stroke-width="1.5" marker-end="url(#tip)"/>'
                          % (way, colour))

    def line(self, points, colour, width=2.0):
        """A line through points."""
        self.parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="%g" stroke-linejoin="round"/>'
                          % (" ".join("%.1f,%.1f" % point for point in points), colour, width))

    def axes(self, left, top, width, height, rows, columns):
        """Lines across a plot and the numbers beside and below it: [(share of the height or width, text)]."""
        for share, text in rows:
            y = top + height * (1 - share)
            self.line([(left, y), (left + width, y)], "#e4e8eb", 1)
            self.text(left - 6, y, text, 11, "end", PALE)
        for share, text in columns:
            self.text(left + width * share, top + height + 14, text, 11, colour=PALE)

    def key(self, x, y, colour, text, length=20):
        """What a line of a colour stands for."""
        self.line([(x, y), (x + length, y)], colour, 3)
        self.text(x + length + 7, y, text, 12, "start")

    def save(self, name):
        """Writes the SVG file."""
        with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
            file.write('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" '
                       'font-family="Helvetica, Arial, sans-serif">\n%s\n</svg>\n'
                       % (self.width, self.height, self.width, self.height, "\n".join(self.parts)))


def dense_connectivity():
    """Each layer's maps go to all later layers of its block."""
    drawing = Drawing(860, 270)
    gap, top = 160, 165
    names = ["x₀", "H₁ → x₁", "H₂ → x₂", "H₃ → x₃", "H₄ → x₄", "transition"]
    notes = ["input, C maps", "adds k maps", "adds k maps", "adds k maps", "adds k maps", "sees C + 4k"]
    lefts = [25 + gap * 0.88 * number for number in range(6)]
    for source in range(5):
        for target in range(source + 1, 6):
            from_x = lefts[source] + 52 + 6 * (target - source)
            if target == source + 1:
                drawing.arrow((lefts[source] + 105, top + 22), (lefts[target] - 1, top + 22), colour=INK)
            else:
                drawing.arrow((from_x, top), (lefts[target] + 52 - 6 * (target - source), top - 1),
                              bend=34 * (target - source) - 10, colour=INK)
    for left, name, note, colour in zip(lefts, names, notes, LAYERS):
        drawing.box(left, top, 105, 44, name, colour, 14)
        drawing.text(left + 52, top + 62, note, 12, colour=PALE)
    drawing.text(430, 24, "Dense connectivity: a layer sees the maps of all layers before it, side by side", 15,
                 bold=True)
    drawing.save("dense_connectivity.svg")


def dense_block():
    """A bottleneck layer, and how its maps join the others; the transition behind the block."""
    drawing = Drawing(860, 300)
    drawing.text(430, 24, "A layer of a dense block, and the transition between two blocks", 15, bold=True)
    steps = [("BN", "norm"), ("ReLU", "relu"), ("1×1 conv\n4k", "conv"), ("BN", "norm"), ("ReLU", "relu"),
             ("3×3 conv\nk", "conv")]
    drawing.box(25, 75, 86, 60, "input\nC maps", COLOURS["input"])
    left = 146
    for text, kind in steps:
        drawing.arrow((left - (34 if left == 146 else 28), 105), (left - 1, 105))
        drawing.box(left, 80, 66, 50, text, COLOURS[kind])
        left += 94
    drawing.arrow((left - 28, 105), (left - 1, 105))
    drawing.box(left, 75, 110, 60, "concatenation\nC + k maps", COLOURS["concat"])
    drawing.arrow((68, 75), (left + 55, 74), bend=36)
    drawing.text(286, 152, "only with bottleneck=True", 12, colour=PALE)
    drawing.box(138, 70, 270, 70, dashed=True, colour="none")

    left = 146
    drawing.box(25, 205, 86, 60, "block\nC maps", COLOURS["input"])
    for text, kind in (("BN", "norm"), ("ReLU", "relu"), ("1×1 conv\nθC", "conv"), ("2×2 mean\nstride 2", "pool")):
        drawing.arrow((left - (34 if left == 146 else 28), 235), (left - 1, 235))
        drawing.box(left, 210, 66, 50, text, COLOURS[kind])
        left += 94
    drawing.arrow((left - 28, 235), (left - 1, 235))
    drawing.box(left, 205, 110, 60, "next block\nθC maps,\nhalf the side", COLOURS["input"], 12)
    drawing.text(left + 225, 226, "dropout, where it is used,", 12, colour=PALE)
    drawing.text(left + 225, 244, "follows each convolution", 12, colour=PALE)
    drawing.save("dense_block.svg")


def network():
    """The whole network, with the sizes of the default on MNIST."""
    drawing = Drawing(860, 230)
    drawing.text(430, 24, "The network that python Densenet.py trains on MNIST (bottleneck layers, k = 12, θ = 0.5)",
                 15, bold=True)
    stages = [("image", "28×28×1", "input", 60), ("3×3 conv\n16", "28×28×16", "conv", 66),
              ("3×3 max\nstride 2", "13×13×16", "pool", 66),
              ("dense block\n4 layers", "13×13×64", "concat", 92), ("transition", "6×6×32", "pool", 78),
              ("dense block\n4 layers", "6×6×80", "concat", 92), ("transition", "3×3×40", "pool", 78),
              ("dense block\n4 layers", "3×3×88", "concat", 92), ("BN, ReLU\nmean", "88", "norm", 66),
              ("linear", "10", "out", 52)]
    left = 14
    for number, (text, shape, kind, width) in enumerate(stages):
        height = 110 - 7 * number
        drawing.box(left, 115 - height / 2, width, height, text, COLOURS[kind], 12)
        drawing.text(left + width / 2, 190, shape, 11, colour=PALE)
        if number:
            drawing.arrow((left - 9, 115), (left, 115))
        left += width + 10
    drawing.save("network.svg")


def side_by_side():
    """Plain network, residual network, dense network."""
    drawing = Drawing(860, 370)
    for column, (name, note) in enumerate((("CNN", "x ← H(x)"), ("ResNet", "x ← H(x) + x"),
                                           ("DenseNet", "x ← [x, H(x)]"))):
        left = 60 + 275 * column
        drawing.text(left + 95, 24, name, 16, bold=True)
        drawing.text(left + 95, 46, note, 13, colour=PALE)
        tops = [100 + 65 * layer for layer in range(4)]
        drawing.arrow((left + 95, 64), (left + 95, tops[0] - 1))
        for layer, top in enumerate(tops):
            drawing.box(left + 45, top, 100, 32, "layer %d" % (layer + 1), LAYERS[layer])
            if layer < 3:
                drawing.arrow((left + 95, top + 32), (left + 95, top + 64))
            if name == "ResNet" and layer < 3:  # around the layer
                drawing.arrow((left + 95, top - 10), (left + 165, top - 10), (left + 165, top + 44),
                              (left + 101, top + 44))
                drawing.text(left + 85, top + 44, "+", 17)
            if name == "DenseNet" and layer:  # the block's input reaches every layer
                drawing.arrow((left + 95, 80), (left + 10, 80), (left + 10, top + 16), (left + 44, top + 16))
            if name == "DenseNet":
                for target in range(layer + 2, 4):
                    out = left + 160 + 16 * (target - layer - 2) + 34 * (layer % 2)
                    start, end = top + 10 + 5 * (target - layer), tops[target] + 8 + 7 * layer
                    drawing.arrow((left + 145, start), (out, start), (out, end), (left + 146, end))
    drawing.save("side_by_side.svg")


def curves(runs):
    """Accuracy over epochs of real runs.

    Args:
        runs: {name: {"title", "command", "from": the lowest accuracy that is shown, "train", "validation", "test":
            [[epoch, accuracy]]}}.
    """
    drawing = Drawing(430 * len(runs), 320)
    for column, run in enumerate(runs.values()):
        left, top, width, height = 60 + 430 * column, 50, 345, 210
        low = run["from"]
        last = run["test"][-1][0]
        drawing.text(left + width / 2, 20, run["title"], 15, bold=True)
        drawing.axes(left, top, width, height,
                     [(part / 4, "%.4g%%" % (100 * (low + (1 - low) * part / 4))) for part in range(5)],
                     [(part / 5, "%g" % round(last * part / 5, 1)) for part in range(6)])
        drawing.text(left + width / 2, top + height + 32, "epochs", 12, colour=PALE)
        for split, colour in (("train", "#f6b26b"), ("validation", "#3d85c6")):
            drawing.line([(left + width * epoch / last, top + height * (1 - (accuracy - low) / (1 - low)))
                          for epoch, accuracy in run[split] if accuracy >= low], colour)
        epoch, accuracy = run["test"][-1]
        y = top + height * (1 - (accuracy - low) / (1 - low))
        drawing.parts.append('<circle cx="%g" cy="%g" r="4.5" fill="#cc0000"/>' % (left + width, y))
        for number, (split, colour) in enumerate((("train", "#f6b26b"), ("validation", "#3d85c6"),
                                                  ("test %.2f%%" % (100 * accuracy), "#cc0000"))):
            drawing.key(left + 195, top + 150 + 18 * number, colour, split)
        drawing.text(left + width / 2, top + height + 50, run["command"], 11, colour=PALE)
    drawing.save("curves.svg")


def growth(panels):
    """How a step grows with the network, the batch and the images: relative to each line's first point, both axes
    logarithmic, so that a power of x is a straight line and its exponent the slope.

    Args:
        panels: {what grows: {measured quantity: [[x, value]]}}.
    """
    colours = {"multiply-adds": PALE, "time": "#3d85c6", "memory": "#e69138", "memory, memory_efficient": "#6aa84f"}
    drawing = Drawing(1120, 350)
    for column, (title, lines) in enumerate(panels.items()):
        left, top, width, height = 45 + 275 * column, 40, 215, 190
        first, last = lines["time"][0][0], lines["time"][-1][0]
        most = max(points[-1][1] / points[0][1] for points in lines.values())
        across, up = width / math.log(last / first), height / math.log(most)  # pixels for each factor of e
        drawing.text(left + width / 2, 18, title, 15, bold=True)
        drawing.axes(left, top, width, height,
                     [(math.log(2 ** power, most), "×%d" % 2 ** power)
                      for power in range(math.floor(math.log2(most)) + 1)],
                     [(math.log(x / first, last / first), "%d" % x) for x, _ in lines["time"]])
        for number, (name, points) in enumerate(lines.items()):
            start = points[0][1]
            drawing.line([(left + across * math.log(x / first), top + height - up * math.log(y / start))
                          for x, y in points], colours[name])
            drawing.key(left, top + height + 38 + 18 * number, colours[name],
                        "%s: slope %.2f" % (name, slope(points)), length=15)
    drawing.save("growth.svg")


def equal_minutes(panels):
    """Accuracy on validation over minutes of training, {machine: {program: [[minutes, accuracy]]}}."""
    low, high = 0.6, 0.92
    drawing = Drawing(480 * len(panels), 350)
    for column, (machine, programs) in enumerate(panels.items()):
        left, top, width, height = 55 + 480 * column, 50, 400, 240
        last = 20 * math.ceil(max(points[-1][0] for points in programs.values()) / 20)
        drawing.text(left + width / 2, 22, machine, 15, bold=True)
        drawing.axes(left, top, width, height,
                     [(part / 8, "%g%%" % (100 * (low + (high - low) * part / 8))) for part in range(9)],
                     [(minutes / last, "%d" % minutes) for minutes in range(0, last + 1, 20)])
        drawing.text(left + width / 2, top + height + 34, "minutes of training", 12, colour=PALE)
        colours = ("#3d85c6", "#e69138", "#6aa84f", "#a64d79")
        for number, (colour, (name, points)) in enumerate(zip(colours, programs.items())):
            drawing.line([(left + width * minutes / last, top + height * (1 - (accuracy - low) / (high - low)))
                          for minutes, accuracy in points if accuracy >= low], colour)
            drawing.key(left + 130, top + 150 + 18 * number, colour, name)
    drawing.save("equal_minutes.svg")


def slope(points):
    """The exponent of y ~ x^slope by least squares over the logarithms of [[x, y]]."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points))
    middle, height = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - middle) * (y - height) for x, y in zip(xs, ys)) / sum((x - middle) ** 2 for x in xs)


def read_curves(log_dir):
    """A run's curves, from TensorBoard's files."""
    import tensorflow.compat.v1 as tf

    found = {}
    for split in ("train", "validation", "test"):
        points = {}
        folders = (log_dir, os.path.join(log_dir, split)) if split == "test" else (os.path.join(log_dir, split),)
        paths = sorted(path for folder in folders for path in glob.glob(os.path.join(folder, "events*")))
        for event in (event for path in paths for event in tf.train.summary_iterator(path)):
            points.update((event.step, round(value.simple_value, 5)) for value in event.summary.value
                          if value.tag == "accuracy")
        found[split] = sorted(points.items())
    with open(os.path.join(log_dir, "..", "..", "model", os.path.basename(log_dir), "result.json")) as file:
        result = json.load(file)
    steps_per_epoch = result["steps"] / result["epochs"]
    return {split: [[round(step / steps_per_epoch, 3), accuracy] for step, accuracy in points]
            for split, points in found.items()}


def main(log_dirs):
    """Draws all pictures; the curves of the runs in `log_dirs` are read first."""
    path = os.path.join(HERE, "curves.json")
    with open(path) as file:
        runs = json.load(file)
    with open(os.path.join(HERE, "growth.json")) as file:
        panels = json.load(file)
    with open(os.path.join(HERE, "equal_minutes.json")) as file:
        programs = json.load(file)
    for log_dir in log_dirs:
        log_dir = os.path.normpath(log_dir)
        name = os.path.basename(log_dir)
        runs.setdefault(name, {"title": name, "command": "", "from": 0.9}).update(read_curves(log_dir))
    if log_dirs:
        with open(path, "w") as file:
            json.dump(runs, file)
            file.write("\n")
    dense_connectivity()
    dense_block()
    network()
    side_by_side()
    curves(runs)
    growth(panels)
    equal_minutes(programs)


if __name__ == "__main__":
    main(sys.argv[1:])
