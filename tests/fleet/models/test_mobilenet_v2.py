from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import adaptable_layers, attach, make_frames
from fleet.adapt.fold import ChannelAffine, fold
from fleet.adapt.frames import FrameKind
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.state import CoreState
from fleet.errors import FrameError
from fleet.models import registry
from fleet.models.config import ModelConfig
from fleet.models.registry import build, names
from tests.fleet.adapt.lean.comparing import assert_same
from tests.fleet.adapt.lean.networks import state_of

FORMS = ("mobilenetv2-1d", "mobilenetv2-2d")
DOCS = Path(__file__).parents[3] / "docs" / "models.md"
# Channels in, expansion, channels out of the 17 blocks, one by one.
BLOCKS = [
    *[(32, 1, 16), (16, 6, 24), (24, 6, 24), (24, 6, 32), (32, 6, 32), (32, 6, 32), (32, 6, 64)],
    *[(64, 6, 64), (64, 6, 64), (64, 6, 64), (64, 6, 96), (96, 6, 96), (96, 6, 96)],
    *[(96, 6, 160), (160, 6, 160), (160, 6, 160), (160, 6, 320)],
]


def network(
    name: str, channels: int = 6, window: int = 60, classes: int = 12, seed: int = 0
) -> nn.Module:
    return build(ModelConfig(name=name, channels=channels, classes=classes, window=window), seed)


@cache
def settled(name: str) -> nn.Module:
    """A network in float64 whose batch norms have values that matter; not to change."""
    model = network(name, 3, classes=4, seed=3)
    source = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the plain mean over the passes below
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=source)
            nn.init.normal_(module.bias, 0, 0.2, generator=source)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 60, generator=source))
    return model.double().eval()


def windows() -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 60, generator=source, dtype=torch.float64)


def zeros_like(state: CoreState) -> CoreState:
    return CoreState.of({name: np.zeros_like(array) for name, array in state.arrays.items()})


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two networks' outputs."""
    with torch.no_grad():
        return float((one(windows()) - other(windows())).abs().max())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def by_hand(channels: int, classes: int, taps: int) -> int:
    """Kernels, and scale and shift of a batch norm behind each of them; ``taps`` per 3-kernel."""
    total = channels * 32 * taps + 2 * 32
    for inputs, expansion, outputs in BLOCKS:
        wide = inputs * expansion
        total += (inputs * wide + 2 * wide) if expansion > 1 else 0
        total += wide * taps + 2 * wide
        total += wide * outputs + 2 * outputs
    return total + 320 * 1280 + 2 * 1280 + 1280 * classes + classes


