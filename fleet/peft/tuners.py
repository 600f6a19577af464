"""Every way to adapt one network on one device, by name; ``core+head`` trains both."""

from __future__ import annotations

import dataclasses

from fleet.errors import InputError
from fleet.models.registry import HEAD
from fleet.peft.ada_bn import adabn
from fleet.peft.adapter import adapter
from fleet.peft.batch_norm import bn
from fleet.peft.bias import bias
from fleet.peft.core import core
from fleet.peft.core_variants import core_input, core_middle, core_residual, core_svd_init
from fleet.peft.dora import dora
from fleet.peft.full import full
from fleet.peft.galore import galore
from fleet.peft.head import head
from fleet.peft.lora import lora
from fleet.peft.lora_c import lora_c
from fleet.peft.memf_lora import memf_lora
from fleet.peft.method import Method, combined
from fleet.peft.train_mode import core_bn, full_bn
from fleet.peft.tuner import Start, Tuned, Tuner, of_method

__all__ = ["ALL", "TUNERS", "find"]

HEAD_FACTOR = 0.1

_METHODS: dict[str, Method] = {
    method.name: method for method in (core, combined(core, bias), full, head, bias)
}
_OWN = (
    of_method(core, default_rate=1e-1, ranked=True),
    of_method(_METHODS["core+bias"], default_rate=1e-1, ranked=True),
    of_method(combined(core, head), default_rate=1e-1, ranked=True, head_factor=HEAD_FACTOR),
    of_method(full, default_rate=3e-3),
    of_method(head, default_rate=1e-2),
    of_method(bias, default_rate=1e-2),
)

_RIVALS = (bn, adabn, lora, lora_c, dora, galore, adapter, memf_lora, full_bn)
_ABLATIONS = (core_middle, core_input, core_svd_init, core_residual, core_bn)

ALL: tuple[str, ...] = tuple(tuner.name for tuner in (*_OWN, *_RIVALS))
"""What ``all`` means: every method, without the ablations of cores."""

TUNERS: dict[str, Tuner] = {tuner.name: tuner for tuner in (*_OWN, *_RIVALS, *_ABLATIONS)}


def find(name: str) -> Tuner:
    """Return the tuner of a name; ``+head`` after any other trains the head as well.

    Raises:
        InputError: ``unknown-method``.
    """
    if name in TUNERS:
        return TUNERS[name]
    stem, plus, more = name.rpartition("+")
    twice = stem.endswith("+head")
    if plus and more == "head" and stem in TUNERS and TUNERS[stem].trains and not twice:
        tuner = TUNERS[stem]
        if stem in _METHODS:
            factor = HEAD_FACTOR if tuner.framed else 1.0
            both = of_method(
                combined(_METHODS[stem], head),
                default_rate=tuner.default_rate,
                head_factor=factor,
            )
            return dataclasses.replace(both, ranked=tuner.ranked, framed=tuner.framed)
        return _with_head(tuner)
    raise InputError(
        "unknown-method",
        f"there is no method {name!r}; known: {', '.join(TUNERS)}",
        "Append +head to train the head as well.",
    )


def _with_head(tuner: Tuner) -> Tuner:
    def attach(start: Start) -> Tuned:
        tuned = tuner.attach(start)
        tuned.unfreeze((f"{HEAD}.weight", f"{HEAD}.bias"))
        return tuned

    return dataclasses.replace(
        tuner,
        name=f"{tuner.name}+head",
        summary=f"{tuner.summary}; and the head",
        attach=attach,
    )
