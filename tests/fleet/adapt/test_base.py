from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load, save

from fleet.adapt.base import Base, BaseRecord, load_base, read_bundle, save_base, write_bundle
from fleet.adapt.frames import Frame
from fleet.adapt.network import folded_network, parameters_of
from fleet.errors import FleetError, MismatchError, StorageError


@pytest.fixture
def saved(base: Base, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    save_base(base, path)
    return path


def code_of(path: Path) -> str:
    with pytest.raises(FleetError) as caught:
        load_base(path)
    assert path.name in caught.value.message
    return caught.value.code


def test_a_saved_base_comes_back_with_its_digest(base: Base, saved: Path) -> None:
    again = load_base(saved)
    assert again.digest == base.digest
    assert again.frame_digest == base.frame_digest
    assert again.record == base.record
    assert again.arrays.keys() == base.arrays.keys()
    for name, array in base.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(again.arrays[name], array)
    for name, frame in base.frames.items():
        assert again.frames[name].digest == frame.digest


def test_a_base_that_came_back_has_the_same_network(base: Base, saved: Path) -> None:
    one, other = (parameters_of(folded_network(b)) for b in (base, load_base(saved)))
    for name, array in one.items():
        assert other[name].tobytes() == array.tobytes()


def test_saving_twice_gives_the_same_file(base: Base, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "again.safetensors"
    save_base(load_base(saved), other)
    assert other.read_bytes() == saved.read_bytes()


def with_record(base: Base, **changes: Any) -> Base:
    return dataclasses.replace(base, record=base.record.model_copy(update=changes))


def test_every_part_of_a_base_is_in_its_digest(base: Base) -> None:
    weight = base.arrays["conv1.weight"].copy()
    weight[0, 0, 0] = np.nextafter(weight[0, 0, 0], np.float32(9))
    frame = base.frames["conv1"]
    frames = dict(base.frames)
    variants = [
        base,
        with_record(base, labels=("lie", "run", "walk", "sit")),
        with_record(base, mean=(0.0, 0.5, -0.125)),
        with_record(base, std=(1.0, 2.0, 0.25)),
        with_record(base, channels=(("x", "g"), ("y", "m/s^2"), ("z", "m/s^2"))),
        with_record(base, rate_hz=20.0),
        with_record(base, stride=4),
        with_record(base, trained_on="four people"),
        dataclasses.replace(base, arrays={**base.arrays, "conv1.weight": weight}),
        dataclasses.replace(base, frames={**frames, "conv1": Frame("svd", 2, 1, -frame.array)}),
        dataclasses.replace(base, frames={n: f for n, f in frames.items() if n != "conv1"}),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)


def test_the_frame_digest_depends_on_the_frames_alone(base: Base) -> None:
    assert with_record(base, stride=4).frame_digest == base.frame_digest
    swapped = {**base.frames, "conv2": base.frames["conv3"], "conv3": base.frames["conv2"]}
    assert dataclasses.replace(base, frames=swapped).frame_digest != base.frame_digest


def test_a_missing_base_is_told(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none.safetensors") == "bundle-missing"


def test_a_folder_is_no_base(tmp_path: Path) -> None:
    assert code_of(tmp_path) == "bundle-unreadable"


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_base_that_was_cut_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    assert code_of(saved) == "bundle-damaged"


def test_a_base_with_bytes_behind_its_end_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert code_of(saved) == "bundle-damaged"


def test_a_flipped_bit_in_any_array_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    for position in np.linspace(8 + length, len(content) - 1, 12).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 1
        saved.write_bytes(damaged)
        assert code_of(saved) == "base-damaged"


def test_a_flipped_bit_in_the_header_is_refused_and_never_a_bug(saved: Path) -> None:
    content = saved.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    for position in [0, 1, 7, 8, *np.linspace(9, 7 + length, 60).astype(int)]:
        damaged = bytearray(content)
        damaged[position] ^= 1
        if damaged == content:
            continue
        saved.write_bytes(damaged)
        assert code_of(saved) in ("bundle-damaged", "base-damaged", "bundle-format")


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_a_pickle_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(pickle.dumps({"format": "corefleet.base.1", "trap": Trap()}))
    assert code_of(path) == "bundle-damaged"


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"a": np.zeros(3)}))
    with pytest.raises(MismatchError, match="no Corefleet record") as caught:
        load_base(path)
    assert caught.value.code == "bundle-format"
    write_bundle(path, {"a": np.zeros(3)}, {"format": "corefleet.merged.1"})
    with pytest.raises(MismatchError, match=r"holds corefleet\.merged\.1"):
        load_base(path)


