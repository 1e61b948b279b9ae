"""What the tests of training share."""

import pytest


@pytest.fixture
def eager():
    """TensorFlow without tracing: to trace a step of a few hundred layers takes longer than a few steps."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
