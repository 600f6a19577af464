"""What a device serves after a merge is the base's own graph, in ONNX too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of, with_parameters
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from tests.fleet.adapt.lean.networks import folded, frames_of, state_of

WITHOUT = "ONNX export needs onnx and onnxscript: pip install 'corefleet[bench]'"
onnx = pytest.importorskip("onnx", reason=WITHOUT)
pytest.importorskip("onnxscript", reason=WITHOUT)

# What PyTorch's exporter warns of in its own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SHAPE = (2, 3, 32)


def exported(network: nn.Module) -> Any:
    program = torch.onnx.export(network.eval(), (torch.zeros(SHAPE),), dynamo=True, verbose=False)
    assert program is not None
    onnx.checker.check_model(program.model_proto)
    return program.model_proto.graph


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "mobilenetv2-1d", "calanet"])
def test_the_merged_network_exports_to_the_graph_of_the_folded_base(name: str) -> None:
    config = ModelConfig(name=name, channels=SHAPE[1], classes=4, window=SHAPE[2])
    base = folded(lambda: build(config, seed=0))
    frames = frames_of(base)
    state = state_of(base, frames, "head.weight", "head.bias")
    parameters = merge(parameters_of(base), frames, state)
    merged = with_parameters(copy.deepcopy(base), parameters)
    before, after = exported(base), exported(merged)
    assert [node.op_type for node in after.node] == [node.op_type for node in before.node]
    assert [list(node.input) for node in after.node] == [list(node.input) for node in before.node]
    shapes = [(t.name, list(t.dims), t.data_type) for t in before.initializer]
    assert [(t.name, list(t.dims), t.data_type) for t in after.initializer] == shapes
    values = {t.name: onnx.numpy_helper.to_array(t) for t in after.initializer}
    stayed = {t.name: onnx.numpy_helper.to_array(t) for t in before.initializer}
    moved = {name for name in values if (values[name] != stayed[name]).any()}
    # Nothing but the adapted kernels and the head has moved.
    assert {f"{layer}.weight" for layer in frames} <= moved
    assert moved <= {f"{layer}.weight" for layer in frames} | {"head.weight", "head.bias"}
