from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.fold import fold
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.errors import MismatchError
from fleet.federate.releases import Release, first_release
from fleet.federate.served import load_merged, merge_release, save_merged
from fleet.models.config import ModelConfig
from fleet.models.registry import build, names
from fleet.peft.registry import find


def base_of(name: str, seed: int = 0) -> Base:
    config = ModelConfig(name=name, channels=3, classes=4, window=32)
    network = build(config, seed=seed).train()
    # Batch norms of data that they have seen, else deep networks answer the same to everything.
    x = torch.randn(16, 3, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        for _ in range(30):
            network(x)
    network.eval()
    record = BaseRecord(
        model=config,
        labels=("a", "b", "c", "d"),
        channels=(("acc_x", "m/s^2"), ("acc_y", "m/s^2"), ("acc_z", "m/s^2")),
        rate_hz=50.0,
        window=32,
        stride=16,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        rank=2,
    )
    arrays = {key: np.array(value.numpy()) for key, value in network.state_dict().items()}
    return Base(record, arrays, make_frames(fold(network), "svd", 2))


def moved(base: Base) -> Release:
    layout = find("core").layout(folded_network(base), base.frames)
    flat = np.random.default_rng(0).normal(0, 0.01, layout.size).astype(np.float32)
    first = first_release(base, "core", layout)
    state = CoreState.from_flat(layout, flat)
    return Release(1, first.base, first.frame, first.digest, "core", state)


@pytest.mark.parametrize("name", ["calanet", "small-cnn", "t-resnet"])
def test_the_merged_model_has_the_bases_graph_node_by_node(name: str, tmp_path: Path) -> None:
    base = base_of(name)
    save_merged(base, moved(base), tmp_path / "merged.safetensors")
    merged, _ = load_merged(tmp_path / "merged.safetensors")
    example = (torch.zeros(2, 3, 32),)
    with torch.no_grad():
        graphs = [torch.export.export(net, example) for net in (merged, folded_network(base))]
    nodes = [[(n.op, str(n.target)) for n in graph.graph.nodes] for graph in graphs]
    assert nodes[0] == nodes[1]
    assert not any("batch_norm" in target for _, target in nodes[0])


@pytest.mark.parametrize("name", names())
def test_the_merged_model_computes_what_the_attached_one_does(name: str, tmp_path: Path) -> None:
    base = base_of(name)
    release = moved(base)
    save_merged(base, release, tmp_path / "merged.safetensors")
    merged, about = load_merged(tmp_path / "merged.safetensors")
    x = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(0))
    network = folded_network(base)
    attached = find("core").attach(network, base.frames, release.state, dtype=torch.float32)
    with torch.no_grad():
        expected = attached.module(x)
        torch.testing.assert_close(merged(x), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(network(x), expected, rtol=1e-3, atol=1e-4)
    assert about.labels == base.record.labels


def test_the_first_release_merges_to_the_base_bit_for_bit() -> None:
    base = base_of("t-resnet")
    layout = find("core").layout(folded_network(base), base.frames)
    merged = merge_release(base, first_release(base, "core", layout))
    for key, parameter in folded_network(base).named_parameters():
        assert merged[key].tobytes() == parameter.detach().numpy().tobytes()


def test_a_release_of_another_base_is_refused() -> None:
    with pytest.raises(MismatchError) as caught:
        merge_release(base_of("small-cnn", seed=1), moved(base_of("small-cnn", seed=0)))
    assert caught.value.code == "wrong-base"
