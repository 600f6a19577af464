"""The laws of what a restore changes about keys, over random registries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.control.backups.change import Change
from server.control.backups.surveys import Survey

KEYS = "abcdef"


@st.composite
def surveys(draw: st.DrawFn) -> Survey:
    """A registry in which each key is unknown, revoked, or good under some name."""
    able = ["good", "quarantined"]
    fates = {key: draw(st.sampled_from(["unknown", "revoked", *able])) for key in KEYS}
    names = {key: draw(st.sampled_from(["ada", "bob"])) for key in KEYS}
    admitted = {key: names[key] for key, fate in fates.items() if fate in able}
    refused = frozenset(key for key, fate in fates.items() if fate == "revoked")
    kept_out = frozenset(key for key, fate in fates.items() if fate == "quarantined")
    return Survey(0, 0, 0, 0, admitted, refused, quarantined=kept_out)


@given(surveys(), surveys())
def test_every_key_that_changes_sides_is_told_once(before: Survey, brings: Survey) -> None:
    change = Change(before, brings)
    again = {each["fingerprint"] for each in change.lets_in_again}
    out = {each["fingerprint"] for each in change.shuts_out}
    assert again == before.refused & set(brings.admitted)
    assert out == set(before.admitted) - set(brings.admitted)
    ended = {each["fingerprint"] for each in change.ends_quarantine}
    assert ended == before.quarantined & set(brings.admitted) - brings.quarantined
    assert len(again) + len(out) + len(ended) == len(again | out | ended)
    assert len(change.warnings) == bool(again) + bool(out) + bool(ended)


@given(surveys())
def test_a_restore_of_the_same_registry_changes_nobodys_key(survey: Survey) -> None:
    same = Change(survey, survey)
    assert (same.lets_in_again, same.shuts_out, same.ends_quarantine) == ([], [], [])
    assert same.warnings == []
