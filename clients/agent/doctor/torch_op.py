"""One real operation on the accelerator, compared with the CPU; run as a script of its own.

A wrong torch ends a process by a signal (illegal instruction, a driver that does not fit), and a
CUDA call may hang for ever, so the doctor runs this file in another process and, on a Jetson, by
another interpreter. It imports nothing of Corefleet and prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SIZE = 64
# Float32 with TensorFloat-32 products has ten bits: 64 products of about 1 differ by far less.
TOLERANCE = 0.05


def try_torch() -> dict[str, Any]:
    """Import torch, multiply two matrices on the device and on the CPU, and compare.

    Returns:
        ``torch`` (version), ``device`` (its name, or ``cpu``), ``ok`` and ``error``; ``built_cuda``
        is the CUDA version that torch was built with, if any.
    """
    answer: dict[str, Any] = {"python": sys.version.split()[0], "ok": False, "error": ""}
    try:
        import torch
    except Exception as error:  # ImportError, but also OSError for a missing libcudart or libcublas
        return {**answer, "error": f"{type(error).__name__}: {error}", "torch": ""}
    answer |= {"torch": torch.__version__, "built_cuda": torch.version.cuda or "", "device": "cpu"}
    try:
        left = torch.arange(SIZE * SIZE, dtype=torch.float32).reshape(SIZE, SIZE) % 7 - 3
        right = left.T.contiguous()
        expected = left @ right
        if abs(float(expected[0, 0]) - float((left[0] * right[:, 0]).sum())) > TOLERANCE:
            return {**answer, "error": "the CPU's own product of two matrices is wrong"}
        if torch.version.cuda is None or torch.cuda.device_count() == 0:
            return {**answer, "ok": True}
        answer["device"] = torch.cuda.get_device_name(0)
        found = (left.to("cuda") @ right.to("cuda")).cpu()
        furthest = float((found - expected).abs().max())
        wrong = "" if furthest <= TOLERANCE else f"it differs from the CPU by {furthest:g}"
        return {**answer, "ok": not wrong, "error": wrong}
    except Exception as error:
        return {**answer, "error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(try_torch()) + "\n")
