"""Transcripts: what an operator types at a registry that was lived in, and what comes back."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import InputError
from fleet.federate.releases import Release, load_release
from fleet.supervise.record import write_run
from server.control.cli.asking import reach_of
from server.control.cli.root import run
from server.control.issuing import Issue, issued
from server.control.reach import REGISTRY, Profile, save_profile
from server.control.roles import Role
from server.control.service import Server
from server.registry import Registry, open_registry
from server.service.folder import ServerFolder
from tests.server.control.controlling import NOW, ended_at

Json = Callable[..., tuple[int, dict[str, Any]]]
ACTOR = getpass.getuser()


def test_devices_are_listed_with_what_they_serve_and_should(ask: Json) -> None:
    code, data = ask("device", "list")
    assert code == 0
    found = {each["name"]: (each["serves"], each["should_serve"]) for each in data["devices"]}
    assert found == {"ada": (2, 2), "bob": (1, 2), "cyd": (None, 2)}
    assert list(data["devices"][0]) == [
        *("name", "state", "tags", "fingerprint", "seen_at", "unable", "version"),
        *("train_windows", "serves", "should_serve", "in_step", "pinned"),
        *("enrolled", "quarantined", "revoked", "link"),
    ]
    assert data["devices"][0]["seen_at"] == "2023-11-14T22:15:25Z"


def test_tables_tell_the_same_to_people(read: Callable[..., str]) -> None:
    assert "2023-11-14 22:15:25" in read("device", "show", "ada")
    assert "ada took part in round 2" in read("device", "why", "ada")
    text = read("device", "list")
    assert "in step" in text
    assert "bob" in text
    assert "released" in read("round", "list")
    assert "not-finite" in read("round", "show")
    assert "the same release, of 2 devices" in read("round", "replay", "2")
    assert "current" in read("release", "list")
    assert "served by" in read("release", "show", "2")
    assert "release 0 to 2" in read("release", "diff", "0", "2")
    assert "absent" in read("release", "verify")
    assert "sound up to row" in read("audit", "verify")
    assert "release.promote" in read("audit", "list", "--newest", "20")


def test_a_device_is_kept_out_and_let_in_again(ask: Json, kept: Registry) -> None:
    words = ("device", "quarantine", "bob", "--why", "noise")
    code, told = ask(*words)
    assert (code, told["error_code"]) == (4, "not-confirmed")
    assert told["message"] == "not confirmed: quarantine bob: touches 1 device (bob)"
    head = kept.audit.head()
    code, told = ask(*words, "--dry-run")
    assert (code, told["dry_run"], kept.audit.head()) == (0, True, head)
    code, told = ask(*words, "--yes")
    assert (code, told["device"]["state"]) == (0, "quarantined")
    row = kept.audit.rows(newest=1)[0]
    assert (row.actor, row.verb, row.subject) == (ACTOR, "device.quarantine", "bob")
    code, told = ask("device", "readmit", "bob", "--why", "fixed")
    assert (code, told["device"]["state"]) == (0, "enrolled")


@pytest.mark.parametrize("yes", [True, False])
def test_on_a_terminal_a_person_is_asked(
    ask: Json, monkeypatch: pytest.MonkeyPatch, yes: bool
) -> None:
    asked: list[str] = []

    def answer(text: str, **_: object) -> bool:
        asked.append(text)
        return yes

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", answer)
    code, _ = ask("device", "quarantine", "bob")
    assert asked == ["quarantine bob: touches 1 device (bob). Do it?"]
    assert code == (0 if yes else 4)
    state = "quarantined" if yes else "enrolled"
    assert ask("device", "show", "bob")[1]["device"]["state"] == state


@pytest.mark.parametrize(
    ("words", "offered"), [("fleet rou", "round"), ("fleet release pin --dev", "--device")]
)
def test_a_shell_completes_nouns_verbs_and_options(words: str, offered: str) -> None:
    # A process of its own, as a shell starts one: Typer's own completion changes Click's for good.
    place = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", "from server.control.cli.root import main; main()"],
        env={**os.environ, **place, "_FLEET_COMPLETE": "bash_complete"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout.split() == [f"plain,{offered}"]


def test_tags_are_put_on_and_taken_off(ask: Json) -> None:
    code, told = ask("device", "tag", "ada", "--add", "attic", "--remove", "kitchen")
    assert (code, told["device"]["tags"]) == (0, ["attic"])
    assert ask("device", "tag", "ada")[1]["error_code"] == "nothing-asked"


def test_a_rollback_and_a_promotion_by_hand(ask: Json, releases: list[Release]) -> None:
    code, told = ask("release", "rollback", "--why", "falls missed")
    assert (code, told["error_code"]) == (4, "not-confirmed")
    assert "touches 3 devices (ada, bob, cyd); releases 1, 2" in told["message"]
    code, told = ask("release", "rollback", "--yes")
    assert (code, told["release"]["digest"]) == (0, releases[1].digest)
    code, told = ask("release", "promote", 2, "--yes")
    assert (code, told["release"]["digest"]) == (0, releases[2].digest)
    code, told = ask("release", "pin", 1, "--device", "ada", "--yes")
    assert (code, told["touches"]["devices"]) == (0, ["ada"])
    code, told = ask("release", "pin", "--none", "--device", "ada", "--yes")
    assert (code, told["release"]) == (0, None)
    assert ask("release", "pin", "--device", "ada")[1]["error_code"] == "one-of-both"
    code, told = ask("release", "withdraw", 0, "--why", "old", "--yes")
    assert (code, bool(told["release"]["withdrawn"])) == (0, True)


def test_a_number_is_of_the_registry_and_a_path_is_a_file(
    ask: Json, tmp_path: Path, releases: list[Release]
) -> None:
    file = tmp_path / "000002.safetensors"
    code, told = ask("release", "export", 2, "--out", file)
    assert (code, told["file"]) == (0, str(file))
    assert load_release(file).digest == releases[2].digest
    assert ask("release", "show", 2)[1]["release"]["digest"] == releases[2].digest
    assert ask("release", "show", file)[1]["digest"] == releases[2].digest
    assert ask("release", "diff", 2, file)[1]["error_code"] == "mixed-releases"
    assert len(ask("release", "list")[1]["releases"]) == 3
    assert ask("release", "list", tmp_path)[1]["folder"] == str(tmp_path)


def test_orders_for_a_service_that_ended_are_taken_and_said_to_wait(
    ask: Json, read: Callable[..., str], folder: ServerFolder
) -> None:
    now = time.time()
    with open_registry(folder.path / REGISTRY, clock=lambda: now - 1) as registry:
        registry.observations.beat(pid=5, version="", started_at_s=now - 60, doing={})
    told = ask("round", "start")[1]
    assert (told["service"], told["next"]) == ("alive", "fleet round wait 3")
    assert "next: fleet round wait 3" in read("round", "start")
    assert "WARNING" not in read("device", "list")
    # Its record says that it ended, and a second later than it was heard of.
    write_run(folder.path, ended_at(now - 0.5))
    told = ask("round", "start")[1]
    assert told["service"].startswith("ended ")
    assert told["next"] == "fleet server up"
    for words in (
        ("round", "start"),
        ("release", "rollback", "--yes"),
        ("release", "promote", 2, "--yes"),
        ("device", "list"),
    ):
        last = read(*words).splitlines()[-1]
        assert last.startswith("WARNING: the service ended "), words
        assert last.endswith("; next: fleet server up")


def test_a_move_to_the_release_that_the_fleet_is_on_is_told_as_none(
    ask: Json, read: Callable[..., str], kept: Registry
) -> None:
    head = kept.audit.head()
    assert ask("release", "promote", 2, "--yes")[1]["changed"] is False
    assert read("release", "promote", 2, "--yes") == "release 2 is the fleet's already\n"
    assert kept.audit.head() == head
    assert ask("release", "promote", 1, "--yes")[1]["changed"] is True
    assert ask("release", "withdraw", 2, "--why", "bad", "--yes")[1]["changed"] is True
    assert "release 2 was withdrawn already" in read("release", "withdraw", 2, "--yes")


def test_a_revocation_after_which_no_round_can_open_says_so(
    ask: Json, read: Callable[..., str], kept: Registry, releases: list[Release]
) -> None:
    policy = (f"base={releases[0].base}", "minimum=2", "quorum=2")
    assert ask("policy", "set", *policy, "--yes")[0] == 0
    text = read("device", "quarantine", "cyd", "--yes")
    assert text == "cyd is in quarantine; touched 1 device (cyd)\n"
    told = ask("device", "revoke", "bob", "--dry-run")[1]["shortage"]
    assert (told["left"], told["needs"]) == (1, 2)
    assert "would touch 1 device (bob)\nWARNING: no" in read("device", "revoke", "bob", "--dry-run")
    assert read("device", "quarantine", "bob", "--yes").splitlines() == [
        "bob is in quarantine; touched 1 device (bob)",
        "WARNING: no round can open: 1 device left, the policy's minimum needs 2; next: enrol "
        "another: fleet device enroll; or ask fewer: fleet policy set minimum=1 quorum=1 --yes",
    ]


def test_the_row_that_was_written_down_is_named(ask: Json, read: Callable[..., str]) -> None:
    end = ask("audit", "verify")[1]
    assert end["written_down"] is None
    text = read("audit", "verify", "--seq", end["seq"], "--hash", end["hash"])
    assert f"row {end['seq']} is the one that you wrote down" in text
    assert "wrote down" not in read("audit", "verify")


def test_a_round_is_ordered_and_waited_for(ask: Json, kept: Registry) -> None:
    code, told = ask("round", "start", "--why", "new data")
    assert (code, told["order"]["state"], told["service_alive_at"]) == (0, "waiting", None)
    assert told["round"] == 3
    assert ask("round", "wait", "--after", 1)[1]["round"]["round"] == 2
    assert ask("round", "wait", 2, "--after", 1)[1]["error_code"] == "one-of-both"
    assert [each.verb.value for each in kept.orders.waiting()] == ["start_round"]
    assert ask("round", "abort", "--yes")[1]["error_code"] == "no-open-round"
    assert ask("round", "wait", 2)[1]["round"]["release"] == 2
    code, told = ask("round", "wait", 3, "--timeout", 0.1)
    assert (code, told["error_code"]) == (3, "wait-timeout")
    code, told = ask("round", "replay", 2, "--without", "ada")
    assert (code, told["same"]) == (0, False)


def test_a_policy_is_set_by_a_file_and_by_keys(
    ask: Json, read: Callable[..., str], tmp_path: Path, releases: list[Release]
) -> None:
    assert ask("policy", "show")[1]["error_code"] == "no-policy"
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"base": releases[0].base}))
    assert ask("policy", "set", "--file", file, "--yes")[1]["policy"]["version"] == 1
    code, told = ask("policy", "set", "cohort=2", "min-train-windows=5", "--dry-run")
    assert (code, set(told["changed"])) == (0, {"cohort", "min_train_windows"})
    assert "nothing was changed" in read("policy", "set", "cohort=2", "--dry-run")
    assert ask("policy", "set", "cohort=2", "--yes")[1]["policy"]["values"]["cohort"] == 2
    assert "version 2" in read("policy", "show")
    for wrong in (["cohort"], ["cohort=-1", "--yes"], []):
        code, told = ask("policy", "set", *wrong)
        assert code == 4, wrong


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["device", "show", "nobody"], 4, "no-such-device"),
        (["device", "list", "--state", "asleep"], 4, "device-state"),
        (["device", "quarantine", "x" * 200, "--yes"], 4, "bad-request"),
        (["device", "tag", "ada", "--add", " "], 4, "bad-name"),
        (["round", "show", "9"], 4, "no-such-round"),
        (["round", "show", "0"], 4, "bad-request"),
        (["release", "show", "9"], 4, "no-such-release"),
        (["release", "promote", "9", "--yes"], 4, "no-such-release"),
        (["release", "withdraw", "2", "--yes"], 4, "release-in-use"),
        (["audit", "verify", "--seq", "3"], 4, "head-incomplete"),
        (["audit", "verify", "--seq", "3", "--hash", "0" * 64], 1, "audit-broken"),
        (["device", "list", "--connect", "127.0.0.1:1"], 4, "control-certificate"),
        (["device", "list", "--folder", "/nowhere"], 4, "no-server"),
    ],
)
def test_every_failure_has_its_code(ask: Json, words: list[str], code: int, error: str) -> None:
    found, told = ask(*words)
    assert (found, told["error_code"]) == (code, error)


def test_the_same_command_reaches_a_server_by_options_or_by_a_profile(
    ask: Json,
    folder: ServerFolder,
    server: Server,
    tmp_path: Path,
    kept: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = ask("device", "list")
    address, out = f"127.0.0.1:{server.port}", tmp_path / "anna"
    told = ask("operator", "issue", "anna", "--role", "operator", "--out", out)[1]
    options = ["--certificate", told["certificate"], "--key", told["key"]]
    options += ["--root", folder.authority, "--connect", address]
    assert ask("device", "list", *options) == here
    monkeypatch.delenv("COREFLEET_SERVER")
    assert ask("device", "list")[1]["error_code"] == "no-server"
    profile = Profile(
        connect=address, certificate="operator.crt", key="operator.key", root="ca.crt"
    )
    save_profile(out / "control.toml", profile)
    monkeypatch.setenv("COREFLEET_CONTROL", str(out / "control.toml"))
    assert ask("device", "list") == here
    ask("device", "tag", "ada", "--add", "attic")
    assert kept.audit.rows(newest=1)[0].actor == "anna"
    code, told = ask("device", "revoke", "ada", "--yes")
    assert (code, told["error_code"]) == (2, "role-needed")
    code, told = ask("device", "list", "--connect", "127.0.0.1:1")
    assert (code, told["error_code"]) == (2, "control-away")
    (out / "control.toml").write_text("conect = ''")
    assert ask("device", "list")[1]["error_code"] == "control-profile"
    # A folder that is named goes before a profile.
    assert ask("device", "list", "--folder", folder.path)[0] == 0


def test_a_key_of_an_operator_is_for_its_owner_alone_and_never_replaced(
    folder: ServerFolder, tmp_path: Path
) -> None:
    wanted = Issue("anna", Role.viewer, tmp_path / "anna", "a:1")
    told = issued(folder, wanted, ACTOR, NOW)
    assert Path(told["key"]).stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError) as refused:
        issued(folder, wanted, ACTOR, NOW)
    assert refused.value.code == "operator-files"


def test_a_noun_is_there_without_what_only_a_server_needs() -> None:
    nouns = ("audit", "device", "policy", "release", "round")
    code = (
        f"import sys; {'; '.join(f'import server.control.cli.{noun}' for noun in nouns)};"
        "print({'alembic', 'sqlalchemy', 'grpc', 'flwr', 'cryptography'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"set()\n"


def test_events_come_one_per_line(folder: ServerFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["round", "watch", "--after", "0", "--limit", "0.1", "--format", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["verb"] == ""
    assert [each["seq"] for each in events[1:]] == list(range(1, len(events)))
    assert events[-1]["verb"] == "round.release"


def test_people_watch_a_table_that_follows(
    folder: ServerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["round", "watch", "--limit", "0.1"]) == 0
    assert "released" in capsys.readouterr().out


def test_a_blast_radius_names_some_and_counts_all() -> None:
    touches = {"device_count": 7, "devices": list("abcdefg"), "releases": [1], "rounds": []}
    assert reach_of(touches) == "7 devices (a, b, c, d, e, …); release 1"
    assert reach_of({"device_count": 0, "devices": [], "releases": [], "rounds": [3, 4]}) == (
        "0 devices; rounds 3, 4"
    )


def test_a_process_serves_the_folder_and_ends_when_told(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.control import __main__ as process
    from server.service import listening

    ended: list[Any] = []

    def at_once(number: int, act: Callable[..., None]) -> None:
        ended.append(number)
        act()

    monkeypatch.setattr(listening.signal, "signal", at_once)
    assert process.main(["--folder", str(folder.path), "--listen", "127.0.0.1:0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["event"] == "control.ready"
    assert len(ended) == 2
    assert process.main(["--folder", "/nowhere"]) == 4
    assert json.loads(capsys.readouterr().err)["error_code"] == "no-server"
