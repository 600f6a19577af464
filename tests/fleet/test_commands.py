from __future__ import annotations

import io
import json
import sys

import pytest

from fleet.commands import Format, error_envelope, form_asked, nobody_reads, ok_envelope
from fleet.errors import InputError


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["x", "--format", "json"], Format.json),
        (["--format=json", "nonsense"], Format.json),
        (["--format"], Format.table),
        (["--format", "xml"], Format.table),
        ([], Format.table),
    ],
)
def test_the_form_is_told_by_the_words_alone(words: list[str], form: Format) -> None:
    assert form_asked(words) is form


def test_both_envelopes_name_their_format_and_how_it_went() -> None:
    fine, bad = ok_envelope({"a": 1}), error_envelope(InputError("x", "it is wrong", "mend it"))
    assert json.loads(fine) == {"schema_version": "1", "status": "ok", "data": {"a": 1}}
    told = json.loads(bad)
    assert (told["status"], told["error_code"], told["exit_code"]) == ("error", "x", 4)
    assert (told["message"], told["hint"]) == ("it is wrong", "mend it")


def test_what_json_cannot_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        ok_envelope({"a": float("nan")})


def test_a_closed_output_has_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not nobody_reads()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert nobody_reads()
