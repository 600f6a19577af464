from __future__ import annotations

import time
from dataclasses import replace

import pytest

pytest.importorskip("cryptography")

from clients.agent.doctor.finding import Result, Subject
from clients.agent.doctor.releases import check_release_key
from clients.agent.pinned import COUNTED, REFUSED, RELEASE_KEY, pin
from clients.agent.store import open_store
from clients.agent.store.store import FILE_NAME
from fleet.federate.signing import make_key, public_keys, public_of

KEYS = public_keys(public_of(make_key()))


@pytest.fixture
def pinned(subject: Subject) -> Subject:
    assert subject.config is not None
    return replace(subject, config=pin(KEYS, subject.config, subject.state))


def test_a_device_without_a_key_is_told_that_releases_are_not_verified(subject: Subject) -> None:
    found = check_release_key(subject)
    assert (found.result, found.detail) == (
        Result.warn,
        "releases are not verified: no key pinned",
    )
    assert found.fix.startswith("fleet-device trust release-key.pub")
    assert check_release_key(replace(subject, config=None)).result is Result.skip


def test_a_pinned_key_is_named(pinned: Subject) -> None:
    found = check_release_key(pinned)
    assert (found.result, found.fix) == (Result.ok, "")
    assert next(iter(KEYS)) in found.detail


@pytest.mark.parametrize("content", [None, b"no key"])
def test_a_key_that_cannot_be_read_fails_since_no_release_is_taken(
    pinned: Subject, content: bytes | None
) -> None:
    path = pinned.state / RELEASE_KEY
    path.unlink() if content is None else path.write_bytes(content)
    found = check_release_key(pinned)
    assert found.result is Result.fail
    assert found.detail.startswith("no release is taken: ")
    assert found.fix


def test_a_refusal_is_told_until_a_release_is_taken(pinned: Subject) -> None:
    record = {"number": 2, "reason": "bad-signature", "detail": "of another key", "at_s": 1.0}
    with open_store(pinned.state, clock=time.time) as store:
        store.state.put(REFUSED, record)
        store.counters.add({f"{COUNTED}bad-signature": 3})
    found = check_release_key(pinned)
    assert found.result is Result.warn
    assert found.detail.endswith(
        "the last that came was refused (bad-signature): of another key;"
        " refused so far: bad-signature 3"
    )
    assert "fleet release verify" in found.fix
    with open_store(pinned.state, clock=time.time) as store:
        store.state.put(REFUSED, None)
    assert check_release_key(pinned).result is Result.ok


def test_refused_releases_are_counted(pinned: Subject) -> None:
    with open_store(pinned.state, clock=time.time) as store:
        store.counters.add({"intake.gaps": 5})
    assert check_release_key(pinned).result is Result.ok
    with open_store(pinned.state, clock=time.time) as store:
        store.counters.add({f"{COUNTED}bad-signature": 3})
    found = check_release_key(pinned)
    assert (found.result, found.fix) == (Result.ok, "")  # releases were taken since
    assert found.detail.endswith("refused so far: bad-signature 3")
    (pinned.state / FILE_NAME).write_bytes(b"no database" * 1000)
    assert check_release_key(pinned).result is Result.ok  # the check of the store says the rest
