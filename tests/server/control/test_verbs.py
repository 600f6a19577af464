from __future__ import annotations

from pathlib import Path

import pytest

from fleet.errors import FleetError, StorageError
from fleet.federate.releases import Release, load_release
from server.control import requests as r
from server.control.roles import Role
from server.control.table import VERBS
from server.control.verbs.fleet import Fleet
from tests.server.control.controlling import ask, doors, known, trust
from tests.server.control.test_proto import smallest
from tests.server.registry.filled import (
    BASE,
    key_of,
    opened,
)

# A rebase needs bases that can be read: tests/server/control/test_rebasing.py.
DESTRUCTIVE = sorted(
    name
    for name in VERBS
    if issubclass(r.REQUESTS[name], r.Destruction) and name != "ReleaseRebase"
)


@pytest.mark.parametrize("name", DESTRUCTIVE)
def test_a_dry_run_tells_what_it_would_touch_and_changes_nothing(
    fleet: Fleet, releases: list[Release], name: str
) -> None:
    opened(fleet.registry, releases[2], 3)
    values = smallest(name).model_dump() | {"dry_run": True}
    if name == "ReleasePin":
        values["device"] = "ada"
    if name == "PolicySet":
        values["policy"] = f'{{"base": "{BASE.digest}"}}'
    known(fleet, trust(Role.viewer, "anna"))
    head, devices = fleet.registry.audit.head(), fleet.registry.devices.all()
    told = ask(fleet, r.REQUESTS[name](**values))
    assert told["dry_run"] is True
    assert set(told["touches"]) == {
        *("device_count", "devices", "releases", "rounds", "certificates"),
    }
    assert fleet.registry.audit.head() == head
    assert fleet.registry.devices.all() == devices
    assert fleet.registry.orders.waiting() == ()
    assert doors(fleet).refused == set()


@pytest.mark.parametrize("name", sorted(set(DESTRUCTIVE) - {"PolicySet"}))
def test_a_destruction_touches_what_its_dry_run_told(
    fleet: Fleet, releases: list[Release], name: str
) -> None:
    opened(fleet.registry, releases[2], 3)
    known(fleet, trust(Role.viewer, "anna"))
    values = smallest(name).model_dump() | (
        {"device": "bob", "release": 1} if name == "ReleasePin" else {}
    )
    if name == "ReleaseWithdraw":
        values["release"] = 1
    tried = ask(fleet, r.REQUESTS[name](**{**values, "dry_run": True}))
    head = fleet.registry.audit.head().seq
    done = ask(fleet, r.REQUESTS[name](**values))
    assert done["touches"] == tried["touches"]
    assert fleet.registry.audit.head().seq == head + 1


def test_a_revocation_touches_the_device_and_the_round_that_waits_for_it(
    fleet: Fleet, releases: list[Release]
) -> None:
    opened(fleet.registry, releases[2], 3)
    told = ask(fleet, r.DeviceRevoke(key="k", device="ada", why="stolen"))
    assert told["touches"] == {
        "device_count": 1,
        "devices": ["ada"],
        "releases": [],
        "rounds": [3],
        "certificates": [],
    }
    assert told["device"]["state"] == "revoked"
    assert doors(fleet).refused == {key_of("ada")}


def test_a_revocation_holds_though_the_transport_is_away_and_again_completes_it(
    fleet: Fleet,
) -> None:
    doors(fleet).away = StorageError("superlink-away", "it does not answer")
    with pytest.raises(StorageError):
        ask(fleet, r.DeviceRevoke(key="k", device="ada"))
    assert fleet.registry.devices.get("ada").revoked is not None
    doors(fleet).away = None
    ask(fleet, r.DeviceRevoke(key="k", device="ada"))
    assert doors(fleet).refused == {key_of("ada")}


def test_an_enrolment_is_nothing_while_the_transport_is_away(fleet: Fleet) -> None:
    doors(fleet).away = StorageError("superlink-away", "it does not answer")
    with pytest.raises(StorageError):
        ask(fleet, r.DeviceEnroll(key="k", device="dan", public_key=key_of("dan")))
    with pytest.raises(FleetError, match="dan"):
        fleet.registry.devices.get("dan")


