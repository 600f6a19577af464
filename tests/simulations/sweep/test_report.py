from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fleet.errors import InputError, StorageError
from fleet.files import write_json
from simulations.sweep import figures
from simulations.sweep.figures import draw
from simulations.sweep.findings import Entry, Findings, findings_of, read_findings
from simulations.sweep.outcome import read_result
from simulations.sweep.page import page
from simulations.sweep.table import cells_csv, columns, records, rounds_csv, summary_rows
from tests.simulations.sweep.made import SCORES, cells, kept_sweep, result


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("sweep")
    kept_sweep(folder)
    return read_findings([folder])


@pytest.fixture(scope="module")
def text(findings: Findings) -> str:
    return page(findings)


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_a_group_is_the_mean_and_spread_of_its_seeds(findings: Findings) -> None:
    assert (findings.axes, findings.seeds) == (("rank",), [0, 1])
    one, two = summary_rows(findings)
    assert dict(one.values) == {"rank": 1}
    assert one.macro_f1 == pytest.approx((SCORES[1, 0] + SCORES[1, 1]) / 2)
    assert one.macro_f1_std == pytest.approx(0.02 / 2**0.5)
    assert (two.seeds, two.averages["bytes_up"]) == (2, 200)


def test_a_seed_alone_has_no_spread() -> None:
    (cell,) = cells(rank=(1,))
    only = findings_of("t", ["x"], ("rank",), [Entry(cell.id, cell.values(), result(0.8))])
    (row,) = summary_rows(only)
    assert (row.macro_f1, row.macro_f1_std) == (0.8, None)
    assert row.cells()[:3] == ["1", "0.800", "–"]


def test_the_methods_of_one_cell_are_groups_of_their_own() -> None:
    (cell,) = cells(method=("core,head",))
    entries = [
        Entry(cell.id, cell.values() | {"method": name}, result(f1, method=name))
        for name, f1 in (("core", 0.8), ("head", 0.6))
    ]
    found = findings_of("t", ["x"], (), entries)
    assert [(g.label, g.mean) for g in found.groups()] == [
        ("method core", 0.8),
        ("method head", 0.6),
    ]


def test_the_csv_has_a_line_per_cell_with_axes_scores_and_digest(findings: Findings) -> None:
    rows = list(csv.DictReader(io.StringIO(cells_csv(findings))))
    assert {(int(r["rank"]), int(r["seed"])): float(r["macro_f1"]) for r in rows} == SCORES
    assert [r["digest"] for r in rows] == [e.result.digest for e in findings.entries]
    assert {r["method"] for r in rows} == {"core"}
    ways = list(csv.DictReader(io.StringIO(rounds_csv(findings))))
    assert len(ways) == 4 * 4
    assert {r["round"] for r in ways} == {"0", "1", "2", "3"}
    assert ways[1]["wire_bytes_up"] == "200"


def test_the_page_needs_nothing_else_and_says_in_words_what_it_shows(text: str) -> None:
    seen = Seen(text)
    # An address that something would be fetched from; the SVG inside names its XML namespaces.
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert not seen.all("script")
    assert not seen.all("link")
    assert "url(" not in text
    assert len(seen.all("img")) == 3
    for image in seen.all("img"):
        assert len(image["alt"] or "") > 40
        head, _, data = (image["src"] or "").partition(",")
        assert head == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
    assert {attributes.get("lang") for attributes in seen.all("html")} == {"en"}
    assert all(head["scope"] == "col" for head in seen.all("th"))
    for score in SCORES.values():
        assert f"{score:.3f}" in text


def test_what_comes_from_a_recipe_or_an_error_is_escaped(text: str) -> None:
    assert "Made &lt;by&gt; hand" in text
    assert "rank 9 &lt;is&gt; not possible" in text
    assert "<by>" not in text


def test_a_digest_of_somebody_else_s_file_is_escaped() -> None:
    (cell,) = cells(rank=(1,))
    bad = replace(result(0.8), digest='"><script>alert(1)</script>')
    shown = page(findings_of("t", ["x"], (), [Entry(cell.id, cell.values(), bad)]))
    assert not Seen(shown).all("script")
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("digest", ['"><script>alert(1)</script>', "a" * 63, "A" * 64, 5, None])
@pytest.mark.parametrize("place", ["summary", "round", "base"])
def test_what_is_no_digest_is_refused_where_it_is_read(
    tmp_path: Path, place: str, digest: object
) -> None:
    given = {each: digest if each == place else "a" * 64 for each in ("summary", "round", "base")}
    traffic = dict.fromkeys(("bytes_up", "bytes_down", "wire_bytes_up", "wire_bytes_down"), 1)
    scores = dict.fromkeys(
        ("macro_f1", "macro_f1_devices_mean", "macro_f1_devices_worst_decile"), 0.5
    )
    rest = {"trained_parameters": 1, "learning_rate": 0.1, "refused": 0, "seconds": 1.0}
    release = {"release": {"digest": given["summary"]}}
    write_json(tmp_path / "core" / "summary.json", {**scores, **traffic, **rest, **release})
    times = {"opened_at_s": 0.0, "closed_at_s": 1.0, "accepted": [], "refused": []}
    record = {"round": 1, "release": [1, given["round"]], "traffic": traffic, **times}
    write_json(tmp_path / "core" / "rounds" / "000001.json", record)
    with pytest.raises(StorageError, match="64 hexadecimal digits") as caught:
        read_result(tmp_path, "core", given["base"])  # type: ignore[arg-type]
    assert caught.value.code == "run-damaged"


