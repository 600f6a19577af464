"""Aggregation rules: what a round's admitted updates come to.

A rule is a pure function of the release that was trained from, the updates by device and what the
rule remembers of the rounds before (:mod:`server.rules.memory`).

Laws (tests/server/rules): no result depends on the order in which updates came; ``mean`` is the
exact weighted mean, bit for bit; no rule changes its release, updates or memory.
"""

from __future__ import annotations

from fleet.federate.rule import RuleSpec
from server.rules.exact import Clip, Mean
from server.rules.memory import NOTHING, Memory
from server.rules.protocol import Closed, Rule

__all__ = ["NOTHING", "Closed", "Memory", "Rule", "rule_of"]


def rule_of(spec: RuleSpec) -> Rule:
    """Return the rule that a run chose.

    >>> from fleet.federate.rule import read_rule
    >>> rule_of(read_rule("clip:1.5"))
    Clip(norm=1.5)
    """
    if spec.name == "mean":
        return Mean()
    if spec.name == "clip":
        return Clip(float(spec.value or 0))
    # Only those that need Flower load it.
    from server.rules import flower_strategies

    return flower_strategies.rule_of(spec)
