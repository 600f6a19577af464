r"""Layers of a cohort: frozen kernels run over everybody's windows at once, the rest by device.

With d devices of b windows each, device-major, and P positions per window, the channels-last output
of a frozen convolution is a matrix of d·b·P rows. Viewed as ``(d, b·P, O)`` it takes every device's
core in one batched product, with ``z = M·u`` (``svd``) or ``conv(x, S)`` (other frames) shared:

    y_d = u_d + z_d·C_dᵀ + b_d      dC_d = gy_dᵀ·z_d      gz_d = gy_d·C_d
    dx = convᵀ(gy + gz·M, K0)       or, in other frames, convᵀ(gy, K0) + convᵀ(gz, S)

Adding the cores to the kernel, as :mod:`fleet.adapt.lean.convolution` may, would take a kernel and
a convolution per device. A device that runs alone runs lean's own code.

Statistics of a device's own (:mod:`fleet.continual.calibration`) leave the kernels shared as well:
they are one scale and one shift per channel and device, behind the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from fleet.adapt.cohort.stacks import Stacks
from fleet.adapt.lean.convolution import Convolve
from fleet.adapt.lean.layers import Affine, Multiply
from fleet.adapt.lean.layout import matrix
from fleet.adapt.lean.op import Backward, Forward, Kept, Op
from fleet.adapt.lean.ops import Clamp
from fleet.adapt.lean.pooling import MaxPool
from fleet.errors import ModelError

__all__ = ["AffineEach", "ConvolveEach", "MultiplyEach", "for_each"]


def for_each(name: str, op: Op, stacks: Stacks) -> Op:
    """Return the operation with what it trains by device, and the faster of its forms.

    Raises:
        ModelError: ``cohort-dense-kernels`` when it trains a convolution's kernel or the scale or
            shift of a batch norm that could not be folded.
    """
    if isinstance(op, Convolve) and not op.trained.weight:
        return ConvolveEach(op.layer, op.core, op.padding, op.trained, stacks, quick=True)
    if isinstance(op, (Clamp, MaxPool)):
        return replace(op, roomy=True)
    if isinstance(op, Affine) and not op.entries:
        return AffineEach(op.layer, name=name, stacks=stacks)
    if not op.entries:
        return op
    if isinstance(op, Multiply):
        return MultiplyEach(op.layer, op.core, op.trained, stacks)
    what = "scale or shift" if isinstance(op, Affine) else "dense kernel"
    raise ModelError(
        "cohort-dense-kernels",
        f"{name} trains its {what}, and devices that train together share every kernel",
        "Train these devices one by one.",
    )


@dataclass(frozen=True)
class ConvolveEach(Convolve):
    """A convolution whose core and bias differ from device to device.

    Args:
        stacks: Where they are, and whose windows run.
    """

    stacks: Stacks

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the layer's output for ``x (devices·b, channels, ...)``."""
        y, kept = super().forward(inputs, run)
        if self.trained.bias and not self.stacks.alone:
            rows = self._by_device(matrix(y, 1)[0])
            rows.add_(self.stacks.of(self.trained.bias).unsqueeze(1))
        return y, kept

    def _add_core(self, rows: torch.Tensor, z: torch.Tensor) -> None:
        if self.stacks.alone:
            super()._add_core(rows, z)
            return
        for group, core in enumerate(self._cores_by_group):
            self._by_device(rows[group]).baddbmm_(self._by_device(z[group]), core.transpose(1, 2))

    def _collect_bias(self, grad: torch.Tensor, run: Backward) -> None:
        if self.stacks.alone:
            super()._collect_bias(grad, run)
            return
        rows = matrix(grad, 1)[0]
        run.collect(self.trained.bias, self._by_device(rows).sum(dim=1))

    def _collect_core(self, grad: torch.Tensor, z: torch.Tensor, run: Backward) -> None:
        if self.stacks.alone:
            super()._collect_core(grad, z, run)
            return
        rows = matrix(grad, self._layer.groups)
        found = [
            torch.bmm(self._by_device(narrow).transpose(1, 2), self._by_device(wide))
            for narrow, wide in zip(z, rows, strict=True)
        ]
        run.collect(self.trained.core, torch.cat(found, dim=2).transpose(1, 2))

    def _reduced(self, rows: torch.Tensor) -> torch.Tensor:
        if self.stacks.alone:
            return super()._reduced(rows)
        cores = self._cores_by_group
        gz = rows.new_empty((*rows.shape[:2], cores[0].shape[2]))
        for group, core in enumerate(cores):
            # This order in memory is what a thin product reads fastest.
            thin = core.transpose(1, 2).contiguous().transpose(1, 2)
            torch.bmm(self._by_device(rows[group]), thin, out=self._by_device(gz[group]))
        return gz

    def _merges(self, grad: torch.Tensor) -> bool:
        return self.stacks.alone and super()._merges(grad)

    def _by_device(self, rows: torch.Tensor) -> torch.Tensor:
        """View ``rows (devices·b·P, width)`` as ``(devices, b·P, width)``."""
        return rows.view(self.stacks.running, -1, rows.shape[1])

    @property
    def _cores_by_group(self) -> tuple[torch.Tensor, ...]:
        """The cores ``(devices, O/groups, r)`` of each group."""
        return self.stacks.of(self.trained.core).chunk(int(self._layer.groups), dim=1)

    @property
    def _cores(self) -> torch.Tensor:
        core = self.stacks.only(self.trained.core)
        return core.view(int(self._layer.groups), -1, core.shape[1])

    @property
    def _bias(self) -> torch.Tensor | None:
        if not self.trained.bias:
            return super()._bias
        return self.stacks.only(self.trained.bias) if self.stacks.alone else None


