"""Common lines: detection rates on known poses."""

import numpy as np
import pytest

from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import common_line_detection_rate
from skcryo.orientation import detect_common_lines


@pytest.mark.parametrize("score, least", [("likelihood", 0.45), ("correlation", 0.45)])
def test_most_lines_are_found_in_moderate_noise(score, least):
    """Guessing finds .006."""
    stack, truth = make_particles(make_molecule(33, random_state=0), 60, snr=1.0, random_state=0)
    found = detect_common_lines(stack, score=score)
    assert common_line_detection_rate(found.angles, truth.rotations) > least
    assert np.array_equal(found.checked, ~np.eye(60, dtype=bool))
    assert np.array_equal(found.scores, found.scores.T)
