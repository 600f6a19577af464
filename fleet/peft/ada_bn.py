"""AdaBN: no training; batch norms take their statistics from the target's unlabelled windows.

Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (arXiv 1603.04779). What
a device would send are means and variances; kernels go with ``1/√var``, so averaging those is not
averaging the kernels that the devices serve.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fleet.adapt.attach import single_thread
from fleet.adapt.fold import fold
from fleet.adapt.train import OptimiserName
from fleet.errors import InputError, ModelError
from fleet.peft.batch_norm import batch_norms
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = ["AdaBNTuned", "adabn", "calibrate"]

BATCH = 256


def calibrate(raw: nn.Module, x: torch.Tensor, *, batch: int = BATCH) -> nn.Module:
    """Return a copy whose batch norms hold the statistics of ``x``, in evaluation mode.

    One pass: every batch is normalised by its own statistics, and each norm's inputs over all of
    ``x`` are pooled in float64; variances are unbiased, as running variances are. With at most
    ``2·batch - 1`` windows that is one batch, and every norm holds exactly what it sees on ``x`` in
    evaluation mode (but for biased against unbiased variance). With more, that holds of the first
    norm; a deeper one pools inputs that were normalised batch by batch. Batches interleave, because
    neighbouring windows are mostly of one activity.

    Args:
        raw: Network with its batch norms; not changed.
        x: Normalised windows ``(n, channels, window)``, at least two.
        batch: Windows that run together: ``batch`` to ``2·batch - 1``, or all of fewer.

    Raises:
        ModelError: ``nothing-to-train`` without batch norms, ``norm-without-statistics``.
        InputError: ``too-few-windows`` when ``x`` or ``batch`` has fewer than two.
    """
    if min(len(x), batch) < 2:
        raise InputError(
            "too-few-windows",
            f"statistics need two windows or more in a batch; there are {min(len(x), batch)}",
        )
    module = copy.deepcopy(raw).eval()
    norms = batch_norms(module)
    pools = {name: _Pool() for name in norms}
    hooks = [norm.register_forward_pre_hook(pools[name]) for name, norm in norms.items()]
    for norm in norms.values():
        # In training mode without tracking: batch statistics normalise, no buffer is touched.
        norm.train()
        norm.track_running_stats = False
    batches = max(1, len(x) // batch)
    with torch.no_grad(), single_thread():
        for first in range(batches):
            module(x[first::batches])
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        norm.eval()
        norm.track_running_stats = True
        mean, variance = pools[name].statistics()
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)
    return module


class _Pool:
    """A forward pre-hook that pools mean and variance per channel of what a norm sees (float64)."""

    def __init__(self) -> None:
        self.count = 0
        self.total: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def __call__(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].detach().double().transpose(0, 1).flatten(1)  # (channels, values)
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(dim=1)
        self.squares = self.squares + rows.square().sum(dim=1)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and unbiased variance, both ``(channels,)`` float64."""
        mean = torch.as_tensor(self.total) / self.count
        spread = torch.as_tensor(self.squares) - self.count * mean.square()
        return mean, spread.clamp_min(0.0) / (self.count - 1)


class AdaBNTuned(Tuned):
    """A raw network that :meth:`calibrate` gives the target's statistics; nothing is trained.

    Args:
        raw: Network with its batch norms; not changed.
    """

    def __init__(self, raw: nn.Module) -> None:
        super().__init__(copy.deepcopy(raw).requires_grad_(False).eval())
        self._norms = batch_norms(self.module)

    def calibrate(self, x: torch.Tensor) -> None:
        """Give every batch norm the statistics of ``x (n, channels, window)``."""
        # Into the module that callers may hold, rather than in place of it.
        for name, buffer in calibrate(self.module, x).named_buffers():
            self.module.get_buffer(name).copy_(buffer)

    def merge(self) -> nn.Module:
        """Return the folded network of the calibrated one."""
        return fold(self.module).requires_grad_(False)

    def update_bytes(self) -> int:
        """Return the bytes of all means and variances, and of what is trained beside them."""
        statistics = (
            norm.get_buffer(name)
            for norm in self._norms.values()
            for name in ("running_mean", "running_var")
        )
        return super().update_bytes() + sum(s.numel() * s.element_size() for s in statistics)

    def optimiser(self, name: OptimiserName, learning_rate: float) -> torch.optim.Optimizer:
        """Return an optimiser over what was unfrozen.

        Raises:
            ModelError: ``nothing-to-train`` when that is nothing.
        """
        if not self.trainable():
            raise ModelError(
                "nothing-to-train",
                "AdaBN has no gradient steps: it only re-estimates the statistics of batch norms",
                "Calibrate it on the target's windows instead.",
            )
        return super().optimiser(name, learning_rate)


def _attach(start: Start) -> Tuned:
    return AdaBNTuned(start.raw)


adabn = Tuner(
    name="adabn",
    summary="batch-norm statistics of the target's unlabelled windows; no training",
    attach=_attach,
    trains=False,
)