@dataclass(frozen=True)
class MultiplyEach(Multiply):
    """A linear layer whose weight, core or bias differ from device to device.

    Args:
        stacks: Where they are, and whose windows run.
    """

    stacks: Stacks

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the layer's output for ``x (devices·b, ..., in)``."""
        if self.stacks.alone:
            return super().forward(inputs, run)
        x, core = inputs[0], self.core
        rows, z = self._rows(x), None
        if self.trained.weight:
            y = torch.bmm(rows, self.stacks.of(self.trained.weight).transpose(1, 2))
        else:
            y = functional.linear(rows, self.layer.weight)
        if core is not None:
            z = y @ core.mixing[0].T if core.kind == "svd" else rows @ core.suffix.T
            y.baddbmm_(z, self.stacks.of(self.trained.core).transpose(1, 2))
        if self.trained.bias:
            y.add_(self.stacks.of(self.trained.bias).unsqueeze(1))
        elif self.layer.bias is not None:
            y.add_(self.layer.bias)
        kept_x = x if self.pins else None
        return y.view(*x.shape[:-1], -1), (z, kept_x) if run.keep else ()

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Collect the gradients of what is trained; return that of the input where wanted."""
        if self.stacks.alone:
            return super().backward(grad, kept, run)
        (z, x), core, rows = kept, self.core, self._rows(grad)
        if self.trained.bias:
            run.collect(self.trained.bias, rows.sum(dim=1))
        gz: torch.Tensor | None = None
        if core is not None:
            assert isinstance(z, torch.Tensor)
            run.collect(self.trained.core, torch.bmm(rows.transpose(1, 2), z))
            gz = torch.bmm(rows, self.stacks.of(self.trained.core))
            if core.kind == "svd":
                rows = rows + gz @ core.mixing[0]
        if isinstance(x, torch.Tensor):
            run.collect(self.trained.weight, torch.bmm(rows.transpose(1, 2), self._rows(x)))
        if not run.wants[0]:
            return (None,)
        if self.trained.weight:
            dx = torch.bmm(rows, self.stacks.of(self.trained.weight))
        else:
            dx = rows @ self.layer.weight
        if gz is not None and core is not None and core.kind != "svd":
            dx.add_(gz @ core.suffix)
        return (dx.view(*grad.shape[:-1], -1),)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """View ``x (devices·b, ..., width)`` as ``(devices, rows, width)``."""
        return x.reshape(self.stacks.running, -1, x.shape[-1])

    @property
    def _weight(self) -> torch.Tensor:
        name = self.trained.weight
        return self.stacks.only(name) if name else super()._weight

    @property
    def _bias(self) -> torch.Tensor | None:
        name = self.trained.bias
        return self.stacks.only(name) if name else super()._bias

    @property
    def _core(self) -> torch.Tensor:
        name = self.trained.core
        return self.stacks.only(name) if name else super()._core


@dataclass(frozen=True, kw_only=True)
class AffineEach(Affine):
    """An affine map that is frozen, and may differ from device to device.

    Args:
        name: Its place in the network.
        stacks: Where the devices' own maps are, and whose windows run.
    """

    name: str
    stacks: Stacks

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the mapped ``x (devices·b, channels, ...)``."""
        own = self.stacks.maps(self.name)
        if own is None:
            return super().forward(inputs, run)
        x = inputs[0] if run.owned[0] else inputs[0].clone()
        rows = self._by_device(x)
        rows.mul_(_lifted(own[0], rows)).add_(_lifted(own[1], rows))
        return x, (None,)

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the input where wanted."""
        own = self.stacks.maps(self.name)
        if own is None or not run.wants[0]:
            return super().backward(grad, kept, run)
        grad = grad if run.owned else grad.clone()
        rows = self._by_device(grad)
        rows.mul_(_lifted(own[0], rows))
        return (grad,)

    def _by_device(self, x: torch.Tensor) -> torch.Tensor:
        """View ``x (devices·b, channels, ...)`` as ``(devices, b, channels, ...)``."""
        return x.view(self.stacks.running, -1, *x.shape[1:])


def _lifted(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """View ``values (devices, channels)`` so that they multiply ``(devices, b, channels, ...)``."""
    return values.view(len(values), 1, -1, *(1,) * (rows.dim() - 3))
