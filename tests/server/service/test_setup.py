from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import tomllib

from fleet.errors import InputError, StorageError
from fleet.federate.signing import public_of
from server.service import setup
from server.service.authority import SERVER_DAYS, names_of
from server.service.bundle import write_bundle
from server.service.config import ServerConfig, load_config, save_config
from server.service.folder import MAX_BYTES, ServerFolder, read_bytes, write_private
from server.service.front.listen import tls_of
from server.service.runs import placed_config
from server.service.setup import Wanted, made, renewed

NOW = datetime(2026, 11, 21, tzinfo=timezone.utc)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path / "server")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_server_is_made_for_its_owner_alone(folder: ServerFolder) -> None:
    config = made(folder, Wanted(), NOW)
    assert mode(folder.path) == 0o700
    assert [mode(path) for path in folder.secrets] == [0o600] * 4
    assert (config.front.host, config.address) == ("127.0.0.1", "127.0.0.1:8443")
    assert load_config(folder) == config
    found = tomllib.loads(folder.connection.read_text())["superlink"]
    assert found["default"] == "corefleet"
    assert found["corefleet"] == {
        "address": "127.0.0.1:9393",
        "root-certificates": str(folder.authority),
    }


def test_the_public_half_of_the_release_key_is_there_for_devices(folder: ServerFolder) -> None:
    made(folder, Wanted(), NOW)
    public = folder.release_public.read_bytes()
    assert folder.release_public.name == "release-key.pub"
    assert public == public_of(folder.release_key.read_bytes())
    assert folder.release_public not in folder.secrets
    for content in (None, b"another's"):
        folder.release_public.unlink()
        if content is not None:
            folder.release_public.write_bytes(content)
        made(folder, Wanted(), NOW)
        assert folder.release_public.read_bytes() == public


def test_a_second_init_changes_nothing_that_devices_know(folder: ServerFolder) -> None:
    made(folder, Wanted(["fleet.example"], 9000), NOW)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert made(folder, Wanted(), NOW).address == "fleet.example:9000"
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_what_up_runs_beside_the_front_is_asked_for_and_stays(folder: ServerFolder) -> None:
    config = made(folder, Wanted(), NOW)
    assert (config.service.standing, config.control.listen) == (False, "")
    made(folder, Wanted(standing=True, control="127.0.0.1:9443"), NOW)
    config = made(folder, Wanted(), NOW)
    assert (config.service.standing, config.control.listen) == (True, "127.0.0.1:9443")
    assert not made(folder, Wanted(standing=False), NOW).service.standing
    with pytest.raises(InputError) as caught:
        made(folder, Wanted(control="nowhere"), NOW)
    assert caught.value.code == "control-address"
    assert load_config(folder).control.listen == "127.0.0.1:9443"


def test_a_new_name_gets_a_new_certificate_of_the_same_authority(folder: ServerFolder) -> None:
    made(folder, Wanted(), NOW)
    authority = folder.authority.read_bytes()
    config = made(folder, Wanted(["fleet.example"]), NOW)
    assert config.front.host == "0.0.0.0"
    assert "fleet.example" in names_of(folder.certificate.read_bytes())
    assert folder.authority.read_bytes() == authority


def test_an_init_that_was_cut_off_is_completed(folder: ServerFolder) -> None:
    made(folder, Wanted(), NOW)
    authority = folder.authority.read_bytes()
    for path in (folder.config, folder.certificate, folder.superexec_secret, folder.connection):
        path.unlink()
        made(folder, Wanted(), NOW)
        assert path.exists()
    assert folder.authority.read_bytes() == authority


def test_half_an_authority_is_not_replaced_by_another(folder: ServerFolder) -> None:
    made(folder, Wanted(), NOW)
    folder.authority_key.unlink()
    with pytest.raises(InputError, match=r"ca\.key one is missing"):
        made(folder, Wanted(), NOW)


def test_a_release_key_that_devices_trust_is_not_replaced_by_another(folder: ServerFolder) -> None:
    made(folder, Wanted(), NOW)
    key, public = folder.release_key.read_bytes(), folder.release_public.read_bytes()
    folder.release_key.unlink()
    folder.superexec_secret.unlink()
    with pytest.raises(InputError, match="release-key is missing") as caught:
        made(folder, Wanted(), NOW)
    assert caught.value.code == "release-key-incomplete"
    assert folder.release_public.read_bytes() == public
    assert not folder.release_key.exists()
    assert not folder.superexec_secret.exists()  # nothing is made before it is settled
    write_private(folder.release_key, key)
    made(folder, Wanted(), NOW)
    assert folder.release_public.read_bytes() == public
    folder.release_key.unlink()
    folder.release_public.unlink()
    made(folder, Wanted(), NOW)
    assert folder.release_public.read_bytes() not in (public, b"")