@pytest.mark.parametrize(
    ("name", "channels", "classes", "wanted"),
    [
        # torchvision documents its MobileNetV2 with 3,504,872.
        ("mobilenetv2-2d", 3, 1000, 3_504_872),
        ("mobilenetv2-1d", 6, 12, 2_196_140),
        ("mobilenetv2-1d", 97, 17, 2_211_281),
        ("mobilenetv2-2d", 6, 12, 2_240_108),
        ("mobilenetv2-2d", 97, 17, 2_272_721),
    ],
)
def test_the_parameters_are_as_many_as_a_count_by_hand_says(
    name: str, channels: int, classes: int, wanted: int
) -> None:
    taps = 9 if name.endswith("2d") else 3
    assert parameters(network(name, channels, classes=classes)) == wanted
    assert by_hand(channels, classes, taps) == wanted


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("window", [60, 100, 128])
@pytest.mark.parametrize("channels", [3, 6, 97])
def test_windows_become_logits_and_keep_a_32nd_of_their_length_rounded_up(
    name: str, window: int, channels: int
) -> None:
    model = network(name, channels, window).eval()
    seen: list[tuple[int, ...]] = []
    model.get_submodule("last").register_forward_hook(lambda m, i, y: seen.append(tuple(y.shape)))
    with torch.no_grad():
        assert model(torch.zeros(2, channels, window)).shape == (2, 12)
    width = (1,) if name.endswith("2d") else ()
    assert seen == [(2, 1280, -(-window // 32), *width)]


@pytest.mark.parametrize("name", FORMS)
def test_the_shortest_window_that_a_config_allows_does_not_vanish(name: str) -> None:
    assert network(name, window=8)(torch.zeros(2, 6, 8)).shape == (2, 12)


@pytest.mark.parametrize("name", FORMS)
def test_the_same_seed_builds_the_same_network(name: str) -> None:
    one, two, other = (network(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["stem.conv.weight"], other["stem.conv.weight"])


def test_on_width_one_the_2d_form_is_the_1d_form_of_its_kernels_middle_columns() -> None:
    wide, narrow = settled("mobilenetv2-2d"), copy.deepcopy(settled("mobilenetv2-1d"))
    middle = {
        key: value[..., value.shape[-1] // 2] if value.dim() == 4 else value
        for key, value in wide.state_dict().items()
    }
    narrow.load_state_dict(middle)
    assert apart(wide, narrow) <= 1e-12


@pytest.mark.parametrize("name", FORMS)
def test_every_batch_norm_folds_and_the_outputs_stay(name: str) -> None:
    raw = settled(name)
    folded = fold(raw)
    kinds = {type(module) for module in folded.modules()}
    assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d, ChannelAffine}
    assert apart(folded, raw) <= 1e-9


@pytest.mark.parametrize("name", FORMS)
def test_all_but_the_17_depthwise_convolutions_carry_a_core(name: str) -> None:
    found, left = adaptable_layers(network(name))
    assert len(found) == 35
    assert sorted(left) == sorted(f"blocks.{block}.depthwise.conv" for block in range(17))
    assert all(reason.startswith("depthwise: ") for reason in left.values())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_frames_are_made_and_a_zero_core_changes_nothing(
    name: str, rank: int, kind: FrameKind
) -> None:
    folded = fold(settled(name))
    frames = make_frames(folded, kind, rank)
    assert len(frames) == 35
    zero = zeros_like(state_of(folded, frames))
    assert zero.arrays["stem.conv.core"].shape == (32, rank)
    attached = attach(folded, frames, zero, dtype=torch.float64)
    assert apart(attached.module, folded) <= 1e-9


def test_a_rank_that_the_stem_of_one_channel_cannot_carry_is_refused_by_name() -> None:
    folded = fold(network("mobilenetv2-1d", channels=1))
    assert len(make_frames(folded, "svd", 3)) == 35
    with pytest.raises(FrameError, match=r"stem\.conv: rank 4 is not possible") as caught:
        make_frames(folded, "svd", 4)
    assert caught.value.code == "rank-too-large"


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["svd", "tt"])
def test_lean_gradients_are_those_of_plain_autograd_and_nothing_falls_back(
    name: str, kind: FrameKind
) -> None:
    folded = fold(settled(name))
    frames = make_frames(folded, kind, 2)
    state = state_of(folded, frames, "head.bias")
    lean = attach_lean(folded, frames, state, dtype=torch.float64, slice_windows=2)
    assert_same(lean, attach(folded, frames, state, dtype=torch.float64), windows(), 1e-9)
    notes = lean.lean.explain()
    assert len(notes) >= 100
    assert all(note.lean for note in notes)


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Windows whose class is their frequency."""
    rng = np.random.default_rng(0)
    y = np.arange(16) % 4
    phase = rng.uniform(0, 2 * np.pi, (16, 3, 1))
    x = np.sin(np.arange(60) * (0.2 + 0.4 * y[:, None, None]) + phase)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def losses(module: nn.Module, trained: list[nn.Parameter], rate: float) -> list[float]:
    """Take 20 steps of Adam on the whole toy problem."""
    (x, y), found = problem(), []
    stepper = torch.optim.Adam(trained, lr=rate)
    for _ in range(20):
        stepper.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("name", FORMS)
def test_twenty_steps_of_the_whole_network_lower_the_loss(name: str) -> None:
    model = network(name, 3, classes=4)
    found = losses(model, list(model.parameters()), 2e-3)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize("name", FORMS)
def test_twenty_steps_of_the_cores_lower_the_loss(name: str) -> None:
    folded = fold(settled(name)).float()
    frames = make_frames(folded, "svd", 4, problem()[0])
    lean = attach_lean(folded, frames, zeros_like(state_of(folded, frames)), dtype=torch.float32)
    found = losses(lean.module, list(lean.parameters.values()), 1e-2)
    assert found[-1] < 0.5 * found[0]


def row_of(name: str) -> list[str]:
    """A backbone's row of the documented table, as the code counts it."""
    cells = [f"`{name}`"]
    for channels, window, classes in ((6, 128, 12), (97, 60, 17)):
        model = network(name, channels, window, classes)
        total = parameters(model)
        found, left = adaptable_layers(model)
        outputs = sum(len(layer.get_parameter("weight")) for layer in found.values())
        shares = (f"{rank * outputs:,} ({100 * rank * outputs / total:.2f} %)" for rank in (2, 4))
        cells += [f"{total:,}", *shares]
    return [*cells, f"{len(found)} of {len(found) + len(left)}"]


def test_the_documented_table_is_what_the_code_counts() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert found[: len(names())] == [row_of(name) for name in names()]


def test_the_documented_example_of_a_model_of_ones_own_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    exec(example, {"__name__": "example"})
    assert "two-layers" in names()