def test_the_same_findings_make_the_same_page(findings: Findings, text: str) -> None:
    assert page(findings) == text


def test_the_words_of_the_pictures_hold_their_numbers(findings: Findings) -> None:
    pictures = {picture.name: picture for picture in draw(findings)}
    assert list(pictures) == ["rounds", "bytes", "final"]
    assert "rank 1 0.610, rank 2 0.710" in pictures["rounds"].words
    assert "rank 1: 0.610 for 1,200 B, rank 2: 0.710 for 2,400 B" in pictures["bytes"].words


def test_a_group_that_another_beats_in_bytes_and_score_is_not_on_the_line() -> None:
    made = cells(rank=(1, 2, 3))
    scores = (0.6, 0.8, 0.7)
    entries = [
        Entry(c.id, c.values(), result(f1, size=100 * c.config.rank))
        for c, f1 in zip(made, scores, strict=True)
    ]
    words = {p.name: p.words for p in draw(findings_of("t", ["x"], (), entries))}["bytes"]
    assert "rank 1: 0.600" in words
    assert "rank 2: 0.800" in words
    assert "rank 3" not in words


def test_many_combinations_are_cut_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "LARGEST_BARS", 2)
    monkeypatch.setattr(figures, "LARGEST_NAMED", 2)
    made = cells(rank=(1, 2, 3))
    entries = [Entry(c.id, c.values(), result(0.5 + 0.01 * i)) for i, c in enumerate(made)]
    words = {p.name: p.words for p in draw(findings_of("t", ["x"], (), entries))}
    assert "The 2 best of 3 are shown." in words["final"]
    assert "Faint ones are beaten" in words["bytes"]


def test_long_names_are_cut_to_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "LONGEST_NAME", 5)
    made = cells(rank=(1, 2), learning_rate=(0.1, 0.2))
    found = findings_of("t", ["x"], (), [Entry(c.id, c.values(), result(0.5)) for c in made])
    assert "(named by rank · learning-rate)" in draw(found)[-1].words


def test_a_sweep_without_a_result_still_has_a_page() -> None:
    text = page(findings_of("t", ["x"], ("rank",), []))
    assert "0 cells done" in text
    assert draw(findings_of("t", ["x"], ("rank",), [])) == []


def test_json_holds_groups_cells_and_what_failed(findings: Findings) -> None:
    data = records(findings)
    assert [g["values"] for g in data["groups"]] == [{"rank": 1}, {"rank": 2}]
    assert len(data["cells"]) == 4
    assert len(data["cells"][0]["result"]["rounds"]) == 4
    assert [u["failure"]["code"] for u in data["unfinished"]] == ["rank-too-large"] * 2


def test_a_folder_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_findings([tmp_path])
    assert caught.value.code == "nothing-to-report"


def test_hours_are_shown_where_time_was_simulated_and_say_who_never_got_there() -> None:
    made = cells(seed=(0, 1))
    hours = ({"hours": 2.0, "hours_to_target": 0.25}, {"hours": 4.0})
    entries = [
        Entry(cell.id, cell.values(), result(0.8, **times))
        for cell, times in zip(made, hours, strict=True)
    ]
    found = findings_of("t", ["x"], (), entries)
    (row,) = summary_rows(found)
    shown = dict(zip(columns(found), row.cells(), strict=True))
    assert (shown["hours"], shown["hours to F1"]) == ("3.00", "0.25 (1 of 2)")
    assert row.record()["reached"] == 1
    assert "0.25 (1 of 2)" in page(found)
    assert [line["hours"] for line in csv.DictReader(io.StringIO(cells_csv(found)))] == [
        "2.0",
        "4.0",
    ]


def test_without_a_trace_no_column_speaks_of_hours(findings: Findings, text: str) -> None:
    assert not [name for name in columns(findings) if "hours" in name]
    assert "hours to F1" not in text