@pytest.mark.parametrize("record", ["[]", "3", "null", '"corefleet.base.1"', "{", "\ud83d"])
def test_a_record_that_is_no_object_is_refused(tmp_path: Path, record: str) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(
        save({"a": np.zeros(3)}, metadata={"corefleet": record.encode(errors="replace").decode()})
    )
    assert code_of(path) == "bundle-damaged"


def rewritten(saved: Path, change: Any) -> None:
    """Give the bundle another record, tensors as they are."""
    _, record = read_bundle(saved, "corefleet.base.1")
    change(record)
    content = save(load(saved.read_bytes()), metadata={"corefleet": json.dumps(record)})
    saved.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("digest"),
        lambda r: r.update(digest="0" * 64),
        lambda r: r.update(digest=None),
        lambda r: r.pop("record"),
        lambda r: r.update(record=[]),
        lambda r: r["record"].update(window="wide"),
        lambda r: r["record"].update(extra=1),
        lambda r: r["record"].update(stride=4),
        lambda r: r.pop("frames"),
        lambda r: r.update(frames=[]),
        lambda r: r.update(frames={"conv1": 3}),
        lambda r: r["frames"].update(absent=["svd", 2, 1]),
        lambda r: r["frames"].update(conv1=["svd", 2]),
        lambda r: r["frames"].update(conv1=["tt", 2, 1]),
        lambda r: r["frames"].pop("conv1"),
    ],
)
def test_a_record_that_does_not_fit_its_content_is_refused(saved: Path, change: Any) -> None:
    rewritten(saved, change)
    assert code_of(saved) == "base-damaged"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("only",)},
        {"channels": ()},
        {"rate_hz": 0.0},
        {"window": 0},
        {"rank": 0},
        {"frame_kind": "cp"},
        {"colour": "blue"},
    ],
)
def test_a_record_out_of_range_is_refused(base: Base, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BaseRecord.model_validate(base.record.model_dump() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 10**9},
        {"rank": 1},
        {"rank": [2]},
        {"rank": True},
        {"groups": 10**9},
        {"groups": 0},
        {"groups": 1.0},
    ],
)
@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_a_frame_that_says_more_than_its_array_holds_is_refused(
    base: Base, tmp_path: Path, kind: str, change: dict[str, Any]
) -> None:
    layer, frame = next(iter(base.frames.items()))
    whole = frame.array if kind == "svd" else np.ascontiguousarray(frame.array[0])
    lying = dataclasses.replace(frame, kind=kind, array=whole, **change)
    other = dataclasses.replace(base, frames={**base.frames, layer: lying})
    save_base(other, tmp_path / "lying.safetensors")
    assert code_of(tmp_path / "lying.safetensors") == "base-damaged"


def test_a_bundle_keeps_layouts_and_byte_orders_out_of_the_file(tmp_path: Path) -> None:
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    files = []
    for number, array in enumerate([plain, np.asfortranarray(plain), plain.astype(">f4")]):
        path = tmp_path / str(number)
        write_bundle(path, {"b": array, "a": plain[0]}, {"format": "x"})
        files.append(path.read_bytes())
        tensors, record = read_bundle(path, "x")
        np.testing.assert_array_equal(tensors["b"], plain)
        assert record == {"format": "x"}
    assert files[0] == files[1] == files[2]


def test_a_bundle_that_cannot_be_written_leaves_the_old_one(
    saved: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StorageError) as caught:
        save_base(with_record(base, stride=4), saved)
    assert caught.value.code == "disk-full"
    assert load_base(saved).digest == base.digest
