"""What is in a run's curves.csv, and how does a resumed run go on with it?"""

import csv
import os

from support import UserError

COLUMNS = ("epoch", "step", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
           "test_loss", "test_accuracy", "seconds", "images_per_second", "validation_balanced_accuracy",
           "test_balanced_accuracy")


class Curves:
    """The file curves.csv: a row for each epoch, in COLUMNS. It is replaced as a whole, so that it is never half.

    Cells are empty where there is no value; the columns of the test are there only if a row has them. After a failure
    to write, `problem` says what went wrong; the run stops once it is saved.

    Args:
        path: the file.
        step: where the run goes on; rows of later steps are dropped, of a process that was killed before it saved.
    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path, step):
        self.path = path
        self.problem = None
        self._rows = [row for row in _rows_of(path) if int(row["step"]) <= step]
        self._write()
        self.stop_if_it_cannot_write()

    def add(self, **values):
        """Adds the row of an epoch, {column: number}, and writes the file."""
        self._rows.append({name: ("%d" if isinstance(value, int) else "%.8g") % value
                           for name, value in values.items()})
        self._write()

    def stop_if_it_cannot_write(self):
        """Raises UserError if writing has failed; to be called when the run is saved."""
        if self.problem:
            raise UserError("cannot write %s (%s): make it writable, or make room there; the same command then goes on "
                            "from the newest checkpoint" % (self.path, self.problem))

    def _write(self):
        tested = any(row.get("test_loss") for row in self._rows)
        columns = [name for name in COLUMNS if tested or not name.startswith("test_")]
        try:
            with open(self.path + ".new", "w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(self._rows)
            os.replace(self.path + ".new", self.path)
        except OSError as error:
            self.problem = error.strerror


def _rows_of(path):
    """The rows of a file, {column: text}, without those whose step cannot be read; [] where there is no file."""
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):  # ValueError: no text
        return []
    return [row for row in rows if (row.get("step") or "").isdecimal()]
