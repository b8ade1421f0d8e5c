"""How is tflearn's global average pooling used without its side effects?"""

import functools
import warnings

import tensorflow.compat.v1 as tf


def global_average_pooling(x):
    """The mean over height and width, [N, H, W, C] to [N, C], by tflearn; None where tflearn cannot be imported."""
    tflearn = _import_tflearn()
    if tflearn is None:
        return None
    pooled = tflearn.layers.conv.global_avg_pool(x, name="global_average_pooling")
    # tflearn keeps each layer's output in a collection of the graph, which a saved graph would carry along.
    tf.get_default_graph().clear_collection(tf.GraphKeys.LAYER_TENSOR + "/global_average_pooling")
    return pooled


@functools.lru_cache(maxsize=None)
def _import_tflearn():
    """tflearn, or None. Its import adds a variable and operations to the default graph, here to one that is dropped.

    It also calls `disable_v2_behavior`, which would change TensorFlow for everything else in the process, for instance
    for Keras in the same notebook. Here the call has no effect: a graph of one's own needs no such switch.
    """
    switch = tf.disable_v2_behavior
    with tf.Graph().as_default(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tf.disable_v2_behavior = lambda: None
            import PIL.Image
            from tensorflow.python.util import nest

            # tflearn 0.5.0 uses names that newer versions of TensorFlow and Pillow no longer have.
            if not hasattr(nest, "is_sequence"):
                nest.is_sequence = nest.is_nested
            if not hasattr(PIL.Image, "ANTIALIAS"):
                PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
            import tflearn
        except (ImportError, AttributeError) as error:
            tf.logging.error("tflearn cannot be imported (%s): using tf.reduce_mean instead", error)
            return None
        finally:
            tf.disable_v2_behavior = switch
    return tflearn
