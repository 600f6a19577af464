from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fleet.adapt.attach import adaptable_layers, capped_ranks, make_frames
from fleet.adapt.base import Base, load_base, save_base
from fleet.adapt.fold import fold
from fleet.adapt.frames import FRAME_KINDS, FrameKind, largest_rank
from fleet.adapt.network import folded_network
from fleet.errors import FrameError
from fleet.models.config import ModelConfig
from fleet.models.registry import build, names
from fleet.peft.registry import find

X = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(1))
SOURCES = [(X, torch.arange(6) % 4), (X.flip(0), torch.arange(6) % 4)]


@pytest.fixture
def network() -> nn.Module:
    config = ModelConfig(name="small-cnn", channels=3, classes=4, window=16)
    return fold(build(config, seed=3)).requires_grad_(False)


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_layers_that_a_mapping_leaves_out_or_gives_zero_get_no_frame(
    network: nn.Module, kind: FrameKind
) -> None:
    frames = make_frames(network, kind, {"conv3": 3, "conv1": 0}, X, sources=SOURCES)
    assert {name: frame.rank for name, frame in frames.items()} == {"conv3": 3}


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_one_rank_for_all_is_that_rank_for_each(network: nn.Module, kind: FrameKind) -> None:
    one = make_frames(network, kind, 2, X, sources=SOURCES)
    other = make_frames(network, kind, dict.fromkeys(one, 2), X, sources=SOURCES)
    assert {n: f.digest for n, f in one.items()} == {n: f.digest for n, f in other.items()}


def test_no_layer_at_all_is_no_frame(network: nn.Module) -> None:
    assert make_frames(network, "svd", {}, X) == {}


def test_a_layers_frame_does_not_depend_on_the_ranks_of_the_others(network: nn.Module) -> None:
    one = make_frames(network, "svd", {"conv1": 2, "conv2": 1}, X)
    other = make_frames(network, "svd", {"conv1": 2, "conv3": 5}, X)
    assert one["conv1"].digest == other["conv1"].digest


@pytest.mark.parametrize(("ranks", "said"), [({"conv9": 1}, "conv1"), ({"head": 1}, "conv1")])
def test_a_rank_for_a_layer_that_is_not_adaptable_is_refused(
    network: nn.Module, ranks: dict[str, int], said: str
) -> None:
    with pytest.raises(FrameError, match=said) as caught:
        make_frames(network, "svd", ranks)
    assert caught.value.code == "unknown-layer"


def test_a_rank_for_a_depthwise_layer_is_refused_with_the_reason() -> None:
    network = fold(build(ModelConfig(name="mobilenetv2-1d", channels=3, classes=4, window=32)))
    depthwise = next(iter(adaptable_layers(network)[1]))
    with pytest.raises(FrameError, match="depthwise") as caught:
        make_frames(network, "svd", {depthwise: 1})
    assert caught.value.code == "unknown-layer"


@pytest.mark.parametrize("rank", [-1, 16])
def test_a_mapped_rank_beyond_the_kernel_is_refused(network: nn.Module, rank: int) -> None:
    with pytest.raises(FrameError, match="conv1: rank") as caught:
        make_frames(network, "svd", {"conv1": rank})
    assert caught.value.code == "rank-too-large"


@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
@pytest.mark.parametrize("name", names())
def test_a_capped_sweep_to_rank_32_runs_on_every_backbone(name: str, kind: FrameKind) -> None:
    network = fold(build(ModelConfig(name=name, channels=3, classes=4, window=32), seed=1))
    ranks = capped_ranks(network, kind, 32)
    assert set(ranks) == set(adaptable_layers(network)[0])
    frames = make_frames(network, kind, ranks)
    assert {n: f.rank for n, f in frames.items()} == ranks
    for layer, rank in ranks.items():
        module = network.get_submodule(layer)
        shape = module.get_parameter("weight").shape
        assert rank <= min(32, largest_rank(shape, kind, module.groups))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["svd", "tt", "gradient"])
def test_capped_ranks_are_the_rank_where_it_is_possible(
    network: nn.Module, kind: FrameKind
) -> None:
    assert capped_ranks(network, kind, 3, sources=SOURCES) == dict.fromkeys(
        ["conv1", "conv2", "conv3"], 3
    )


def test_a_capped_rank_stops_at_the_kernels_own_and_at_a_gap_of_its_spectrum(
    network: nn.Module,
) -> None:
    network = copy.deepcopy(network)
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 4)))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(15, 4)))
    for sigma, rank, wanted in (
        ([3.0, 2.0, 1.0], 4, 3),
        ([3.0, 2.0, 2.0, 1.0], 2, 1),
        ([3.0, 2.0, 2.0, 1.0], 3, 3),
        ([2.0, 2.0, 2.0, 1.0], 2, 0),
        ([0.0], 5, 0),
    ):
        kernel = (u[:, : len(sigma)] * sigma) @ v[:, : len(sigma)].T
        with torch.no_grad():
            network.conv1.weight.copy_(torch.from_numpy(kernel.reshape(64, 3, 5)))  # type: ignore[union-attr,operator,arg-type]
        ranks = capped_ranks(network, "svd", rank)
        assert ranks["conv1"] == wanted, sigma
        assert make_frames(network, "svd", ranks).get("conv1") is None or wanted


def test_capped_ranks_of_a_learned_kind_know_what_the_sources_hold(network: nn.Module) -> None:
    silent = [(x.clone(), y) for x, y in SOURCES]
    for x, _ in silent:
        x[:, 2] = 0.0
    assert capped_ranks(network, "gradient", 32)["conv1"] == 15
    ranks = capped_ranks(network, "gradient", 32, sources=silent)
    assert ranks["conv1"] == 10
    assert make_frames(network, "gradient", ranks, sources=silent)["conv1"].rank == 10


def test_a_capped_rank_below_one_is_refused(network: nn.Module) -> None:
    with pytest.raises(FrameError) as caught:
        capped_ranks(network, "svd", 0)
    assert caught.value.code == "rank-too-small"


@pytest.mark.parametrize("kind", ["svd", "gradient"])
def test_a_base_with_a_rank_of_each_layer_comes_back_whole(
    base: Base, tmp_path: Path, kind: FrameKind
) -> None:
    folded = folded_network(base)
    frames = make_frames(folded, kind, {"conv1": 3, "conv3": 1}, sources=SOURCES)
    record = base.record.model_copy(update={"frame_kind": kind, "rank": 3})
    mixed = Base(record, base.arrays, frames)
    save_base(mixed, tmp_path / "mixed.safetensors")
    again = load_base(tmp_path / "mixed.safetensors")
    assert again.digest == mixed.digest != base.digest
    assert {n: (f.kind, f.rank) for n, f in again.frames.items()} == {
        "conv1": (kind, 3),
        "conv3": (kind, 1),
    }
    layout = find("core").layout(folded_network(again), again.frames)
    assert dict(layout.entries) == {"conv1.core": (64, 3), "conv3.core": (128, 1)}
