"""How a run spells its aggregation rule: ``NAME`` or ``NAME:NUMBER``, read once into a record.

    mean          the exact weighted mean           median        of each entry
    clip:NORM     mean of updates cut to a norm     trimmed:BETA  mean without both ends
    momentum:BETA server momentum over the mean     krum:F        the update that most agree with
    adam:RATE     Adam over the mean                multikrum:F   mean of the best n - F - 2
    yogi:RATE     Yogi over the mean

What each does stands in ``server/rules``; which to choose, in docs/aggregation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fleet.errors import InputError

__all__ = ["MEAN", "RULES", "RuleSpec", "read_rule"]

LARGEST_NORM = 1000.0
LARGEST_RATE = 10.0
# As many devices may lie as let the largest fleet outvote them.
LARGEST_LIARS = 49_998
# Of fewer the median is their mean, or the only one.
FEWEST_FOR_MEDIAN = 3


@dataclass(frozen=True)
class _Kind:
    parameter: str = ""
    whole: bool = False
    range: str = ""
    allows: Callable[[float], bool] = lambda value: True


_LIARS = _Kind(
    "liars", True, f"a whole number from 0 to {LARGEST_LIARS}", lambda f: 0 <= f <= LARGEST_LIARS
)
_RATE = _Kind("rate", False, f"in (0, {LARGEST_RATE:g}]", lambda x: 0 < x <= LARGEST_RATE)
_KINDS = {
    "mean": _Kind(),
    "clip": _Kind("norm", False, f"in (0, {LARGEST_NORM:g}]", lambda x: 0 < x <= LARGEST_NORM),
    "momentum": _Kind("beta", False, "in (0, 1)", lambda x: 0 < x < 1),
    "adam": _RATE,
    "yogi": _RATE,
    "median": _Kind(),
    "trimmed": _Kind("beta", False, "in (0, 0.5)", lambda x: 0 < x < 0.5),
    "krum": _LIARS,
    "multikrum": _LIARS,
}
_REMEMBER = frozenset({"momentum", "adam", "yogi"})

RULES = tuple(
    f"{name}:{k.parameter.upper()}" if k.parameter else name for name, k in _KINDS.items()
)
"""The spelling of each rule."""


@dataclass(frozen=True)
class RuleSpec:
    """A rule and its parameter, as a run chose them; made by :func:`read_rule`.

    Args:
        name: One of those above.
        value: Its number; None where it has none.
    """

    name: str = "mean"
    value: float | int | None = None

    @property
    def text(self) -> str:
        """The spelling, which :func:`read_rule` reads back to an equal record."""
        return self.name if self.value is None else f"{self.name}:{self.value!r}"

    @property
    def record(self) -> dict[str, str | float | int]:
        """What a round's record and a release's provenance say of it; JSON."""
        said: dict[str, str | float | int] = {"name": self.name}
        if self.value is not None:
            said[_KINDS[self.name].parameter] = self.value
        return said

    @property
    def remembers(self) -> bool:
        """Whether it carries something from round to round."""
        return self.name in _REMEMBER

    @property
    def fewest(self) -> int:
        """Updates without which it is not what it says.

        A Krum of ``f`` liars needs 2f + 3 (Blanchard et al., 2017); a trimmed mean so many that one
        is left out at each end; a median three.
        """
        if self.name in ("krum", "multikrum"):
            return 2 * int(self.value or 0) + 3
        if self.name == "trimmed":
            share = float(self.value or 0)
            devices = max(1, math.floor(1 / share) - 1)
            # As Flower counts, so that rounding cannot leave a round untrimmed.
            while int(share * devices) < 1:
                devices += 1
            return devices
        return FEWEST_FOR_MEDIAN if self.name == "median" else 1


MEAN = RuleSpec()


def read_rule(text: str) -> RuleSpec:
    """Read a rule.

    Raises:
        InputError: ``rule``, with what is wrong and how it is spelt.

    >>> read_rule("trimmed:0.2")
    RuleSpec(name='trimmed', value=0.2)
    >>> read_rule("krum:3").fewest
    9
    """
    name, colon, given = text.strip().partition(":")
    kind = _KINDS.get(name)
    if kind is None:
        raise _refused(f"there is no rule {name!r}; known: {', '.join(RULES)}")
    if not kind.parameter:
        if colon:
            raise _refused(f"{name} takes no number, not {text!r}")
        return RuleSpec(name)
    spelling = f"{name}:{kind.parameter.upper()}"
    try:
        value = int(given) if kind.whole else float(given)
    except ValueError:
        raise _refused(f"{spelling} takes a number {kind.range}, not {given!r}") from None
    if not kind.allows(value):
        raise _refused(f"{kind.parameter} of {spelling} is {kind.range}, not {value!r}")
    return RuleSpec(name, value)


def _refused(message: str) -> InputError:
    return InputError("rule", message, "Which to choose is told in docs/aggregation.md.")
