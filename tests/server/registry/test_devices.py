from __future__ import annotations

import base64
import hashlib

import pytest

from fleet.errors import InputError
from fleet.federate.records import DeviceStatus
from server.registry import Registry
from server.registry.devices import LARGEST_TAGS
from server.registry.keys import fingerprint
from server.registry.records import DeviceState
from tests.server.registry.filled import NOW_S, OPERATOR, Clock, key_of, run_round


def test_a_device_is_kept_with_its_key_its_tags_and_who_enrolled_it(empty: Registry) -> None:
    made = empty.devices.enroll("ada", key_of("ada"), tags=["lab", "b"], why="new", actor=OPERATOR)
    assert made == empty.devices.get("ada")
    assert made.public_key == key_of("ada")
    assert made.fingerprint == hashlib.sha256(b"ada").hexdigest()
    assert made.tags == ("b", "lab")
    assert (made.enrolled.by, made.enrolled.why, made.enrolled.at_s) == (OPERATOR, "new", NOW_S)
    assert made.state is DeviceState.enrolled
    assert empty.devices.by_key(made.fingerprint) == made
    assert empty.devices.by_key("0" * 64) is None


def test_devices_are_found_by_tag_and_by_state(registry: Registry) -> None:
    registry.devices.tag("bob", add=["lab"], actor=OPERATOR)
    registry.devices.quarantine("cyd", why="drifts", actor=OPERATOR)
    assert [each.name for each in registry.devices.all()] == ["ada", "bob", "cyd"]
    assert [each.name for each in registry.devices.all(tag="lab")] == ["bob"]
    out = registry.devices.all(state=DeviceState.quarantined)
    assert [each.name for each in out] == ["cyd"]
    assert registry.devices.all(tag="lab", state=DeviceState.quarantined) == ()


def test_a_key_that_anybody_has_or_had_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.devices.enroll("dan", key_of("ada"), actor=OPERATOR)
    assert caught.value.code == "key-enrolled"
    registry.devices.revoke("ada", why="lost", actor=OPERATOR)
    for name in ("ada", "dan"):
        with pytest.raises(InputError) as caught:
            # Another comment does not make it another key.
            registry.devices.enroll(name, f"{key_of('ada')}2", actor=OPERATOR)
        assert caught.value.code == "key-enrolled"


def test_a_revoked_device_comes_back_only_by_a_new_key(registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.devices.enroll("ada", key_of("ada 2"), actor=OPERATOR)
    assert caught.value.code == "device-enrolled"
    gone = registry.devices.revoke("ada", why="lost", actor=OPERATOR)
    assert gone.state is DeviceState.revoked
    assert gone.revoked is not None
    assert gone.revoked.why == "lost"
    for move in (registry.devices.readmit, registry.devices.quarantine):
        with pytest.raises(InputError) as caught:
            move("ada", why="found", actor=OPERATOR)
        assert caught.value.code == "device-revoked"
    back = registry.devices.enroll("ada", key_of("ada 2"), actor=OPERATOR)
    assert back.state is DeviceState.enrolled
    assert back.revoked is None
    assert registry.devices.by_key(gone.fingerprint) is None


def test_a_quarantine_holds_until_the_device_is_readmitted(
    registry: Registry, clock: Clock
) -> None:
    first = registry.devices.quarantine("ada", why="drifts", actor=OPERATOR)
    rows = registry.audit.head().seq
    clock.now_s += 60
    assert registry.devices.quarantine("ada", why="again", actor="other") == first
    assert registry.audit.head().seq == rows
    back = registry.devices.readmit("ada", why="retrained", actor=OPERATOR)
    assert (back.state, back.quarantined) == (DeviceState.enrolled, None)
    verbs = [row.verb for row in registry.audit.rows(subject="ada")]
    assert verbs == ["device.enroll", "device.quarantine", "device.readmit"]


def test_what_a_device_says_is_kept_without_an_audit_row(registry: Registry) -> None:
    head = registry.audit.head()
    status = DeviceStatus(
        device="ada", train_windows=3, test_windows=1, serves="c" * 64, release=2**62, version="1"
    )
    assert registry.devices.seen(status)
    ada = registry.devices.get("ada")
    assert (ada.seen_at_s, ada.serves, ada.serves_release) == (NOW_S, "c" * 64, 2**62)
    assert ada.status["train_windows"] == 3
    assert registry.audit.head() == head


def test_nothing_is_kept_of_a_device_that_is_not_enrolled(registry: Registry) -> None:
    registry.devices.revoke("ada", why="lost", actor=OPERATOR)
    for name in ("ada", "eve"):
        status = DeviceStatus(device=name, train_windows=1, test_windows=1)
        assert not registry.devices.seen(status)
    assert registry.devices.get("ada").seen_at_s is None


def test_tags_come_and_go_and_are_few(registry: Registry) -> None:
    registry.devices.tag("ada", add=["a", "b"], actor=OPERATOR)
    after = registry.devices.tag("ada", add=["b", "c"], remove=["a", "none"], actor=OPERATOR)
    assert after.tags == ("b", "c")
    many = [f"tag-{number}" for number in range(LARGEST_TAGS - 1)]
    with pytest.raises(InputError) as caught:
        registry.devices.tag("ada", add=many, actor=OPERATOR)
    assert caught.value.code == "too-many-tags"
    assert registry.devices.get("ada").tags == ("b", "c")


def test_a_device_is_pinned_to_a_release_that_is_there(registry: Registry) -> None:
    run_round(registry)
    assert registry.devices.pin("ada", 0, actor=OPERATOR).pinned == 0
    with pytest.raises(InputError) as caught:
        registry.devices.pin("bob", 7, actor=OPERATOR)
    assert caught.value.code == "no-such-release"
    assert registry.devices.pin("ada", None, actor=OPERATOR).pinned is None


def test_a_device_that_was_never_enrolled_is_named(registry: Registry) -> None:
    with pytest.raises(InputError, match="eve") as caught:
        registry.devices.revoke("eve", why="?", actor=OPERATOR)
    assert caught.value.code == "no-such-device"


@pytest.mark.parametrize("name", ["", " ada", "a\nb", "a\0b", "x" * 129])
def test_names_are_short_and_printable(empty: Registry, name: str) -> None:
    with pytest.raises(InputError) as caught:
        empty.devices.enroll(name, key_of("ada"), actor=OPERATOR)
    assert caught.value.code == "bad-name"
    with pytest.raises(InputError) as caught:
        empty.devices.enroll("ada", key_of("ada"), actor=name)
    assert caught.value.code == "bad-name"
    assert empty.devices.all() == ()
    assert empty.audit.head().seq == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 no/base64!",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        f"ssh-rsa {base64.b64encode(bytes(9000)).decode()}",
    ],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        fingerprint(text)
    assert caught.value.code == "bad-key"
