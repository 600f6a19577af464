"""In which order the classes of a data set appear to a fleet, and when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fleet.continual.events import Classes
from fleet.continual.scenario import Scenario
from fleet.errors import InputError
from fleet.har.dataset import DataSet, select_labels

__all__ = ["classes_of", "order_of", "relabelled"]


def order_of(scenario: Scenario, dataset: DataSet) -> tuple[str, ...]:
    """Return a data set's labels in order of arrival."""
    unknown = [label for label in scenario.class_order if label not in dataset.labels]
    if unknown:
        raise InputError(
            "scenario-classes",
            f"{scenario.name} orders {', '.join(unknown)}, which {dataset.name} lacks",
            f"Labels of {dataset.name}: {', '.join(dataset.labels)}.",
        )
    rest = (label for label in dataset.labels if label not in scenario.class_order)
    return (*scenario.class_order, *rest)


def classes_of(scenario: Scenario, labels: int) -> NDArray[np.int64]:
    """Return how many classes have appeared by each period, int64 ``[periods]``."""
    classes = np.full(scenario.periods, scenario.start_classes or labels, np.int64)
    events = (event for event in scenario.events if isinstance(event, Classes))
    for event in sorted(events, key=lambda event: event.at):
        more = event.count or max(labels - classes[-1], 1)
        classes[event.at :] += more
    if classes[-1] > labels:
        raise InputError(
            "scenario-classes",
            f"{scenario.name} needs {classes[-1]} classes, but the data set has {labels}",
            "Use a data set with more, or a scenario with fewer.",
        )
    return classes


def relabelled(dataset: DataSet, labels: tuple[str, ...]) -> DataSet:
    """Return a data set of these labels in this order; windows are copied only to drop some."""
    if labels == dataset.labels:
        return dataset
    if len(labels) < len(dataset.labels):
        return select_labels(dataset, labels)
    places = np.array([labels.index(label) for label in dataset.labels], np.int16)
    return replace(dataset, labels=labels, y=places[dataset.y])
