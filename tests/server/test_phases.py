from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from server import coordinator as c
from server import phases
from server.phases import ARROWS, PLACES, SOURCE, draw_phases, phase_table
from tests.server.coordinating import DEVICES, answer, make_state

ROOT = Path(__file__).parents[2]
TRIO = DEVICES[:3]
NOW, MUCH_LATER = 0.0, 1e9


def events_at(state: c.State, now: float) -> list[c.Event]:
    """Everything that can happen at a time to a round of three devices."""
    answers = [answer(state, device, now) for device in TRIO] if state.plan else []
    failures = [c.Failed(now, device, "gone") for device in TRIO]
    fleets = [c.Fleet(now, TRIO), c.Fleet(now, TRIO[:1])]
    return [
        *(c.Tick(now), c.Pushed(now), c.Published(now), c.Late(now, TRIO[0], "old")),
        *(*answers, *failures, *fleets),
    ]


def outcome_of(before: c.State, effects: tuple[c.Effect, ...]) -> str:
    if any(isinstance(each, c.Publish) and each.release is None for each in effects):
        return "abandoned"
    return "released" if before.phase is c.Phase.aggregating else ""


def found_ways() -> set[tuple[c.Phase, str, c.Phase, str]]:
    """Try every event in every state that can be reached in a run of two rounds."""
    start = make_state(quorum=2, rounds=2)
    left, known, ways = [start], set(), set()
    while left:
        state = left.pop()
        key = (
            *(state.phase, state.round, state.abandoned, state.waiting_since, state.opened_at),
            *(frozenset(state.accepted), state.unanswered),
        )
        if key in known:
            continue
        known.add(key)
        for event in [*events_at(state, NOW), *events_at(state, MUCH_LATER)]:
            after, effects = c.step(state, event)
            if after.phase is not state.phase:
                outcome = outcome_of(state, effects)
                ways.add((state.phase, type(event).__name__, after.phase, outcome))
            left.append(after)
    return ways


def test_the_table_is_what_the_state_machine_does_and_nothing_else() -> None:
    told = {
        (arrow.start, event.__name__, arrow.end, arrow.outcome)
        for arrow in ARROWS
        for event in arrow.events
    }
    assert found_ways() == told


def test_the_page_has_the_table_and_the_picture() -> None:
    page = (ROOT / "docs" / "service.md").read_text()
    assert phase_table() in page, "python -c 'import server.phases as p; print(p.phase_table())'"
    assert "(images/round.png)" in page


def test_the_picture_in_the_docs_was_drawn_from_the_table() -> None:
    with Image.open(ROOT / "docs" / "images" / "round.png") as picture:
        drawn_from = picture.info.get(SOURCE)
    assert drawn_from == phase_table(), "python -m server.phases docs/images/round.png"


def test_every_phase_and_outcome_has_a_place_and_every_arrow_a_line_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(
        phases, "Figure", lambda **given: figures.append(Figure(**given)) or figures[0]
    )
    draw_phases(tmp_path / "round.png")
    (axes,) = figures[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert set(PLACES) == {phase.value for phase in c.Phase} | {"released", "abandoned"}
    assert set(PLACES) <= set(texts)
    lines = {
        pair
        for arrow in ARROWS
        for pair in (
            [(arrow.start.value, arrow.outcome), (arrow.outcome, arrow.end.value)]
            if arrow.outcome
            else [(arrow.start.value, arrow.end.value)]
        )
    }
    assert len(axes.patches) == len(lines) == len(texts) - len(PLACES)
