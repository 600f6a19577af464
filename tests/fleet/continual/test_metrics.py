from __future__ import annotations

import numpy as np
import pytest

from fleet.continual.metrics import backward_transfer, forward_transfer, over_time

NAN = float("nan")
RIGHT, WRONG = np.array([[4, 0], [0, 4]]), np.array([[0, 4], [4, 0]])


def test_periods_without_windows_do_not_count_in_a_mean_over_time() -> None:
    found = over_time([{}, {"a": RIGHT, "b": WRONG}, {"a": np.zeros((2, 2), np.int64)}])
    assert np.isnan(found.pooled).tolist() == [True, False, True]
    assert (found.average, found.worst_average) == (pytest.approx(0.5), 0.0)
    nobody = over_time([{}, {}])
    assert np.isnan([nobody.average, nobody.worst_average]).all()


def test_tasks_that_nobody_could_be_judged_on_do_not_count_in_transfer() -> None:
    scores = np.array([[NAN, 0.5, 0.2], [NAN, 0.6, 0.3], [NAN, 0.5, 0.9]])
    assert backward_transfer(scores) == pytest.approx(-0.1)
    assert forward_transfer(scores, np.array([NAN, 0.25, NAN])) == pytest.approx(0.25)
    nothing = np.full((3, 3), NAN)
    assert np.isnan([backward_transfer(nothing), forward_transfer(nothing, nothing[0])]).all()
