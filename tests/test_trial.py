"""The promise of a failed result: its cause is one line, whatever the traceback."""

import pytest

from fashion_study.text import truncated_traceback
from fashion_study.trial import CAUSE_LENGTH, FailReason, TrialResult, TrialState

# As TensorFlow tells of an operation that failed in a graph.
IN_A_GRAPH = """\
InvalidArgumentError: Graph execution error:

Detected at node model/dense/MatMul defined at (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main

  File "/site-packages/keras/src/layers/core/dense.py", line 193, in call

Matrix size-incompatible: In[0]: [512,3], In[1]: [4,10]
\t [[{{node model/dense/MatMul}}]] [Op:__inference_one_step_on_data]
"""


def failed(message: str) -> TrialResult:
    return TrialResult(3, 1, TrialState.FAILED, 1, reason=FailReason.ERROR, message=message)


def traceback_of(error: Exception) -> str:
    try:
        raise error
    except Exception:
        return truncated_traceback()


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("", ""),
        ("The loss became nan in epoch 2 (validation: nan).", "The loss became nan in epoch 2 (validation: nan)"),
        (traceback_of(MemoryError()), "MemoryError"),
        (traceback_of(ValueError("of\n\n  two lines.")), "ValueError: of two lines"),
        (
            f"Traceback (most recent call last):\n{IN_A_GRAPH}",
            "Matrix size-incompatible: In[0]: [512,3], In[1]: [4,10] "
            "[[{{node model/dense/MatMul}}]] [Op:__inference_one_step_on_data]",
        ),
        (traceback_of(OSError("at http://me:secret@host\x1b[2J")), "OSError: at http://host\\x1b[2J"),
    ],
)
def test_the_cause_of_a_failure_is_what_its_exception_says(message: str, cause: str) -> None:
    assert failed(message).cause == cause


def test_a_long_cause_is_cut() -> None:
    assert failed("x" * 10_000).cause == "x" * (CAUSE_LENGTH - 1) + "…"
