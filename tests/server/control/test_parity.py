"""The parity law: a verb answers the same here and over the wire, result or error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from server.control import requests as r
from server.control.roles import Role
from server.control.seam import Verbs
from server.control.table import VERBS
from server.registry import open_registry
from tests.server.control.controlling import fleet_of, known, local, remote, trust
from tests.server.registry.filled import BASE, Clock, key_of, plan_from

POLICY = json.dumps({"base": BASE.digest, "cohort": 2})


def requests(content: bytes = b"no base at all") -> list[r.Request]:
    """Every verb, in an order in which the changes make sense, and what each refuses."""
    return [
        r.DeviceList(),
        r.DeviceList(tag="kitchen", revoked=True),
        r.DeviceShow(device="ada"),
        r.DeviceShow(device="nobody"),
        r.DeviceWhy(device="cyd"),
        r.DeviceTag(key="k1", device="bob", add=("attic",)),
        r.DeviceTag(key="k2", device="bob"),
        r.DeviceQuarantine(key="k3", device="bob", why="noise", dry_run=True),
        r.DeviceQuarantine(key="k4", device="bob", why="noise"),
        r.DeviceReadmit(key="k5", device="bob"),
        r.DeviceEnroll(key="k6", device="dan", public_key=key_of("dan"), tags=("kitchen",)),
        r.DeviceEnroll(key="k7", device="ä", public_key=key_of("ä")),
        r.DeviceRevoke(key="k8", device="dan", why="lost"),
        r.RoundList(newest=1),
        r.RoundShow(),
        r.RoundShow(round=9),
        r.RoundReplay(round=2),
        r.RoundReplay(round=2, without=("ada",)),
        r.RoundReplay(round=2, without=("cyd",)),
        r.RoundReplay(round=1, rule="median"),
        r.RoundReplay(round=1, rule="nonsense"),
        r.OperatorList(),
        r.OperatorRevoke(key="k21", operator="bea", why="left", dry_run=True),
        r.OperatorRevoke(key="k22", operator="bea", why="left"),
        r.OperatorRevoke(key="k23", operator="nobody"),
        r.OperatorRevoke(key="k24", operator="anna"),
        r.RoundStart(key="k9"),
        r.RoundAbort(key="k10", why="stuck"),
        r.ReleaseList(),
        r.ReleaseShow(),
        r.ReleaseShow(release=1),
        r.ReleaseDiff(first=0, second=2),
        r.ReleaseExport(release=2),
        r.ReleaseVerify(),
        r.ReleasePin(key="k11", release=1, tag="kitchen"),
        r.ReleasePin(key="k12", release=1),
        r.ReleaseRollback(key="k13", why="falls missed"),
        r.ReleaseRollback(key="k14", release=2),
        r.ReleasePromote(key="k15", release=2),
        r.ReleasePromote(key="k16", release=7),
        r.ReleaseWithdraw(key="k17", release=0, why="old"),
        r.BaseInstall(key="k25", content=content),
        r.BaseInstall(key="k26", content=content[:-9]),
        r.BaseList(),
        r.ReleaseRebase(key="k29", base="c" * 64),
        r.ReleaseRebase(key="k30", base=BASE.digest[:9], why="frames exhausted"),
        r.ReleaseRebase(key="k31", base=BASE.digest, dry_run=True),
        r.PolicyShow(),
        r.PolicySet(key="k27", policy=json.dumps({"base": "c" * 64})),
        r.PolicySet(key="k28", policy=json.dumps({"base": "base.safetensors"})),
        r.PolicySet(key="k18", policy=POLICY),
        r.PolicySet(key="k19", policy='{"quorum": 9, "nonsense": 1}'),
        r.PolicyShow(),
        r.AuditVerify(),
        r.AuditVerify(seq=3),
        r.RegistryBackup(key="k20", name="copy.sqlite"),
        r.AuditList(newest=20),
    ]


def told(verbs: Verbs, request: r.Request) -> Any:
    try:
        answer = verbs.ask(request)
    except FleetError as error:
        return (error.code, error.message, error.hint, error.exit_code)
    return json.loads(json.dumps(answer.data)), answer.content


def test_every_verb_answers_the_same_here_and_over_the_wire(
    file: Path, clock: Clock, tmp_path: Path, tiny_base_file: Path
) -> None:
    assert {type(each).__name__ for each in requests()} == set(VERBS)
    answers = []
    asked = requests(tiny_base_file.read_bytes())
    anna, bea = trust(Role.admin, "anna"), trust(Role.viewer, "bea")
    for where in ("here", "there"):
        # One place, so that what names it is the same.
        place = file.with_name("used.sqlite")
        shutil.copyfile(file, place)
        with open_registry(place, clock=clock) as registry:
            fleet = fleet_of(registry, clock, tmp_path)
            registry.rounds.open(
                plan_from(registry.releases.load(2), 3),
                ["ada", "bob"],
                rule={"name": "mean"},
                actor="coordinator",
            )
            known(fleet, anna)
            known(fleet, bea)
            if where == "here":
                with local(fleet) as verbs:
                    answers.append([told(verbs, each) for each in asked])
            else:
                with remote(fleet, anna) as far:
                    answers.append([told(far, each) for each in asked])
        for end in ("", "-wal", "-shm"):
            Path(f"{place}{end}").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "backups")
    for request, here, there in zip(asked, *answers, strict=True):
        assert here == there, request
    refused = [each for each in answers[0] if isinstance(each[0], str)]
    assert {code for code, *_ in refused} == {
        *("no-such-device", "nothing-asked", "device-name", "no-such-round", "no-such-update"),
        *("one-of-both", "not-earlier", "no-such-release", "no-policy", "bad-policy"),
        *("head-incomplete", "no-such-operator", "last-admin", "rule"),
        *("bundle-damaged", "base-not-installed", "no-such-base", "base-unreadable"),
    }