def test_an_enrolment_that_was_cut_off_is_completed_by_asking_again(fleet: Fleet) -> None:
    fleet.registry.devices.enroll("dan", key_of("dan"), actor="anna")
    head = fleet.registry.audit.head()
    told = ask(fleet, r.DeviceEnroll(key="other", device="dan", public_key=key_of("dan")))
    assert told["node"] == "node of dan"
    assert fleet.release_public is not None
    assert told["release_key"] == fleet.release_public.decode()  # what the device is to pin
    assert doors(fleet).inside == {"dan": key_of("dan")}
    assert fleet.registry.audit.head() == head


def test_a_list_tells_who_is_online_and_lives_without_the_transport(fleet: Fleet) -> None:
    doors(fleet).inside["ada"] = key_of("ada")
    links = {each["name"]: each["link"] for each in ask(fleet, r.DeviceList())["devices"]}
    assert links == {"ada": "online", "bob": None, "cyd": None}
    doors(fleet).away = StorageError("superlink-away", "it does not answer")
    assert {each["link"] for each in ask(fleet, r.DeviceList())["devices"]} == {None}


def test_a_list_leaves_out_the_revoked_unless_they_are_asked_for(fleet: Fleet) -> None:
    fleet.registry.devices.revoke("bob", why="", actor="anna")

    def names(asked: r.DeviceList) -> list[str]:
        return [each["name"] for each in ask(fleet, asked)["devices"]]

    assert names(r.DeviceList()) == ["ada", "cyd"]
    assert names(r.DeviceList(revoked=True)) == ["ada", "bob", "cyd"]
    assert names(r.DeviceList(state="revoked")) == ["bob"]
    assert names(r.DeviceList(tag="kitchen")) == ["ada"]


def test_a_rollback_goes_to_the_release_before_and_back_to_the_same_digest(
    fleet: Fleet, releases: list[Release]
) -> None:
    told = ask(fleet, r.ReleaseRollback(key="k1", why="falls missed"))
    assert (told["release"]["number"], told["release"]["digest"]) == (1, releases[1].digest)
    assert told["touches"]["devices"] == ["ada", "bob", "cyd"]
    assert told["touches"]["releases"] == [1, 2]
    forward = ask(fleet, r.ReleasePromote(key="k2", release=2))
    assert forward["release"]["digest"] == releases[2].digest
    assert ask(fleet, r.ReleaseRollback(key="k3"))["release"]["number"] == 1
    assert ask(fleet, r.ReleaseRollback(key="k4"))["release"]["number"] == 0
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.ReleaseRollback(key="k5"))
    assert refused.value.code == "nothing-before"


def test_a_rollback_passes_over_what_was_withdrawn(fleet: Fleet) -> None:
    ask(fleet, r.ReleaseWithdraw(key="k1", release=1, why="bad"))
    assert ask(fleet, r.ReleaseRollback(key="k2"))["release"]["number"] == 0


def test_a_pinned_device_stays_when_the_fleet_moves(fleet: Fleet) -> None:
    ask(fleet, r.ReleasePin(key="k1", release=1, tag="kitchen"))
    assert fleet.registry.devices.get("ada").pinned == 1
    assert ask(fleet, r.ReleasePromote(key="k2", release=0))["touches"]["devices"] == ["bob", "cyd"]
    told = ask(fleet, r.ReleasePin(key="k3", device="ada"))
    assert told["touches"]["devices"] == ["ada"]
    assert fleet.registry.devices.get("ada").pinned is None


def wards(fleet: Fleet) -> dict[str, int | None]:
    """Put bob and cyd on ward 3, and dan, who was revoked; return a look at all pins."""
    fleet.registry.devices.enroll("dan", key_of("dan"), actor="anna")
    for name in ("bob", "cyd", "dan"):
        fleet.registry.devices.tag(name, add=["ward=3"], actor="anna")
    fleet.registry.devices.revoke("dan", why="", actor="anna")
    return pins(fleet)


def pins(fleet: Fleet) -> dict[str, int | None]:
    return {each.name: each.pinned for each in fleet.registry.devices.all()}


