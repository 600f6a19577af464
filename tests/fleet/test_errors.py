from __future__ import annotations

import copy
import pickle

import pytest

from fleet import errors
from fleet.errors import DataError, FleetError, InputError, RoundError, StorageError, TooFewDevices


def tree(root: type[FleetError]) -> list[type[FleetError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in tree(branch))]


OWN = [kind for kind in tree(FleetError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", tree(FleetError))
def test_every_error_has_an_exit_code_of_the_table(kind: type[FleetError]) -> None:
    assert kind.exit_code in {1, 2, 3, 4, 5, 130}
    assert kind.__doc__


def test_the_exit_codes_are_those_that_the_tree_draws() -> None:
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if len(words) >= 2 and hasattr(errors, words[0]) and words[1].isdigit():
            drawn[words[0]] = int(words[1])
    assert drawn == {kind.__name__: kind.exit_code for kind in OWN if kind is not FleetError}


def test_every_error_is_public() -> None:
    assert sorted(errors.__all__) == errors.__all__
    assert set(errors.__all__) == {kind.__name__ for kind in OWN}


@pytest.mark.parametrize("kind", OWN)
def test_an_error_survives_copies_and_processes(kind: type[FleetError]) -> None:
    error = kind("some-code", "the rule and 5", "Do this next.")
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert (again.code, again.message, again.hint) == (error.code, error.message, error.hint)
        assert str(again) == "the rule and 5"


def test_an_error_needs_no_hint() -> None:
    assert StorageError("code", "message").hint == ""


def test_the_branches_can_be_caught_together() -> None:
    assert issubclass(DataError, InputError)
    assert issubclass(TooFewDevices, RoundError)
    assert not issubclass(StorageError, InputError)


def test_a_listing_names_every_problem() -> None:
    problems = [f"column {n} is empty" for n in range(12)]
    error = DataError.listing("bad-file", "hapt.npz", problems, "Make it again.")
    assert type(error) is DataError
    assert (error.code, error.hint) == ("bad-file", "Make it again.")
    assert error.message.startswith("hapt.npz: 12 problems:")
    for problem in problems:
        assert f"\n  - {problem}" in error.message


def test_a_listing_of_one_problem_is_one_sentence() -> None:
    error = DataError.listing("bad-file", "hapt.npz", ["column 1 is empty"])
    assert error.message == "hapt.npz: column 1 is empty"
