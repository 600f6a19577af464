from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.errors import DataError
from fleet.har import hapt, sources
from fleet.har.canonical import write
from fleet.har.dataset import DataSet, digest

Make = Callable[..., DataSet]


@pytest.fixture
def folder(make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder named by FLEET_DATA; the project's own surroundings are out of sight."""
    home = tmp_path / "data"
    write(make_dataset(name="mine"), home / "mine.npz")
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    monkeypatch.setenv(sources.ENVIRONMENT, str(home))
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "x" / "fleet" / "har" / "sources.py"))
    return home


def code_of(name: str) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        sources.find(name)
    return caught.value.code, caught.value.message + caught.value.hint


def test_a_name_is_looked_up_in_the_environments_folders(folder: Path) -> None:
    assert sources.find("mine").name == "mine"


def test_the_har_folder_below_a_named_folder_counts_too(
    folder: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make_dataset(name="deeper"), folder / "har" / "deeper.npz")
    assert sources.find("deeper").name == "deeper"
    both = os.pathsep.join([str(folder / "har"), "", str(folder)])
    monkeypatch.setenv(sources.ENVIRONMENT, both)
    assert {source.name for source in sources.available()} == {"mine", "deeper", "synthetic"}


def test_shared_folders_in_or_beside_the_working_folder_are_searched(
    folder: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sources.ENVIRONMENT)
    assert [source.name for source in sources.available()] == ["synthetic"]
    write(make_dataset(name="beside"), Path("../shared/data/har/beside.npz"))
    write(make_dataset(name="within"), Path("shared/data/har/within.npz"))
    write(make_dataset(name="project"), folder.parent / "x" / "shared/data/har/project.npz")
    names = [source.name for source in sources.available()]
    assert names == ["beside", "project", "within", "synthetic"]
    assert [sources.find(name).name for name in names[:3]] == names[:3]


def test_the_first_folder_wins(folder: Path, make_dataset: Make) -> None:
    write(make_dataset(windows=8, name="other"), Path("shared/data/har/mine.npz"))
    assert len(sources.find("mine").x) == 16
    assert next(one for one in sources.available() if one.name == "mine").windows == 16


@pytest.mark.parametrize("name", ["mine.npz", "mine.json", "mine"])
def test_a_path_is_read_as_it_stands(folder: Path, name: str) -> None:
    assert sources.find(str(folder / name)).name == "mine"


def test_a_path_is_told_from_a_name_as_it_is_read(folder: Path) -> None:
    Path("mine").mkdir()  # a folder of that name is not the data set
    Path("synthetic.npz").write_bytes(b"")
    for name in ("mine", "synthetic", "absent"):
        assert sources.path_of(name) is None
    assert sources.locate("mine") == folder / "mine.npz"
    assert sources.locate("synthetic") is None
    for suffix in ("", ".npz", ".json"):
        assert sources.path_of(f"{folder}/mine{suffix}") == folder / "mine.npz"
        assert sources.locate(f"{folder}/mine{suffix}") == folder / "mine.npz"
    assert sources.path_of("absent.json") == Path("absent.npz")


def test_an_unknown_name_lists_the_known_and_where_they_were_sought(folder: Path) -> None:
    code, text = code_of("hapt")
    assert code == "data-unknown"
    assert "mine, synthetic" in text
    assert str(folder) in text
    assert code_of("../data/mine/x")[0] == "data-unknown"
    assert code_of("")[0] == "data-unknown"
    assert code_of("absent.npz")[0] == "data-missing"


def test_a_download_must_be_converted_first(folder: Path) -> None:
    archive = folder / "USC-HAD.zip"
    archive.write_bytes(b"")
    code, text = code_of(str(archive))
    assert code == "not-canonical"
    assert "fleet data convert" in text


def test_a_misspelt_folder_is_an_error_and_not_passed_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sources.ENVIRONMENT, f"{folder}{os.pathsep}{folder}x")
    code, text = code_of("mine")
    assert code == "folder-missing"
    assert f"{folder}x" in text


def test_a_source_is_described_without_reading_its_arrays(folder: Path) -> None:
    (folder / "mine.npz").write_bytes(b"")
    mine, built_in = sources.available()
    assert (mine.subjects, mine.windows, mine.channels, mine.rate_hz) == (2, 16, 6, 50)
    assert (mine.classes, mine.problem, mine.path) == (2, "", folder / "mine.npz")
    assert built_in.path is None
    for content, part in (("{", "cannot be read"), ("[]", "not an object"), ("{}", "labels")):
        (folder / "mine.json").write_text(content)
        assert part in sources.available()[0].problem


def test_the_description_of_the_built_in_set_is_true() -> None:
    source, dataset = sources.available()[-1], sources.find("synthetic")
    assert (source.subjects, source.windows) == (len(dataset.subjects), len(dataset.x))
    assert (source.channels, source.classes) == (len(dataset.channels), len(dataset.labels))
    assert source.rate_hz == dataset.rate_hz


def test_the_default_is_hapt_where_it_is_at_hand(folder: Path, make_dataset: Make) -> None:
    assert sources.default_name() == "synthetic"
    write(make_dataset(name="hapt"), folder / "hapt.npz")
    assert sources.default_name() == "hapt"


def test_only_hapt_has_fewer_basic_labels(make_dataset: Make) -> None:
    dataset = make_dataset()
    assert sources.basic_labels(dataset) == dataset.labels
    full = replace(dataset, name="hapt", labels=hapt.LABELS)
    assert sources.basic_labels(full) == hapt.BASIC_LABELS


def test_a_written_synthetic_set_is_the_generated_one(tmp_path: Path) -> None:
    dataset = sources.find("synthetic")
    write(dataset, tmp_path / "made.npz")
    assert digest(sources.find(str(tmp_path / "made.npz"))) == digest(dataset)


def test_finding_data_imports_neither_torch_nor_scipy_nor_typer() -> None:
    program = (
        "import sys, fleet.har.sources as s; s.available();"
        "print(sorted({'torch', 'scipy', 'typer', 'flwr'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
