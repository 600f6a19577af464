from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from fleet.errors import InputError, MismatchError, StorageError
from fleet.federate.releases import next_release
from server.registry import Registry, tables
from server.registry.packing import packed_state
from tests.server.registry.filled import BASE, FIRST, LAYOUT, OPERATOR, Clock, run_round

STEPS = np.full(LAYOUT.size, 1 << 28, np.int64)


def test_a_release_comes_back_with_its_digest_and_its_provenance(registry: Registry) -> None:
    made = run_round(registry)
    found = registry.releases.load(1)
    assert found.digest == made.digest
    assert found.state.digest == made.state.digest
    assert dict(found.provenance) == dict(made.provenance)
    row = registry.releases.get(1)
    assert (row.parent, row.base, row.state_digest) == (
        FIRST.digest,
        BASE.digest,
        made.state.digest,
    )


def test_release_numbers_have_no_gaps_and_are_never_used_twice(registry: Registry) -> None:
    second = next_release(FIRST, STEPS, {}, number=2)
    with pytest.raises(MismatchError, match="the next is 1, not 2") as caught:
        registry.releases.add(second, actor=OPERATOR)
    assert caught.value.code == "release-number"
    registry.releases.add(next_release(FIRST, STEPS, {}), actor=OPERATOR)
    with pytest.raises(MismatchError) as caught:
        registry.releases.add(next_release(FIRST, 2 * STEPS, {}), actor=OPERATOR)
    assert caught.value.code == "release-number"
    registry.releases.add(second, actor=OPERATOR)
    assert registry.releases.next_number() == 3


def test_a_release_that_is_there_is_not_added_again(registry: Registry) -> None:
    head = registry.audit.head()
    assert registry.releases.add(FIRST, why="again", actor=OPERATOR).number == 0
    assert registry.audit.head() == head


def test_a_release_needs_its_parent_and_its_base(registry: Registry) -> None:
    orphan = replace(next_release(FIRST, STEPS, {}), parent="d" * 64)
    with pytest.raises(MismatchError) as caught:
        registry.releases.add(orphan, actor=OPERATOR)
    assert caught.value.code == "wrong-parent"
    foreign = replace(next_release(FIRST, STEPS, {}), base="e" * 64)
    with pytest.raises(InputError) as caught_too:
        registry.releases.add(foreign, actor=OPERATOR)
    assert caught_too.value.code == "no-such-base"
    assert len(registry.releases.all()) == 1


def test_a_rollback_is_a_promotion_of_what_was_there(registry: Registry, clock: Clock) -> None:
    made = run_round(registry)
    current = registry.releases.current()
    assert current is not None
    assert current.digest == made.digest
    clock.now_s += 1
    back = registry.releases.promote(0, why="worse", actor=OPERATOR)
    assert back.promoted is not None
    assert (back.promoted.why, back.promoted.at_s) == ("worse", clock.now_s)
    assert registry.releases.current() == back
    assert registry.audit.rows()[-1].detail == {"left": 1, "release": 0, "why": "worse"}
    registry.releases.promote(1, actor=OPERATOR)
    again = registry.releases.current()
    assert again is not None
    assert again.digest == made.digest


def test_after_a_rollback_a_round_makes_the_next_number_of_the_older_line(
    registry: Registry,
) -> None:
    run_round(registry)
    registry.releases.promote(0, actor=OPERATOR)
    made = run_round(registry, FIRST, 2)
    assert made.number == 2
    assert [row.number for row in registry.releases.lineage(2)] == [2, 0]


def test_a_withdrawn_release_is_kept_and_never_chosen(registry: Registry) -> None:
    run_round(registry)
    registry.devices.pin("ada", 1, actor=OPERATOR)
    for release in (0, 1):
        registry.releases.promote(release, actor=OPERATOR)
        with pytest.raises(InputError) as caught:
            registry.releases.withdraw(release, why="bad", actor=OPERATOR)
        assert caught.value.code == "release-in-use"
    registry.releases.promote(0, actor=OPERATOR)
    with pytest.raises(InputError, match="1 device"):
        registry.releases.withdraw(1, why="bad", actor=OPERATOR)
    registry.devices.pin("ada", None, actor=OPERATOR)
    gone = registry.releases.withdraw(1, why="bad", actor=OPERATOR)
    assert gone.withdrawn is not None
    assert registry.releases.withdraw(1, why="still bad", actor=OPERATOR) == gone
    for choose in (
        lambda: registry.releases.promote(1, actor=OPERATOR),
        lambda: registry.devices.pin("ada", 1, actor=OPERATOR),
    ):
        with pytest.raises(InputError, match="bad") as caught:
            choose()
        assert caught.value.code == "release-withdrawn"
    assert registry.releases.load(1).number == 1


def test_a_release_whose_bytes_changed_is_refused(registry: Registry) -> None:
    run_round(registry)
    other = registry.releases.load(0)
    table = tables.releases
    for content, why in ((packed_state(other.state), "its content has"), (b"cut", "cannot be")):
        registry.database.change(
            lambda connection, content=content: connection.execute(  # type: ignore[misc]
                update(table).where(table.c.number == 1).values(state=content)
            )
        )
        with pytest.raises(StorageError, match=why) as caught:
            registry.releases.load(1)
        assert caught.value.code == "release-damaged"


def test_signatures_are_kept(registry: Registry) -> None:
    made = next_release(FIRST, STEPS, {})
    row = registry.releases.add(made, signature=b"\x00signed", actor=OPERATOR)
    assert bytes.fromhex(row.signature) == b"\x00signed"
    assert registry.releases.get(0).signature == ""


def test_a_base_is_kept_as_bytes_or_as_a_path(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"12345")
    row = registry.bases.install("f" * 64, path, actor=OPERATOR)
    assert (row.size, row.path) == (5, str(path))
    assert registry.bases.content("f" * 64) == path
    assert registry.bases.content(BASE.digest) == b"the base"
    assert registry.bases.install("f" * 64, b"other", actor=OPERATOR) == row
    assert {each.digest for each in registry.bases.all()} == {BASE.digest, "f" * 64}
    with pytest.raises(InputError) as caught:
        registry.bases.content("0" * 64)
    assert caught.value.code == "no-such-base"
    with pytest.raises(InputError) as caught:
        registry.bases.install("0" * 64, tmp_path / "none", actor=OPERATOR)
    assert caught.value.code == "no-such-file"
