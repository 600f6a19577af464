"""What serving writes and reports: frozen, validated once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

__all__ = ["PersonalPointer", "Pointer", "ProbeReading", "Promotion", "Recovery", "release_name"]

_DIGEST = r"^[0-9a-f]{64}$"
_NAME_DIGITS = 16


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def release_name(number: int, state: str) -> str:
    """Return the name of a release's files from its number and its state's digest.

    >>> release_name(12, "ab" * 32)
    '000012-abababababababab'
    """
    return f"{number:06d}-{state[:_NAME_DIGITS]}"


class Pointer(_Record):
    """Which merged model is served.

    Args:
        number: The release's number; 0 is the base unmoved.
        state: Digest of its core state.
        digest: Digest of the merged dense kernels: the same on every device that serves it.
        release: The release's own digest as the server publishes it; empty when the device got the
            state alone.
        base: Digest of the base that it is of; empty for the one that the device was set up with.
    """

    number: int = Field(ge=0)
    state: str = Field(pattern=_DIGEST)
    digest: str = Field(pattern=_DIGEST)
    release: str = ""
    base: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_serializer(mode="wrap")
    def _without_first(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Earlier versions, which knew no other base, go on reading what is of the first.
        return {k: v for k, v in whole(self).items() if k != "base" or v}

    @property
    def name(self) -> str:
        """Name of its file in ``served/`` and of its release's in ``releases/``."""
        return release_name(self.number, self.state)


class PersonalPointer(_Record):
    """What is served of the device's own beside a release.

    Args:
        beside: The release that it is made of; beside another one it is not served.
        own: All of it together: digest of the sum of release and private core, with that of the
            statistics where there are any, and of the merged kernels.
        core: Whether a private core is in it.
        statistics: Digest of the device's own batch-norm statistics; empty under the fleet's.
    """

    beside: Pointer
    own: Pointer
    core: bool = True
    statistics: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class ProbeReading(_Record):
    """What the device's own labelled windows said of a release.

    Args:
        windows: Labelled windows held out.
        margin: By how much macro-F1 may fall, 0 to 1.
        before: Macro-F1 of what was served; None when the probe was skipped.
        after: Macro-F1 of the release; None when the probe was skipped.
        note: Why it was skipped; empty when it was not.
    """

    windows: int = Field(ge=0)
    margin: float
    before: float | None = None
    after: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the release may be served; a skipped probe forbids nothing."""
        if self.before is None or self.after is None:
            return True
        return self.after >= self.before - self.margin


class Promotion(_Record):
    """What became of the wish to serve a release.

    Args:
        swapped: Whether it is served now and was not before.
        number: The release that was asked for.
        state: Digest of its core state.
        reason: ``promoted``, ``already-served``, ``probe-fell``, or the code of what went wrong.
        detail: The same as a sentence, with the values.
        served: What is served now; None when not even the base could be read.
        probe: The probe's reading; None when it came to none.
    """

    swapped: bool
    number: int
    state: str
    reason: str
    detail: str
    served: Pointer | None
    probe: ProbeReading | None = None


class Recovery(_Record):
    """What start-up found, and what is served after it.

    Args:
        source: Where the served model came from: ``current`` when all was well; ``last-good``;
            ``merged-again`` from the base and a kept release; ``base``; ``memory`` when the base is
            served but could not be written.
        served: What is served.
        problems: What was wrong, one sentence each.
        cleared: Files of interrupted writes that were removed.
    """

    source: Literal["current", "last-good", "merged-again", "base", "memory"]
    served: Pointer
    problems: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
