from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.adapt.base import Base, load_base, save_base
from fleet.federate.releases import Release, load_release, save_release
from fleet.har import canonical, hapt, synthetic
from fleet.har.dataset import select_labels
from fleet.har.population import Population, population_of
from server.control.cli.root import run
from simulations.rebasing import grow, rebase
from tests.fleet.continual.bases import state_of
from tests.simulations.tiny_fleet import MakeConfig

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run ``fleet base …``; return its code and the data of its document, or the document."""

    def ask(*words: object) -> tuple[int, dict[str, Any]]:
        code = run(["base", *map(str, words), "--format", "json"])
        found = json.loads(capsys.readouterr().out)
        return code, found["data"] if code == 0 else found

    return ask


def release_of(base: Base, number: int, size: float = 0.05) -> Release:
    state = state_of(base, "core+head", size=size, seed=number)
    return Release(number, base.digest, base.frame_digest, "", "core+head", state)


@pytest.fixture
def folder(tiny_base: Base, tiny_base_file: Path, tmp_path: Path) -> Path:
    """A method's folder in a run's, with the base above it."""
    made = tmp_path / "run" / "core"
    made.mkdir(parents=True)
    (made.parent / "base.safetensors").write_bytes(tiny_base_file.read_bytes())
    for number in (0, 12):
        path = made / "releases" / f"{number:06d}.safetensors"
        save_release(release_of(tiny_base, number, 0.05 * bool(number)), path)
    return made


def test_a_rebased_base_is_written_from_the_last_release_of_a_folder(
    ask: Ask, folder: Path, tiny_data: Path, tiny_base: Base, tiny_people: Population
) -> None:
    out = folder / "new.safetensors"
    code, data = ask("rebase", "--release", folder, "--data", tiny_data, "--out", out)
    release = release_of(tiny_base, 12)
    wanted = rebase(tiny_base, release, tiny_people)
    assert (code, data["digest"]) == (0, wanted.base.digest)
    assert load_base(out).digest == data["digest"]
    assert data["rebased_from"] == {
        "base": tiny_base.digest,
        "release": 12,
        "digest": release.digest,
        "moved": True,
    }
    assert (data["frame"], data["ranks"]) == ("svd", {"conv1": 2, "conv2": 2, "conv3": 2})
    assert data["calibrated_on"].endswith(f": people {', '.join(map(str, wanted.people))}")
    assert 0 < data["apart"] == wanted.apart <= data["at_most"] == 1e-5
    assert data["new_frames"] is True


def test_flags_choose_base_frames_rank_and_seed(
    ask: Ask, folder: Path, tiny_data: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    alone = tmp_path / "far" / "12.safetensors"
    alone.parent.mkdir()
    (folder / "releases" / "000012.safetensors").rename(alone)
    base = (folder.parent / "base.safetensors").rename(tmp_path / "mine.safetensors")
    asked = ["rebase", "--release", alone, "--data", tiny_data]
    code, told = ask(*asked, "--out", tmp_path / "none.safetensors")
    assert (code, told["error_code"]) == (1, "base-missing")
    asked += ["--base", base, "--frame", "gradient", "--rank", 3, "--seed", 1]
    code, data = ask(*asked, "--out", tmp_path / "new.safetensors")
    assert (code, data["frame"], set(data["ranks"].values())) == (0, "gradient", {3})
    people = population_of(make_config(seed=1))
    assert set(people.source) != set(population_of(make_config()).source)
    release = load_release(alone)
    wanted = rebase(load_base(base), release, people, kind="gradient", rank=3, seed=1)
    assert data["digest"] == wanted.base.digest


def test_all_classes_are_taken_where_they_are_asked_for(
    ask: Ask, folder: Path, tiny_people: Population, tmp_path: Path
) -> None:
    # Of HAPT's classes six are basic; the tiny set has one more.
    names = (*hapt.BASIC_LABELS, "SIT_TO_LIE")
    named = replace(tiny_people.dataset, name="hapt", labels=names)
    canonical.write(named, tmp_path / "hapt.npz")
    tiny = load_base(folder.parent / "base.safetensors")
    mine = replace(tiny, record=tiny.record.model_copy(update={"labels": names}))
    base = tmp_path / "seven.safetensors"
    save_base(mine, base)
    save_release(release_of(mine, 3), tmp_path / "3.safetensors")
    asked = ["rebase", "--release", tmp_path / "3.safetensors", "--data", tmp_path / "hapt.npz"]
    asked += ["--base", base, "--out"]
    code, some = ask(*asked, tmp_path / "some.safetensors")
    assert code == 0
    code, every = ask(*asked, tmp_path / "all.safetensors", "--classes", "all")
    assert code == 0
    assert some["digest"] != every["digest"]


def test_people_read_the_digest_in_one_piece_and_the_next_step(
    folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    words = ["base", "rebase", "--release", str(folder), "--data", str(tiny_data)]
    assert run([*words, "--out", str(out)]) == 0
    told, progress = capsys.readouterr()
    digest = load_base(out).digest
    assert f"digest {digest}\n" in told
    assert f"Next: fleet base install {out}, then fleet release rebase {digest}\n" in told
    assert "at most 1e-05" in told
    assert "moves nothing" not in told
    assert "rebase: 3 steps" in progress


def test_an_unmoved_release_is_said_to_renew_frames_only(
    folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = str(folder / "releases" / "000000.safetensors")
    words = ["base", "rebase", "--release", first, "--data", str(tiny_data)]
    assert run([*words, "--frame", "tt", "--out", str(tmp_path / "tt.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "release 0 moves nothing: only the frames are renewed" in told
    assert "Next: fleet base install" in told
    assert run([*words, "--out", str(tmp_path / "same.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "This is the old base" in told
    assert "Next" not in told


def test_a_base_is_never_overwritten_and_nothing_is_left_where_none_is_made(
    ask: Ask, folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    few, fewer = tmp_path / "few.npz", tmp_path / "fewer.npz"
    canonical.write(synthetic.make(people=2, windows_per_activity=4), few)
    whole = synthetic.make(people=4, windows_per_activity=2)
    canonical.write(select_labels(whole, whole.labels[1:]), fewer)
    asked = ["rebase", "--release", folder, "--out", out]
    for more, code, error in (
        (["--data", few], 4, "too-few-people"),
        (["--data", tiny_data, "--rank", 31], 4, "rank-too-large"),
        (["--data", tiny_data, "--rank", 0], 4, "run-config"),
        (["--data", tiny_data, "--frame", "round"], 4, "run-config"),
        (["--data", fewer], 4, "base-data"),
        (["--data", tiny_data, "--base", folder / "none"], 1, "bundle-missing"),
    ):
        found, told = ask(*asked, *more)
        assert (found, told["error_code"]) == (code, error)
    assert not out.exists()
    out.write_bytes(b"mine")
    code, told = ask(*asked, "--data", tiny_data)
    assert (code, told["error_code"]) == (4, "file-exists")
    code, told = ask(
        "grow", "--base", folder.parent / "base.safetensors", "--label", "row", "--out", out
    )
    assert (code, told["error_code"]) == (4, "file-exists")
    assert out.read_bytes() == b"mine"


def test_a_release_of_another_base_is_refused_before_its_data_are_read(
    ask: Ask, folder: Path, tiny_base: Base, tmp_path: Path
) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "new.safetensors"
    save_base(grow(tiny_base, ["row"]), other)
    asked = ["--release", folder, "--base", other, "--data", "no-such-data", "--out", out]
    code, told = ask("rebase", *asked)
    assert (code, told["error_code"]) == (4, "wrong-base")


def test_a_grown_base_is_written_with_its_new_classes_last(
    ask: Ask, tiny_base_file: Path, tiny_base: Base, tmp_path: Path
) -> None:
    asked = ["grow", "--base", tiny_base_file, "--label", "row", "--label", "hop"]
    found = []
    for name, seed in (("one", 4), ("again", 4), ("other", 5)):
        out = tmp_path / name
        code, data = ask(*asked, "--seed", seed, "--out", out)
        assert code == 0
        assert data["labels"] == list(tiny_base.record.labels)
        assert data["new_labels"] == ["row", "hop"]
        assert data["grown_from"] == tiny_base.digest
        assert load_base(out).digest == data["digest"]
        found.append(out.read_bytes())
    assert found[0] == found[1] != found[2]
    assert load_base(tmp_path / "one").digest == grow(tiny_base, ["row", "hop"], seed=4).digest


def test_growing_tells_people_old_and_new_classes_and_the_next_step(
    tiny_base_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    words = ["base", "grow", "--base", str(tiny_base_file), "--label", "row", "--out", str(out)]
    assert run(words) == 0
    told = capsys.readouterr().out
    digest = load_base(out).digest
    assert "new labels  row\n" in told
    assert "labels      walking, " in told
    assert f"Next: fleet base install {out}, then fleet release rebase {digest}\n" in told


def test_a_class_that_is_there_is_refused_and_no_file_is_made(
    ask: Ask, tiny_base_file: Path, tiny_base: Base, tmp_path: Path
) -> None:
    out = tmp_path / "new.safetensors"
    there = tiny_base.record.labels[0]
    code, told = ask("grow", "--base", tiny_base_file, "--label", there, "--out", out)
    assert (code, told["error_code"], out.exists()) == (4, "bad-label", False)
    assert f"{there!r} is there already" in told["message"]
