from __future__ import annotations

import numpy as np
import torch

from fleet.adapt.attach import make_frames
from fleet.adapt.fold import fold
from fleet.adapt.lean.memory import dynamic_peak
from fleet.adapt.state import CoreState
from fleet.adapt.train import train
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.registry import METHODS

BATCH = 16


def test_a_training_of_t_resnet_holds_at_most_a_quarter_more_than_inference() -> None:
    config = ModelConfig(name="t-resnet", channels=6, classes=12, window=128)
    folded = fold(build(config, seed=0)).requires_grad_(False)
    x = torch.randn(BATCH, 6, 128, generator=torch.Generator().manual_seed(0))
    frames, core = make_frames(folded, "svd", 4, x), METHODS["core"]
    zero = CoreState.zero(core.layout(folded, frames))
    attached = core.attach(folded, frames, zero, dtype=torch.float32)
    y, order = torch.arange(BATCH) % 12, [np.arange(BATCH)] * 2

    def infer() -> None:
        with torch.inference_mode():
            folded(x)

    def trained() -> None:
        train(attached, x, y, order, optimiser="adam", learning_rate=1e-4)

    # The training's peak counts what `train` makes: the batch's copy and the optimiser's moments.
    assert dynamic_peak(trained) <= 1.25 * dynamic_peak(infer)
