from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.adapt.base import Base
from fleet.errors import InputError
from fleet.federate.wire import Payload
from simulations.cohort.batched import LARGEST_WORKERS, BatchedFleet
from simulations.cohort.chunks import chunks_of, in_order
from tests.simulations.cohort.test_fleet import plan_message
from tests.simulations.tiny_fleet import MakeConfig

SIZES = st.dictionaries(st.integers(0, 10**6), st.integers(0, 50), max_size=40)


@given(sizes=SIZES, size=st.integers(1, 9))
def test_chunks_hold_everybody_once_and_do_not_depend_on_the_order_of_asking(
    sizes: dict[int, int], size: int
) -> None:
    chunks = chunks_of(list(sizes), sizes.__getitem__, size)
    assert sorted(p for chunk in chunks for p in chunk) == sorted(sizes)
    lengths = [len(chunk) for chunk in chunks]
    assert max(lengths, default=0) <= size
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    assert len(chunks) < 2 or len(chunks) % 2 == 0 or len(chunks) == len(sizes)
    assert chunks_of(list(reversed(sizes)), sizes.__getitem__, size) == chunks
    held = [sizes[p] for chunk in chunks for p in chunk]
    assert held == sorted(held, reverse=True)


def test_fifty_devices_are_eight_chunks() -> None:
    lengths = [len(chunk) for chunk in chunks_of(range(50), lambda _: 0, 8)]
    assert sorted(lengths) == [6, 6, 6, 6, 6, 6, 7, 7]


@given(sizes=SIZES, size=st.integers(1, 9))
def test_answers_come_back_in_the_order_of_asking(sizes: dict[int, int], size: int) -> None:
    chunks = chunks_of(list(sizes), sizes.__getitem__, size)
    assert in_order(list(sizes), chunks, chunks) == list(sizes)


def test_a_chunk_without_devices_is_refused() -> None:
    with pytest.raises(InputError, match="1 device or more"):
        chunks_of([1], lambda _: 0, 0)


@pytest.mark.parametrize("method", ["core", "full"])
def test_any_number_of_workers_finds_the_same_bits(
    tiny_base: Base, make_config: MakeConfig, method: str
) -> None:
    config = make_config(devices=11, windows_per_device=9, class_mix=0.5)
    message = plan_message(tiny_base, make_config, method)
    found = []
    for workers in (1, 2, 5):
        answers = BatchedFleet(config.for_flower(), workers).train(message, range(11))
        packed = [each for each in answers if isinstance(each, Payload)]
        found.append([(each.array.tobytes(), dict(each.config)) for each in packed])
    assert len(found[0]) == 11
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("workers", [0, LARGEST_WORKERS + 1])
def test_too_few_or_too_many_workers_are_refused(workers: int, make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="workers may train"):
        BatchedFleet(make_config().for_flower(), workers)
