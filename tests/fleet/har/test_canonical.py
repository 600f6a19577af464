from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import DataError
from fleet.har.canonical import Channel, DataSet, digest, quantise, read, select_labels, write

Make = Callable[..., DataSet]


@pytest.fixture
def stored(make_dataset: Make, tmp_path: Path) -> Path:
    write(make_dataset(), tmp_path / "tiny.npz")
    return tmp_path / "tiny.npz"


def edit_json(npz: Path, **changes: Any) -> None:
    path = npz.with_suffix(".json")
    content = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def rewrite_arrays(npz: Path, **changes: Any) -> None:
    with np.load(npz) as stored:
        arrays = {**stored, **changes}
    np.savez(npz, **{key: value for key, value in arrays.items() if value is not None})
    edit_json(npz, sha256=None, bytes=None)


def code_of(path: Path) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.hint
    return caught.value.code, caught.value.message


def test_reading_gives_back_what_was_written(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset()
    write(dataset, tmp_path / "new" / "tiny.npz")
    again = read(tmp_path / "new" / "tiny.npz")
    for name in ("x", "scale", "y", "subject", "rec"):
        before, after = getattr(dataset, name), getattr(again, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    for name in ("name", "labels", "channels", "rate_hz", "window", "stride", "info"):
        assert getattr(dataset, name) == getattr(again, name)
    assert digest(dataset) == digest(again)


def test_the_json_holds_the_counts_and_the_sha256(stored: Path) -> None:
    content = json.loads(stored.with_suffix(".json").read_text())
    assert content["shape"] == [16, 6, 4]
    assert content["windows_per_label"] == {"walk": 8, "sit": 8}
    assert content["windows_per_subject"] == {"1": 8, "2": 8}
    assert content["bytes"] == stored.stat().st_size
    assert len(content["sha256"]) == 64


def test_writing_twice_gives_the_same_bytes(make_dataset: Make, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write(make_dataset(), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("name", ["tiny.npz", "tiny.json", "tiny"])
def test_a_data_set_is_read_by_either_file_or_its_stem(stored: Path, name: str) -> None:
    assert read(stored.with_name(name)).name == "tiny"


def test_every_problem_is_listed_at_once(stored: Path) -> None:
    rewrite_arrays(stored, y=np.zeros(16, np.int64), scale=None)
    edit_json(stored, labels=["walk", "walk"], stride=9, sampling_rate_hz=0, window=5)
    code, message = code_of(stored)
    assert code == "data-invalid"
    for part in (
        "'scale' is missing",
        "y must be int16, not int64",
        "walk comes twice",
        "stride 9",
    ):
        assert part in message
    for part in ("sampling_rate_hz must be a positive number, not 0", "window is 5 samples but"):
        assert part in message


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"y": np.full(16, 2, np.int16)}, "y must lie in 0..1 but holds [2]"),
        ({"y": np.zeros(3, np.int16)}, "y has 3 rows but x has 16 windows"),
        ({"scale": np.array([0.1] * 5 + [np.nan], np.float32)}, "scale must be finite"),
        ({"scale": np.array([0.1] * 5 + [-1], np.float32)}, "scale must be finite and positive"),
        ({"scale": np.ones(5, np.float32)}, "scale has 5 values but x has 6"),
        ({"rec": np.zeros(16, np.int32)}, "recordings must belong to one subject each, but [0]"),
        ({"subject": np.full(16, -1, np.int16)}, "must not be negative"),
        ({"x": np.zeros((16, 6), np.int16)}, "x must have 3 axes"),
        ({"x": np.zeros((16, 6, 4), np.float32)}, "quantise(x) -> (x, scale)"),
        ({"x": np.zeros((16, 5, 4), np.int16)}, "6 channels are described but x has 5"),
        ({name: np.zeros((0, 6, 4)[: 3 if name == "x" else 1], dtype) for name, dtype in (
            ("x", np.int16), ("y", np.int16), ("subject", np.int16), ("rec", np.int32))},
         "at least one window"),
    ],
)  # fmt: skip
def test_broken_arrays_are_refused(stored: Path, arrays: dict[str, Any], part: str) -> None:
    rewrite_arrays(stored, **arrays)
    code, message = code_of(stored)
    assert code == "data-invalid"
    assert part in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labels": []}, "labels must be a non-empty list"),
        ({"labels": ["walk", ""]}, "labels must be non-empty strings"),
        ({"channels": [{"name": "a"}] * 6}, "channel 0 needs a unit"),
        ({"channels": [{"name": "a", "unit": "g"}] * 6}, "a comes twice"),
        ({"window": True}, "window must be a positive whole number"),
        ({"stride": 2.0}, "stride must be a positive whole number"),
        ({"sampling_rate_hz": "50"}, "sampling_rate_hz must be a positive number, not '50'"),
        ({"name": 3}, "name must be a non-empty string"),
        ({"n_windows": 17}, "the JSON says n_windows = 17 but the npz holds 16"),
        ({"windows_per_label": {"walk": 16}}, "the JSON says windows_per_label"),
        ({"sha256": "00"}, "the JSON says sha256 = '00'"),
    ],
)
def test_a_broken_description_is_refused(stored: Path, changes: dict[str, Any], part: str) -> None:
    edit_json(stored, **changes)
    code, message = code_of(stored)
    assert code == "data-invalid"
    assert part in message


