from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from fleet.errors import InputError, StorageError
from fleet.federate.signing import (
    MOST_KEYS,
    SIGNED_FORMAT,
    identity_of,
    key_id,
    make_key,
    public_keys,
    public_of,
    read_key,
    sign,
    verify,
)

KEY = make_key()
PUBLIC = public_of(KEY)


@dataclass(frozen=True)
class Named:
    """Anything with a digest can be signed."""

    digest: str


ONE, TWO = Named("1" * 64), Named("2" * 64)


def test_a_signature_is_of_one_release_and_one_key() -> None:
    signature = sign(ONE, KEY)
    assert len(bytes.fromhex(signature)) == 64
    assert verify(ONE, signature, PUBLIC)
    assert not verify(TWO, signature, PUBLIC)
    assert not verify(ONE, signature, public_of(make_key()))


def test_the_same_release_and_key_have_the_same_signature() -> None:
    assert sign(ONE, KEY) == sign(Named("1" * 64), KEY)


def test_what_is_signed_names_its_format_and_the_digest() -> None:
    # Golden bytes: a change of them makes every signature that is out there bad.
    assert identity_of(ONE) == f'["{SIGNED_FORMAT}","{"1" * 64}"]'.encode()


@pytest.mark.parametrize(
    "wrong",
    ["", "zz", "é", "00" * 64, sign(ONE, KEY).upper(), sign(ONE, KEY)[:-2], sign(ONE, KEY) + "00"],
)
def test_what_is_no_signature_is_merely_not_of_this_release(wrong: str) -> None:
    assert not verify(ONE, wrong, PUBLIC)


def test_a_key_of_another_kind_is_refused_with_what_it_is() -> None:
    for wrong in (b"", b"no key", PUBLIC):
        with pytest.raises(InputError) as refused:
            sign(ONE, wrong)
        assert refused.value.code == "release-key"
    for wrong in (b"", KEY, b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(InputError) as refused:
            verify(ONE, sign(ONE, KEY), wrong)
        assert refused.value.code == "release-key"


def test_a_file_of_public_keys_is_read_in_its_order_whatever_stands_between() -> None:
    other = public_of(make_key())
    found = public_keys(b"# old\n" + other + b"\n# new\n" + PUBLIC.replace(b"\n", b"\r\n"))
    assert found == {key_id(other): other, key_id(PUBLIC): PUBLIC}
    assert list(found) == [key_id(other), key_id(PUBLIC)]
    assert len(key_id(PUBLIC)) == 16


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        KEY,
        PUBLIC[:-30],
        PUBLIC.replace(b"M", b"!"),
        b"".join(public_of(make_key()) for _ in range(MOST_KEYS + 1)),
    ],
    # Keys are new in every process; tests have the same names in all.
    ids=["empty", "words", "private", "cut", "changed", "too-many"],
)
def test_a_file_that_holds_no_public_keys_or_too_many_is_refused(content: bytes) -> None:
    with pytest.raises(InputError) as refused:
        public_keys(content)
    assert refused.value.code == "release-key"


def test_a_private_key_is_looked_at_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "release-key"
    with pytest.raises(StorageError, match="cannot be read"):
        read_key(path)
    path.write_bytes(PUBLIC)
    with pytest.raises(InputError, match="no private key"):
        read_key(path)
    path.write_bytes(KEY)
    assert read_key(path) == KEY


def test_a_key_is_made_anew_each_time() -> None:
    assert make_key() != KEY
    assert KEY.startswith(b"-----BEGIN PRIVATE KEY-----")
