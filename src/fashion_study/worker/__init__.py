"""One attempt at a trial, in a process of its own."""

# Before anything here imports TensorFlow: this package chooses TensorFlow's kernels.
import fashion_study.training as _training  # noqa: F401
