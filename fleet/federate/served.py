"""The merged model on disk: dense folded weights in one file, loadable without a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fleet.adapt.base import Base, BaseRecord, read_bundle, write_bundle
from fleet.adapt.digest import digest_arrays
from fleet.adapt.fold import fold
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, with_parameters
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from fleet.models.registry import build

__all__ = ["load_merged", "merge_release", "save_merged"]

FORMAT = "corefleet.merged.1"


def merge_release(base: Base, release: Release) -> dict[str, Any]:
    """Return all dense parameters of the folded network under a release.

    Raises:
        MismatchError: ``wrong-base`` or ``wrong-frame`` when the two do not belong together.
    """
    for what, own, wanted in (
        ("base", base.digest, release.base),
        ("frame", base.frame_digest, release.frame),
    ):
        if own != wanted:
            raise MismatchError(
                f"wrong-{what}",
                f"release {release.number} is of {what} {wanted[:12]}…, the base given has "
                f"{own[:12]}…",
                "Name the base that the release was made from with --base.",
            )
    return merge(parameters_of(folded_network(base)), base.frames, release.state)


def save_merged(base: Base, release: Release, path: Path) -> str:
    """Merge a release and write the dense parameters durably; return their digest."""
    parameters = merge_release(base, release)
    digest = digest_arrays(parameters)
    record = {
        "format": FORMAT,
        "digest": digest,
        "base": base.digest,
        "release": [release.number, release.digest],
        "record": base.record.model_dump(mode="json"),
    }
    write_bundle(path, parameters, record)
    return digest


def load_merged(path: Path) -> tuple[nn.Module, BaseRecord]:
    """Read a merged model: the network in evaluation mode, and classes, channels, normalisation.

    The network costs what the base network costs: same layers, batch norms folded away.
    """
    parameters, record = read_bundle(path, FORMAT)
    about = BaseRecord.model_validate(record["record"])
    network = with_parameters(fold(build(about.model)).requires_grad_(False), parameters)
    return network, about
