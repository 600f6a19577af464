from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from fleet.adapt.attach import capped_ranks, make_frames
from fleet.errors import InputError, ModelError
from fleet.peft.tuner import ADAM_RATES, Start
from fleet.peft.tuners import ALL, TUNERS, find

MakeStart = Callable[..., Start]
TRAINED = [name for name, tuner in TUNERS.items() if tuner.trains and not name.endswith("+head")]
ABLATIONS = {"core-middle", "core-input", "core-svd-init", "core-residual", "core-bn"}


def framed(start: Start) -> Start:
    return dataclasses.replace(
        start, frames=make_frames(start.folded, "svd", capped_ranks(start.folded, "svd", 2))
    )


@pytest.mark.parametrize("name", TUNERS)
def test_every_method_attaches_to_the_small_network_and_says_what_it_sends(
    name: str, start_of: MakeStart, x: torch.Tensor
) -> None:
    tuner = find(name)
    tuned = tuner.attach(framed(start_of()))
    tuned.calibrate(x.float())
    assert tuned.module(x.float()).shape == (6, 4)
    assert tuned.update_bytes() > 0
    assert bool(tuned.trainable()) == tuner.trains


@pytest.mark.parametrize("name", ["core", "core-bn", "full-bn", "memf-lora", "adapter", "galore"])
def test_grouped_layers_are_adapted(name: str, start_of: MakeStart) -> None:
    tuned = find(name).attach(framed(start_of("calanet", window=64)))
    assert tuned.module(torch.zeros(2, 3, 64)).shape == (2, 4)


@pytest.mark.parametrize("name", ["lora", "lora-c", "dora", "lora+head"])
def test_what_has_no_merge_for_grouped_layers_says_so(name: str, start_of: MakeStart) -> None:
    with pytest.raises(ModelError, match="groups") as caught:
        find(name).attach(start_of("calanet", window=64))
    assert caught.value.code == "lora-groups"


@pytest.mark.parametrize("name", TRAINED)
def test_a_head_behind_any_name_is_trained_sent_and_served(
    name: str, start_of: MakeStart, x: torch.Tensor
) -> None:
    start, x = framed(start_of()), x.float()
    tuner = find(f"{name}+head")
    assert tuner.name == f"{name}+head"
    assert (tuner.exact, tuner.default_rate, tuner.ranked, tuner.framed) == (
        TUNERS[name].exact,
        TUNERS[name].default_rate,
        TUNERS[name].ranked,
        TUNERS[name].framed,
    )
    tuned, alone = tuner.attach(start), find(name).attach(start)
    extra = tuned.update_bytes() - alone.update_bytes()
    has_bias = any(entry.endswith("head.bias") for entry in alone.trainable())
    has_head = any(entry.endswith("head.weight") for entry in alone.trainable())
    assert extra == 4 * (128 * 4 * (not has_head) + 4 * (not has_bias))
    stepper = tuned.optimiser("adam", 1e-2)
    functional.cross_entropy(tuned.module(x), torch.arange(6) % 4).backward()
    stepper.step()
    moved = tuned.served().get_parameter("head.weight") - start.folded.head.weight
    assert moved.abs().max() > 1e-3


def test_all_is_every_method_but_the_ablations() -> None:
    assert set(ALL) == set(TUNERS) - ABLATIONS
    assert len(ALL) == len(set(ALL))


@pytest.mark.parametrize("name", [*TUNERS, "core+bias+head"])
def test_every_sweep_starts_on_the_ladder(name: str) -> None:
    tuner = find(name)
    assert tuner.default_rate in tuner.rates == ADAM_RATES
    assert tuner.summary
    assert tuner.framed <= tuner.ranked


@pytest.mark.parametrize(
    "name", ["", "cores", "core+", "core+neck", "adabn+head", "core+head+head"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="known: core, ") as caught:
        find(name)
    assert caught.value.code == "unknown-method"