def test_each_kind_of_broken_file_has_its_own_code(stored: Path, tmp_path: Path) -> None:
    whole = stored.read_bytes()
    assert code_of(tmp_path / "absent.npz")[0] == "data-missing"
    for content in (whole[: len(whole) // 2], b"", b"not a zip", whole[:200] + b"?" + whole[201:]):
        stored.write_bytes(content)
        assert code_of(stored)[0] == "data-corrupt"
    pickled = io.BytesIO()
    np.savez(pickled, x=np.array([{}], dtype=object))
    stored.write_bytes(pickled.getvalue())
    assert code_of(stored)[0] == "data-pickled"
    for text in ("{", "[" * 100_000, '"text"'):
        stored.with_suffix(".json").write_text(text)
        assert code_of(stored)[0] == "json-invalid"
    stored.with_suffix(".json").write_bytes(b"\xff\xfe")
    assert code_of(stored)[0] == "json-invalid"
    stored.with_suffix(".json").unlink()
    assert code_of(stored)[0] == "json-missing"


def test_a_broken_data_set_is_not_written(make_dataset: Make, tmp_path: Path) -> None:
    for broken in (
        make_dataset(window=3),
        make_dataset(info={"sha256": "x"}),
        make_dataset(info={"bad": {1, 2}}),
        make_dataset(info={"bad": float("nan")}),
    ):
        with pytest.raises(DataError) as caught:
            write(broken, tmp_path / "tiny.npz")
        assert caught.value.code == "data-invalid"
    assert list(tmp_path.iterdir()) == []


def test_physical_values_are_steps_times_scale(make_dataset: Make) -> None:
    dataset = make_dataset()
    expected = dataset.x.astype(np.float64) * dataset.scale.astype(np.float64)[:, None]
    assert dataset.physical().dtype == np.float32
    np.testing.assert_allclose(dataset.physical(), expected, rtol=1e-6)
    np.testing.assert_array_equal(dataset.physical(slice(2, 4)), dataset.physical()[2:4])
    np.testing.assert_array_equal(dataset.physical(np.array([3, 1])), dataset.physical()[[3, 1]])


def test_subjects_are_sorted_ints(make_dataset: Make) -> None:
    assert make_dataset().subjects == (1, 2)
    assert all(type(person) is int for person in make_dataset().subjects)


def test_selecting_labels_keeps_their_windows_in_the_given_order(make_dataset: Make) -> None:
    dataset = make_dataset()
    swapped = select_labels(dataset, ["sit", "walk"])
    np.testing.assert_array_equal(swapped.y, 1 - dataset.y)
    only = select_labels(dataset, ["sit"])
    assert only.labels == ("sit",)
    np.testing.assert_array_equal(only.x, dataset.x[dataset.y == 1])
    np.testing.assert_array_equal(only.rec, dataset.rec[dataset.y == 1])


@pytest.mark.parametrize(
    ("labels", "code"),
    [(["run"], "unknown-label"), (["sit", "sit"], "unknown-label"), ([], "no-windows")],
)
def test_unknown_labels_are_refused_with_the_known(
    make_dataset: Make, labels: list[str], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        select_labels(make_dataset(), labels)
    assert caught.value.code == code
    if code == "unknown-label":
        assert "walk, sit" in caught.value.hint


def test_the_digest_sees_content_and_not_layout(make_dataset: Make) -> None:
    dataset = make_dataset()
    big_endian = replace(dataset, x=np.asfortranarray(dataset.x).astype(">i2"), info={}, name="n")
    assert digest(big_endian) == digest(dataset)
    changed = dataset.x.copy()
    changed[0, 0, 0] += 1
    others = [
        replace(dataset, x=changed),
        replace(dataset, y=1 - dataset.y),
        replace(dataset, labels=("sit", "walk")),
        replace(dataset, channels=(Channel("a", "b"), *dataset.channels[1:])),
        replace(dataset, rate_hz=51.0),
        replace(dataset, stride=1),
    ]
    assert len({digest(other) for other in [dataset, *others]}) == len(others) + 1


@given(st.integers(0, 2**32), st.floats(-6, 6))
def test_quantising_moves_no_value_by_more_than_half_a_step(seed: int, magnitude: float) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 2, 5)) * 10**magnitude
    x, scale = quantise(values.astype(np.float32))
    assert x.dtype == np.int16
    back = x.astype(np.float64) * scale[:, None]
    # Float32 division is exact to about 1e-7 of a value, which is 32767 steps at most.
    assert (np.abs(back - values) <= 0.51 * scale[:, None]).all()


def test_quantising_a_silent_channel_gives_zeros_and_a_valid_scale() -> None:
    x, scale = quantise(np.zeros((2, 3, 4), np.float32))
    assert not x.any()
    assert (scale == 1).all()
    tiny = quantise(np.full((1, 1, 1), 1e-44, np.float32))[1]
    assert (tiny > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_quantising_refuses_what_is_not_finite_and_names_the_place(bad: float) -> None:
    values = np.zeros((3, 2, 4))
    values[2, 1, 0] = bad
    with pytest.raises(DataError, match="NaN or Inf: window 2, channel 1"):
        quantise(values)


def test_quantising_refuses_integers_wrong_axes_and_what_the_scale_cannot_hold() -> None:
    for wrong in (np.zeros((2, 3, 4), int), np.zeros((2, 3))):
        with pytest.raises(DataError, match="x must be floating"):
            quantise(wrong)
    with pytest.raises(DataError, match="more than 32767 steps: window 0, channel 0"):
        quantise(np.full((1, 1, 1), 200.0), np.array([0.005], np.float32))


def test_every_shared_data_set_is_sound(shared_har: Path) -> None:
    for path in sorted(shared_har.glob("*.npz")):
        dataset = read(path)
        assert dataset.name == path.stem
        assert "licence" in dataset.info