def test_a_certificate_is_renewed_in_time(folder: ServerFolder) -> None:
    config = made(folder, Wanted(), NOW)
    assert not renewed(folder, config, NOW)
    late = NOW + timedelta(days=SERVER_DAYS - 1)
    assert renewed(folder, config, late)
    assert not renewed(folder, config, late)
    assert renewed(folder, config, late, anyway=True)


def test_a_renewal_that_was_cut_off_leaves_no_pair_that_does_not_fit(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(folder, Wanted(), NOW)

    def full(path: Path, content: bytes) -> None:
        raise StorageError("disk-full", "full")

    with monkeypatch.context() as patched:
        patched.setattr(setup, "write_bytes", full)
        with pytest.raises(StorageError):
            renewed(folder, config, NOW, anyway=True)
    made(folder, Wanted(), NOW)
    tls_of(folder.certificate, folder.key)


def test_two_services_need_two_ports(folder: ServerFolder) -> None:
    with pytest.raises(InputError, match="both have port 9000"):
        made(folder, Wanted(port=9000, superlink_port=9000), NOW)
    assert not folder.config.exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = ", "no TOML"),
        ("[front]\nport = 0", r"front\.port"),
        ("[front]\nport = 5\n[superlink]\nport = 5", "the same port"),
        ("[front]\ncertificate = 'a'", "go together"),
        ("[limits]\nburst = 0\nheader-s = -1", r"limits\.header-s.*limits\.burst"),
        ("typo = 1", "typo"),
    ],
)
def test_a_configuration_that_breaks_rules_is_refused(
    folder: ServerFolder, text: str, told: str
) -> None:
    folder.make()
    folder.config.write_text(text)
    with pytest.raises(InputError, match=told):
        load_config(folder)


def test_a_configuration_survives_its_file(folder: ServerFolder) -> None:
    folder.make()
    config = ServerConfig.model_validate(
        {
            "database": "postgresql://db/x",
            "front": {"host": "::", "names": ["2001:db8::7"], "certificate": "a", "key": "/b"},
            "limits": {"header-s": 2.5},
        }
    )
    save_config(config, folder)
    assert load_config(folder) == config
    assert config.address == "[2001:db8::7]:8443"
    assert config.certificate_path(folder) == folder.path / "a"
    assert config.key_path(folder) == Path("/b")


def test_there_is_no_server_where_none_was_made(folder: ServerFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no server in"):
        load_config(folder)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        made(ServerFolder(tmp_path / "file" / "x"), Wanted(), NOW)


def test_a_secret_is_never_readable_by_others_and_a_large_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (mode(path), read_bytes(path)) == (0o600, b"new")
    write_private(path, b"x" * (MAX_BYTES + 1))
    with pytest.raises(StorageError, match="more than"):
        read_bytes(path)


def test_the_bundle_is_the_app_of_the_checkout(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    ours = tomllib.loads((bundle / "pyproject.toml").read_text())
    theirs = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert ours["tool"]["flwr"] == theirs["tool"]["flwr"]
    for key in ("name", "version"):
        assert ours["project"][key] == theirs["project"][key]
    for name in ("server_app.py", "client_app.py"):
        shim = (ROOT / "corefleet_app" / name).read_text()
        assert (bundle / "corefleet_app" / name).read_text() == shim


def test_paths_of_a_run_are_those_of_its_file(folder: ServerFolder, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    (tmp_path / "walks.npz").touch()
    path.write_text('base = "b.safetensors"\ndata = "walks.npz"\nrounds = 3\ntrace = "nightly"\n')
    config = placed_config(path, folder)
    assert config.base == str(tmp_path / "b.safetensors")
    assert config.data == str(tmp_path / "walks.npz")
    assert (config.rounds, config.trace, config.out) == (3, "nightly", str(folder.runs / "fleet"))
    path.write_text('data = "hapt"\nout = "o"\nbase = "/abs/b"\n')
    config = placed_config(path, folder)
    assert (config.data, config.out, config.base) == ("hapt", str(tmp_path / "o"), "/abs/b")
    path.write_text("rounds = 0")
    with pytest.raises(InputError, match="rounds"):
        placed_config(path, folder)
    path.write_text("rounds")
    with pytest.raises(InputError, match="no TOML"):
        placed_config(path, folder)
    assert placed_config(None, folder).rounds == 8


def test_a_run_signs_by_the_servers_key_unless_its_file_says_otherwise(
    folder: ServerFolder, tmp_path: Path
) -> None:
    assert placed_config(None, folder).release_key == ""  # a folder from before there was one
    made(folder, Wanted(), NOW)
    assert placed_config(None, folder).release_key == str(folder.release_key)
    path = tmp_path / "run.toml"
    path.write_text('release-key = ""\n')
    assert placed_config(path, folder).release_key == ""
    path.write_text('release-key = "mine"\n')
    assert placed_config(path, folder).release_key == str(tmp_path / "mine")
