from __future__ import annotations

import pytest
import torch

from fleet.adapt.frames import FrameKind
from tests.fleet.adapt.lean.comparing import assert_same, pair
from tests.fleet.adapt.lean.networks import NETWORKS, windows

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"
        ),
    ),
]


# So few positions that the gradient is moved by the cores, and so many that the kernels are.
@pytest.mark.parametrize("count", [2, 48])
@pytest.mark.parametrize("kind", ["svd", "tt"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_plain_autograds_on_every_device_and_size(
    device: str, name: str, kind: FrameKind, count: int
) -> None:
    plain, lean = pair(name, kind, ("head.weight", "head.bias"), slice_windows=None)
    plain.module.to(device)
    lean.module.to(device)
    assert_same(lean, plain, windows(count).to(device), 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_single_precision_gradients_match_on_every_device_in_a_large_batch(
    device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda":  # TensorFloat-32 has three digits
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, lean = pair(name, dtype=torch.float32, slice_windows=None)
    plain.module.to(device)
    lean.module.to(device)
    assert_same(lean, plain, windows(48, torch.float32).to(device), 1e-5)


def test_detaching_gives_kernels_back_in_pytorchs_own_order() -> None:
    _, lean = pair("t-resnet")
    assert all(p.is_contiguous() for p in lean.detach().parameters())
