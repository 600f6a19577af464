from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fleet.adapt.base import Base
from fleet.adapt.network import folded_network, parameters_of, raw_network, with_parameters
from fleet.errors import MismatchError


def test_the_raw_network_holds_the_bases_arrays_in_evaluation_mode(base: Base) -> None:
    network = raw_network(base)
    assert not network.training
    state = network.state_dict()
    assert state.keys() == base.arrays.keys()
    for name, array in base.arrays.items():
        np.testing.assert_array_equal(state[name].numpy(), array)


def test_a_network_does_not_share_memory_with_its_base(base: Base) -> None:
    digest = base.digest
    with torch.no_grad():
        for tensor in raw_network(base).state_dict().values():
            tensor.zero_()
    assert Base(base.record, base.arrays, base.frames).digest == digest


def test_the_folded_network_is_frozen_and_has_no_statistics(base: Base) -> None:
    network = folded_network(base)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert dict(network.named_buffers()) == {}
    assert set(parameters_of(network)) == {
        f"{layer}.{what}"
        for layer in ("conv1", "conv2", "conv3", "head")
        for what in ("weight", "bias")
    }


def test_arrays_of_another_architecture_are_refused(base: Base) -> None:
    arrays = {**base.arrays, "head.bias": np.zeros(5, np.float32)}
    with pytest.raises(MismatchError, match="small-cnn") as caught:
        raw_network(dataclasses.replace(base, arrays=arrays))
    assert caught.value.code == "base-weights"
    fewer = {name: array for name, array in base.arrays.items() if name != "conv1.weight"}
    with pytest.raises(MismatchError, match=r"conv1\.weight"):
        raw_network(dataclasses.replace(base, arrays=fewer))


def test_parameters_that_are_loaded_are_those_that_come_back(base: Base) -> None:
    network = folded_network(base)
    wanted = {name: array + np.float32(1) for name, array in parameters_of(network).items()}
    assert with_parameters(network, wanted) is network
    for name, array in parameters_of(network).items():
        np.testing.assert_array_equal(array, wanted[name])
    wanted["head.bias"][:] = 9.0
    assert (parameters_of(network)["head.bias"] != 9.0).all()


def test_other_parameter_names_are_refused(base: Base) -> None:
    network = folded_network(base)
    parameters = parameters_of(network)
    extra = {**parameters, "tail.bias": np.zeros(1, np.float32)}
    fewer = {name: array for name, array in parameters.items() if name != "head.bias"}
    for given, name in ((extra, "tail.bias"), (fewer, "head.bias")):
        with pytest.raises(MismatchError, match=name) as caught:
            with_parameters(network, given)
        assert caught.value.code == "parameter-names"


@pytest.mark.parametrize("shape", [(1,), (), (3,), (4, 1)])
def test_a_parameter_of_another_shape_is_refused_and_never_broadcast(
    base: Base, shape: tuple[int, ...]
) -> None:
    network = folded_network(base)
    before = parameters_of(network)["head.bias"].copy()
    given = {**parameters_of(network), "head.bias": np.ones(shape, np.float32)}
    with pytest.raises(MismatchError, match=r"head\.bias") as caught:
        with_parameters(network, given)
    assert caught.value.code == "parameter-shape"
    np.testing.assert_array_equal(parameters_of(network)["head.bias"], before)
