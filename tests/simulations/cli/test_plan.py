from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.rank_plan import costs_of, plan_ranks, spectra_of
from server.control.cli.root import run

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = run(["plan", *arguments, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


def test_a_plan_stays_within_its_bytes_and_names_every_layer(ask: Ask) -> None:
    code, envelope = ask("--bytes", "2KiB", "--model", "t-resnet")
    assert (code, envelope["status"]) == (0, "ok")
    data = envelope["data"]
    assert data["budget_bytes"] == 2048
    assert len(data["layers"]) == 11
    assert data["bytes"] == sum(row["bytes"] for row in data["layers"]) <= 2048
    for row in data["layers"]:
        assert row["bytes"] == 4 * row["kernel"][0] * row["rank"]
        assert bool(row["reason"]) == (row["rank"] == 0)
    assert data["uniform"]["rank"] == 0
    assert not data["trained"]


def test_the_uniform_rank_beside_it_fits_the_same_bytes(ask: Ask) -> None:
    _, envelope = ask("--bytes", "10kB", "--model", "small-cnn")
    data = envelope["data"]
    assert data["uniform"]["rank"] == 10_000 // (4 * (64 + 128 + 128))
    assert data["uniform"]["bytes"] <= 10_000
    assert data["shares"] >= data["uniform"]["shares"] > 0


def test_a_plan_of_a_base_is_that_of_its_folded_kernels(
    ask: Ask, tiny_base: Base, tiny_base_file: Path
) -> None:
    _, envelope = ask("--bytes", "6kB", "--base", str(tiny_base_file))
    network = folded_network(tiny_base)
    wanted = plan_ranks(spectra_of(network), costs_of(network), 6000)
    assert {row["layer"]: row["rank"] for row in envelope["data"]["layers"]} == wanted.ranks
    assert envelope["data"]["shares"] == pytest.approx(wanted.captured)
    assert envelope["data"]["trained"]


def test_a_trained_head_takes_its_bytes_off_the_budget(ask: Ask) -> None:
    _, without = ask("--bytes", "6kB", "--model", "small-cnn", "--classes", "6")
    _, with_head = ask("--bytes", "9096", "--model", "small-cnn", "--classes", "6", "--head")
    assert with_head["data"]["head_bytes"] == 4 * (6 * 128 + 6)
    assert with_head["data"]["layers"] == without["data"]["layers"]
    assert with_head["data"]["bytes"] == without["data"]["bytes"] + 3096


def test_depthwise_layers_are_named_with_the_reason(ask: Ask) -> None:
    _, envelope = ask("--bytes", "10kB", "--model", "mobilenetv2-1d")
    left = envelope["data"]["not_adaptable"]
    assert left
    assert all("depthwise" in row["reason"] for row in left)


def test_a_table_shows_layers_total_and_uniform_rank_and_warns_of_untrained_kernels(
    capsys: pytest.CaptureFixture[str], tiny_base_file: Path
) -> None:
    assert run(["plan", "--bytes", "6kB", "--model", "small-cnn"]) == 0
    text = capsys.readouterr().out
    for word in ("conv1", "64 × 6 × 5", "total", "uniform rank 4", "untrained"):
        assert word in text
    assert run(["plan", "--bytes", "6kB", "--base", str(tiny_base_file)]) == 0
    text = capsys.readouterr().out
    assert "conv1" in text
    assert "untrained" not in text


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (["--bytes", "255"], "budget-too-small", "256 bytes"),
        (["--bytes", "3100", "--model", "small-cnn", "--head"], "budget-too-small", "3,352 bytes"),
        (["--bytes", "10", "--head"], "budget-too-small", "bytes"),
        (["--bytes", "many"], "size", "64MiB"),
        (["--bytes", "2KiB", "--model", "nonsense"], "unknown-model", "--model"),
        (["--bytes", "2KiB", "--base", "none.safetensors"], "bundle-missing", ""),
        (["--bytes", "2KiB", "--base", "x", "--model", "calanet"], "plan-base", ""),
        (["--bytes", "2KiB", "--window", "99999999"], "model-sizes", ""),
        ([], "usage", "--help"),
    ],
)
def test_a_wrong_flag_is_an_error_with_its_code_and_the_next_step(
    ask: Ask, flags: list[str], error: str, said: str
) -> None:
    code, envelope = ask(*flags)
    assert code in (1, 4)
    assert envelope["error_code"] == error
    assert said in envelope["hint"]


def test_a_plan_does_not_depend_on_the_run(ask: Ask) -> None:
    one, two = (ask("--bytes", "10kB")[1]["data"] for _ in range(2))
    assert one == two
    assert np.isfinite(one["shares"])
