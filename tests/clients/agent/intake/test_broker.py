from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.agent.intake.broker import Broker, broker_of, client_id_of, with_credentials
from fleet.errors import InputError


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "topic"),
    [
        ("mqtt://localhost/waist", "localhost", 1883, False, "waist"),
        ("mqtts://b.example/waist", "b.example", 8883, True, "waist"),
        ("mqtt://10.0.0.1:99/a/+/c", "10.0.0.1", 99, False, "a/+/c"),
        ("mqtt://h/a/%23", "h", 1883, False, "a/#"),
        ("mqtt://h/a/%2B/b", "h", 1883, False, "a/+/b"),
        ("mqtt://h/a/#", "h", 1883, False, "a/#"),
        ("mqtt://h/#", "h", 1883, False, "#"),
        ("mqtt://h/a?b", "h", 1883, False, "a?b"),
        ("mqtt://h//a", "h", 1883, False, "/a"),
        ("mqtt://h/$share/g/a%20b", "h", 1883, False, "$share/g/a b"),
        ("mqtt://[::1]:77/k%C3%BCche", "::1", 77, False, "küche"),
    ],
)
def test_a_url_names_broker_and_topic(
    url: str, host: str, port: int, tls: bool, topic: str
) -> None:
    assert broker_of(url) == (Broker(host, port, tls), topic)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://h/a", "bad-broker"),
        ("localhost/a", "bad-broker"),
        ("mqtt:///a", "bad-broker"),
        ("mqtt://h:port/a", "bad-broker"),
        ("mqtt://h:0/a", "bad-broker"),
        ("mqtt://h:99999/a", "bad-broker"),
        ("mqtt://ada@h/a", "bad-broker"),
        ("mqtt://:secret@h/a", "bad-broker"),
        ("mqtt://h", "bad-topic"),
        ("mqtt://h/", "bad-topic"),
        ("mqtt://h/a+/b", "bad-topic"),
        ("mqtt://h/#/b", "bad-topic"),
        ("mqtt://h/a%23", "bad-topic"),
        ("mqtt://h/a%00", "bad-topic"),
        ("mqtt://h/%ff", "bad-topic"),
        ("mqtt://h/" + "a" * 65_536, "bad-topic"),
    ],
)
def test_what_is_no_broker_or_no_topic_is_refused(url: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        broker_of(url)
    assert caught.value.code == code


def test_a_root_certificate_without_tls_is_refused() -> None:
    assert broker_of("mqtts://h/a", Path("ca.crt"))[0].ca == Path("ca.crt")
    with pytest.raises(InputError):
        broker_of("mqtt://h/a", Path("ca.crt"))


def test_a_password_comes_from_a_file_of_its_owner_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("ada\ns3cret\n")
    path.chmod(0o600)
    broker = with_credentials(Broker("h", 1), path)
    assert (broker.user, broker.password) == ("ada", "s3cret")
    assert "s3cret" not in repr(broker) + str(broker)
    path.chmod(0o640)
    with pytest.raises(InputError) as caught:
        with_credentials(Broker("h", 1), path)
    assert caught.value.code == "credentials-open"


@pytest.mark.parametrize("content", [b"", b"ada\n", b"\nsecret\n", b"a\nb\nc\n", b"\xff\n\xff\n"])
def test_a_file_without_user_and_password_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        with_credentials(Broker("h", 1), path)
    assert caught.value.code == "credentials-unreadable"


@given(st.lists(st.text(max_size=5), min_size=3, max_size=3), st.integers(0, 2))
def test_a_session_is_one_of_device_name_and_topic(texts: list[str], place: int) -> None:
    one = client_id_of(*texts)
    assert one == client_id_of(*texts)
    assert len(one) <= 23
    other = [*texts]
    other[place] += "x"
    assert client_id_of(*other) != one