def test_a_pin_of_all_devices_with_a_tag_is_one_change_with_one_audit_row(fleet: Fleet) -> None:
    wards(fleet)
    head = fleet.registry.audit.head().seq
    asked = r.ReleasePin(key="k", release=1, tag="ward=3", why="slow there")
    first, second = ask(fleet, asked), ask(fleet, asked)
    assert first == second
    assert first["touches"]["devices"] == ["bob", "cyd"]
    assert pins(fleet) == {"ada": None, "bob": 1, "cyd": 1, "dan": None}
    (row,) = fleet.registry.audit.rows(newest=fleet.registry.audit.head().seq - head)
    assert (row.actor, row.verb, row.subject) == ("anna", "device.pin", "tag ward=3")
    assert row.detail["devices"] == ["bob", "cyd"]
    assert (row.detail["release"], row.detail["why"]) == (1, "slow there")


def test_a_pin_is_taken_off_all_devices_with_a_tag_at_once(fleet: Fleet) -> None:
    wards(fleet)
    ask(fleet, r.ReleasePin(key="k1", release=1, device="cyd"))
    ask(fleet, r.ReleasePin(key="k2", release=0, device="ada"))
    told = ask(fleet, r.ReleasePin(key="k3", tag="ward=3"))
    assert (told["touches"]["devices"], told["release"]) == (["cyd"], None)
    assert pins(fleet) == {"ada": 0, "bob": None, "cyd": None, "dan": None}
    head = fleet.registry.audit.head()
    assert ask(fleet, r.ReleasePin(key="k4", tag="ward=3"))["touches"]["devices"] == []
    assert fleet.registry.audit.head() == head


def test_a_pin_that_fails_half_way_pins_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = wards(fleet)

    def failing(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("server.registry.ledger.append", failing)
    with pytest.raises(ZeroDivisionError):
        ask(fleet, r.ReleasePin(key="k", release=1, tag="ward=3"))
    assert pins(fleet) == before


def test_nobody_is_pinned_to_a_release_that_was_withdrawn(fleet: Fleet) -> None:
    wards(fleet)
    ask(fleet, r.ReleaseWithdraw(key="k1", release=1, why="bad"))
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.ReleasePin(key="k2", release=1, tag="ward=3"))
    assert refused.value.code == "release-withdrawn"


def test_an_exported_release_is_the_release(
    fleet: Fleet, releases: list[Release], tmp_path: Path
) -> None:
    told = VERBS["ReleaseExport"].run(fleet, "anna", r.ReleaseExport(release=2))
    file = tmp_path / "two.safetensors"
    file.write_bytes(told.content)
    assert load_release(file).digest == releases[2].digest == told.data["digest"]
    assert told.data["bytes"] == len(told.content)


def test_a_policy_changes_by_keys_and_tells_what_changed(fleet: Fleet) -> None:
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.PolicyShow())
    assert refused.value.code == "no-policy"
    ask(fleet, r.PolicySet(key="k1", policy=f'{{"base": "{BASE.digest}"}}'))
    told = ask(fleet, r.PolicySet(key="k2", policy='{"cohort": 2}'))
    assert told["changed"] == {"cohort": {"from": 0, "to": 2}}
    assert told["touches"]["devices"] == ["ada", "bob", "cyd"]
    assert told["policy"]["version"] == 2
    same = ask(fleet, r.PolicySet(key="k3", policy='{"cohort": 2}'))
    assert (same["changed"], same["policy"]["version"]) == ({}, 2)


@pytest.mark.parametrize("policy", ["[]", "{nonsense", '{"cohort": -1}', '{"nonsense": 1}'])
def test_a_policy_that_is_none_is_refused(fleet: Fleet, policy: str) -> None:
    ask(fleet, r.PolicySet(key="k1", policy=f'{{"base": "{BASE.digest}"}}'))
    with pytest.raises(FleetError) as refused:
        ask(fleet, r.PolicySet(key="k2", policy=policy))
    assert refused.value.code == "bad-policy"


def test_a_backup_lies_in_the_servers_folder_and_nowhere_else(fleet: Fleet) -> None:
    told = ask(fleet, r.RegistryBackup(key="k", name="copy.sqlite"))
    assert Path(told["file"]).parent == fleet.backups
    assert told["seq"] == fleet.registry.audit.head().seq
    with pytest.raises(FleetError) as there:
        ask(fleet, r.RegistryBackup(key="k2", name="copy.sqlite"))
    assert there.value.code == "backup-exists"
    for name in ("../copy", "/copy", ".hidden", "a/b", ""):
        with pytest.raises(FleetError) as refused:
            r.RegistryBackup(key="k", name=name)
        assert refused.value.code == "bad-request"
