"""ONNX export answers as ``DeviceModel`` does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.agent.serving import export as exporting
from clients.agent.serving.export import Deployed, export_onnx
from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.model import DeviceModel
from clients.agent.serving.whole import open_best
from fleet.errors import UnavailableError
from fleet.federate.releases import Release
from tests.clients.agent.serving.factories import LABELS, promoted, raw_windows

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))


def test_without_onnx_the_error_says_what_to_install(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="needs onnx and onnxscript") as refused:
        export_onnx(state, tmp_path / "model.onnx")
    assert (
        refused.value.hint == "Install them beside the device's torch: pip install onnx onnxscript"
    )
    assert not (tmp_path / "model.onnx").exists()


def test_what_is_exported_computes_what_is_served(state: Path, releases: list[Release]) -> None:
    promoted(state, releases[1])
    windows = raw_windows(5)
    deployed = Deployed(open_best(ModelFolder(state)).whole)
    with torch.inference_mode():
        got = deployed(torch.from_numpy(windows)).numpy()
    np.testing.assert_allclose(got, DeviceModel(state).predict(windows)[1], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not HAS_ONNX, reason="ONNX export needs onnx and onnxscript")
# What PyTorch's exporter warns of in its own code.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_onnx_file_answers_any_number_of_raw_windows_as_the_device(
    state: Path, releases: list[Release], tmp_path: Path
) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    promoted(state, releases[1])
    served = export_onnx(state, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(model)
    about = json.loads({p.key: p.value for p in model.metadata_props}["corefleet"])
    assert about["served"]["digest"] == served.digest
    assert tuple(about["base"]["labels"]) == LABELS
    for count in (1, 5):
        windows = raw_windows(count)
        (got,) = ReferenceEvaluator(model).run(None, {"windows": windows})
        wanted = DeviceModel(state).predict(windows)[1]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
