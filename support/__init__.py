"""What Densenet.py leans on. Nothing here knows the network. Which module answers which question:

    settings            how a hyperparameter is declared, checked, overridden and shown
    configuration       which value each has in a run, where it comes from, and what the run is called
    networks            which networks have a name, and what a network costs
    pretrained          which trained weights a run can start from
    weight_files        how files of weights by Keras and PyTorch are read
    optimizers          Adam with weight decay, momentum, and the paper's recipe
    weight_average      averages of the weights over the steps, and where they are used instead
    variables           variables that accompany many others, such as an optimizer's slots
    batch_statistics    how layers share batch statistics; recomputation; fast kernels
    convolution         how a convolution gets its gradient fast on a CPU
    tflearn_pooling     how tflearn's pooling is used without its side effects

    data                what a data set is; the validation split; normalization
    augmentation        which batches an epoch has; random changes of images
    image_folder        how a folder of images becomes a data set
    folder_layout       which folders are classes, and which are training, validation and test images
    image_reading       how an image file is read, whatever its format and depth
    file_reading        how data files are found, and read without trusting them
    download            how files are downloaded and verified
    prefetch            how batches are prepared during a step

    training_run        what happens around the steps: resume, time, report, save, stop, finish
    run_directory       how a run's directory is locked, checked and written
    checkpoints         how checkpoints are saved, pruned and restored
    curves              what is in a run's curves.csv
    terminal            what the terminal shows
    tensorboard         what TensorBoard gets
    interruption        how a signal stops a run
    evaluation          how a network is evaluated, and the metrics
    pictures            confusion matrix, mistakes, heat maps and feature reuse as pictures
    explanations        what an answer is due to: class activation maps, feature reuse
    projector           how embeddings get into TensorBoard's projector
    modes               how a trained run is found, evaluated and exported
    prediction          how image files are classified
    appearance          whether an image looks like the training images; handwriting
    export              SavedModel, frozen graph, TFLite, ONNX: written, compared, measured
    graph_rewriting     the form of an exported graph that other tools understand
    graph_reading       how an exported graph reads JPEG and PNG files itself
    command_line        --help, modes, exit status

    replicas            one of the devices that share a batch
    workers             several processes and their devices
    heartbeat           how a lost worker is noticed
    machine             how many cores there are; what TensorFlow computes fast on them
    environment         what is set before TensorFlow is imported
"""

import os
import sys

# TensorFlow reads these once in a process: the first one when it is imported (oneDNN's kernels, by default used on some
# processors only), the second one before its first operation (thread pools as `support.workers.Cluster` needs them).
# So they are set here, by whichever module is imported first.
TENSORFLOW_WAS_FIRST = "tensorflow" in sys.modules and "TF_ENABLE_ONEDNN_OPTS" not in os.environ
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_OVERRIDE_GLOBAL_THREADPOOL", "1")


class UserError(Exception):
    """An error that the user can put right. The message is one sentence: what is wrong, where, what to do."""


def cause_of(error):
    """Why an operation of TensorFlow failed, one line. `error`: a tf.errors.OpError, of which it is the message."""
    lines = error.message.splitlines() or [type(error).__name__]
    places = [place for place, line in enumerate(lines) if line.startswith("\t [[")]  # the operation's name follows
    return lines[max(places[0] - 1, 0) if places else 0].strip()  # TensorFlow 2 has a heading before it


def say(line):
    """Prints a line at once. If nobody reads on (`| head`), the line is lost and the training goes on."""
    try:
        try:
            print(line, flush=True)
        except UnicodeEncodeError:  # a file's name, in letters that the terminal lacks
            print(line.encode("ascii", "backslashreplace").decode(), flush=True)
    except OSError:
        # Not sys.stdout = …: the interpreter's own flush at its end would still fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
