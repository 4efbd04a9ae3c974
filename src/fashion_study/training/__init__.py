"""One model: its network, its training and its evaluation with Keras."""
