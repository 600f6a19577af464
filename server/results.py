"""What a run comes to: one summary per method, for reports, the JSON envelope and plots."""

from __future__ import annotations

from typing import Any

from fleet.adapt.base import Base
from fleet.config import RunConfig
from fleet.federate.releases import Release
from fleet.files import write_json
from server.store import RunFolder

__all__ = ["scores_of", "serving_line", "summary_of", "write_results"]

# A line names so many devices that do not serve a release; the run's folder has all of them.
LARGEST_NAMED = 5
SCORES = ("macro_f1", "macro_f1_devices_mean", "macro_f1_devices_worst_decile")


def scores_of(evaluation: dict[str, Any]) -> dict[str, float | None]:
    """Return the three fleet scores of an evaluation."""
    return {name: evaluation[name] for name in SCORES}


def summary_of(folder: RunFolder, release: Release, rate: float) -> dict[str, Any]:
    """Summarise a finished method from its folder.

    Returns:
        Final scores, trained parameters, bytes per device and round (mean over all train messages:
        ``bytes_*`` the packed array, ``wire_bytes_*`` all objects and framing), learning rate and
        release.
    """
    final = folder.evaluation(release.number)
    rounds = folder.rounds()
    traffic = [record["traffic"] for record in rounds]
    summary: dict[str, Any] = scores_of(final) if final else dict.fromkeys(SCORES)
    summary["trained_parameters"] = release.state.layout.size
    for way in ("up", "down"):
        messages = sum(t[f"messages_{way}"] for t in traffic)
        for kind in ("bytes", "wire_bytes"):
            total = sum(t[f"{kind}_{way}"] for t in traffic)
            summary[f"{kind}_{way}"] = round(total / messages) if messages else 0
    summary["refused"] = sum(len(record["refused"]) for record in rounds)
    summary["learning_rate"] = rate
    summary["release"] = {"number": release.number, "digest": release.digest}
    return summary


def serving_line(served: dict[str, Any], kernels: str) -> str:
    """Say in one line which devices serve a release.

    Args:
        served: What :meth:`server.store.RunFolder.serving` returns.
        kernels: Digest of the release's merged kernels; a device that serves others does not serve
            the release.
    """
    number = served["release"]
    told = served["devices"]
    reasons = {device: _why_not(each, number, kernels) for device, each in told.items()}
    lacking = [f"{device} does not: {why}" for device, why in reasons.items() if why]
    line = f"release {number} is served by {len(told) - len(lacking)} of {len(told)} devices"
    more = [f"{len(lacking) - LARGEST_NAMED} more do not"] if len(lacking) > LARGEST_NAMED else []
    return "; ".join([line, *lacking[:LARGEST_NAMED], *more])


def _why_not(device: dict[str, Any], number: int, kernels: str) -> str:
    if "refused" in device:
        return " ".join(str(device["refused"]).split())  # a device's words stay in one line
    if device["release"] != number:
        return f"serves release {device['release']}"
    if device["serves"] != kernels:
        return f"serves kernels {device['serves'][:12]}…, not {kernels[:12]}…"
    return ""


def write_results(
    folder: RunFolder,
    config: RunConfig,
    base: Base,
    release: Release,
    rate: float,
    *,
    plots: bool = True,
) -> dict[str, Any]:
    """Write ``metrics.json`` of one method into its folder, and plots; return the metrics."""
    evaluations = folder.evaluations()
    metrics = {
        "config": config.model_dump(mode="json"),
        "base": {"digest": base.digest, "trained_on": base.record.trained_on},
        "labels": list(base.record.labels),
        "summary": summary_of(folder, release, rate),
        "rounds": folder.rounds(),
        "evaluations": evaluations,
    }
    write_json(folder.folder / "metrics.json", metrics)
    if evaluations and plots:
        # Only what draws waits for the drawing library.
        from server.plots import plot_curves, plot_devices

        name = release.method
        plot_curves({name: evaluations}, folder.folder / "plots" / "f1-by-round.png")
        plot_devices(
            evaluations[0], {name: evaluations[-1]}, folder.folder / "plots" / "f1-by-device.png"
        )
    return metrics
