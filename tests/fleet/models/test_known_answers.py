from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from fleet.adapt.attach import adaptable_layers
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame, make_frame
from fleet.adapt.state import CoreState, Layout
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.core import core
from fleet.peft.full import full
from fleet.peft.head import head


def network(name: str, channels: int, classes: int) -> nn.Module:
    return build(ModelConfig(name=name, channels=channels, classes=classes, window=128))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def blank_frames(folded: nn.Module, rank: int) -> dict[str, Frame]:
    """Frames of the right sizes; what is counted does not depend on their numbers."""
    layers, _ = adaptable_layers(folded)
    return {
        name: Frame("svd", rank, 1, np.zeros((1, rank, layer.get_parameter("weight").shape[0])))
        for name, layer in layers.items()
    }


def core_layout(module: nn.Module, rank: int) -> Layout:
    folded = fold(module)
    return core.layout(folded, blank_frames(folded, rank))


@pytest.mark.parametrize(
    ("channels", "classes", "wanted"),
    [
        (97, 17, 560_915),
        (45, 19, 531_117),
        (9, 8, 508_890),
        (117, 33, 574_539),
    ],
)
def test_the_t_resnet_has_the_published_number_of_parameters(
    channels: int, classes: int, wanted: int
) -> None:
    assert parameters(network("t-resnet", channels, classes)) == wanted


def test_the_cores_of_the_t_resnet_are_0_411_percent_of_it() -> None:
    module = network("t-resnet", 97, 17)
    layout = core_layout(module, 2)
    assert layout.size == 2_304
    assert round(100 * layout.size / parameters(module), 3) == 0.411


def test_batch_norm_tuning_of_the_t_resnet_is_0_559_percent_of_it() -> None:
    module = network("t-resnet", 97, 17)
    norms = sum(parameters(m) for m in module.modules() if isinstance(m, nn.BatchNorm1d))
    assert round(100 * norms / parameters(module), 3) == 0.559


def test_a_64_to_64_3x3_convolution_trains_128_of_36_864_at_rank_2() -> None:
    layer = nn.Conv2d(64, 64, 3, bias=False)
    assert parameters(layer) == 36_864
    module = nn.Sequential(layer)
    assert core_layout(module, 2).size == 128
    frame = make_frame(np.random.default_rng(0).standard_normal((64, 64, 3, 3)), "svd", 2)
    assert frame.array.shape == (1, 2, 64)


def test_the_small_cnn_has_126_214_parameters_and_1_280_core_entries_at_rank_4() -> None:
    module = network("small-cnn", 6, 6)
    assert parameters(module) == 126_214
    assert core_layout(module, 4).size == 1_280


def test_a_round_of_cores_sends_9_216_bytes_where_weights_are_2_243_660() -> None:
    module = network("t-resnet", 97, 17)
    cores = CoreState.zero(core_layout(module, 2)).flat().nbytes
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    assert (cores, weights) == (9_216, 2_243_660)
    assert weights // cores == 243


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_core_entries_are_the_rank_times_the_outputs_of_all_convolutions(rank: int) -> None:
    module = network("t-resnet", 9, 8)
    outputs = sum(m.out_channels for m in module.modules() if isinstance(m, nn.Conv1d))
    assert outputs == 64 * 4 + 128 * 4 + 128 * 3
    layout = core_layout(module, rank)
    assert layout.size == rank * outputs
    assert all(name.endswith(".core") for name in layout.names)


def test_the_head_and_full_layouts_count_what_they_train() -> None:
    folded = fold(network("small-cnn", 6, 6))
    assert head.layout(folded, {}).size == 128 * 6 + 6
    assert head.layout(folded, {}).names == ("head.bias", "head.weight")
    # The folded network has a bias for each of the 320 outputs instead of scale and shift.
    assert full.layout(folded, {}).size == parameters(folded) == 126_214 - 320
