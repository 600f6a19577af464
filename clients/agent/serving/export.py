"""ONNX export of what is served: raw windows in, probabilities out, as ``DeviceModel`` answers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.records import Pointer
from clients.agent.serving.whole import Whole, open_best
from fleet.errors import UnavailableError
from fleet.files import write_bytes

__all__ = ["Deployed", "export_onnx"]

_NEEDED = ("onnx", "onnxscript")


class Deployed(nn.Module):
    """A served network between normalisation and softmax.

    Args:
        whole: The model.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.network = whole.network
        for name, values in (("mean", whole.about.mean), ("std", whole.about.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[None, :, None])

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``(n, classes)`` of raw windows ``(n, channels, window)``."""
        logits: torch.Tensor = self.network((windows - self.mean) / self.std)
        return torch.softmax(logits, dim=-1)


def export_onnx(state_dir: Path, out: Path) -> Pointer:
    """Write what is served as one ONNX file, durably.

    Its input ``windows (n, channels, window)`` float32 is in the base's units, its output
    ``probabilities (n, classes)`` float32; the metadata ``corefleet`` holds as JSON what is served
    and the base's record: classes, channels, rate.

    Returns:
        What was exported.

    Raises:
        UnavailableError: ``onnx-missing`` when onnx or onnxscript is not installed.
        StorageError: ``nothing-to-serve``, or when ``out`` could not be written.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UnavailableError(
            "onnx-missing",
            f"ONNX export needs {' and '.join(missing)}",
            "Install them beside the device's torch: pip install onnx onnxscript",
        )
    whole = open_best(ModelFolder(state_dir)).whole
    model = whole.about.model
    # Two windows: of an example of one, the exporter would take the batch for a constant.
    example = torch.zeros(2, model.channels, model.window)
    program = torch.onnx.export(
        Deployed(whole).eval(),
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["windows"],
        output_names=["probabilities"],
        dynamic_shapes={"windows": {0: torch.export.Dim("n")}},
    )
    if program is None:
        raise UnavailableError("onnx-failed", "this torch's exporter returned nothing", "")
    content = program.model_proto
    entry = content.metadata_props.add()
    entry.key = "corefleet"
    entry.value = json.dumps(
        {
            "served": whole.pointer.model_dump(mode="json"),
            "base": whole.about.model_dump(mode="json"),
        }
    )
    write_bytes(out, content.SerializeToString())
    return whole.pointer
