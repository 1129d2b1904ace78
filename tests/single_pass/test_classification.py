"""Scores as Transformers' pipeline computes them."""

from __future__ import annotations

import numpy as np
import pytest

from qeff_framework.single_pass import class_scores

LOGITS = np.array([[1.0, -2.0, 500.0], [0.0, 0.5, -700.0]], dtype=np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("logits", "problem_type", "function"),
    [
        (LOGITS, None, "softmax"),
        (LOGITS, "single_label_classification", "softmax"),
        (LOGITS, "multi_label_classification", "sigmoid"),
        (LOGITS[:, :1], None, "sigmoid"),
        (LOGITS, "regression", "none"),
    ],
)
def test_rule_of_the_pipeline(logits, problem_type, function):
    from transformers.pipelines import text_classification as pipeline

    reference = {
        "softmax": pipeline.softmax,
        "sigmoid": lambda row: pipeline.sigmoid(row.clip(-80, None)),
        "none": lambda values: values,
    }
    expected = [reference[function](row) for row in logits]

    np.testing.assert_allclose(class_scores(logits, problem_type), expected, rtol=1e-5, atol=1e-6)
