"""Your first fleet: people teach a base, other people's devices adapt it, pictures show how well.

    python simulations/experiments/first_fleet.py            # two or three minutes on two cores
    python simulations/experiments/first_fleet.py --toy      # some seconds

HAPT where it is found (FLEET_DATA, ../shared/data/har), the built-in synthetic fleet where not.
Expect on HAPT: macro-F1 of people whom the base never saw rises from .57 to .97 with cores, of
which a device sends 5 kB a round, and to .94 with all weights, 504 kB. docs/tutorial.md walks
through this file.
"""

import argparse
from pathlib import Path

import torch

from fleet import load_merged
from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.har.population import population_of, share_windows
from fleet.peft.registry import find
from server.prepare import normalisation_of, obtain_base
from simulations.progress import Silent
from simulations.simulate import Run, open_run, simulate

METHODS = ("core", "head", "full")

arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
arguments.add_argument(
    "--toy", action="store_true", help="two rounds, on synthetic data unless told otherwise"
)
arguments.add_argument("--data", default="", help="name or path of a data set")
arguments.add_argument("--out", type=Path, default=Path("runs/first-fleet"))
chosen = arguments.parse_args()


class Told(Silent):
    """Prints what matters and leaves out the steps in between."""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text)


# 1. The data: half of the people teach the base, the others are the fleet, a device each. Their
#    sensors sit 35 degrees askew, as if a new product were worn differently.
config = RunConfig.parse({"data": chosen.data, "out": str(chosen.out), "shift": "remount:35"})
if chosen.toy:
    small = {"data": chosen.data or "synthetic", "rounds": 2, "base_epochs": 3}
    config = config.model_copy(update=small)
population = population_of(config)
data = population.dataset
print(f"{data.name}: {len(data.x):,} windows of {data.window / data.rate_hz:.2f} s")
print(f"{len(population.source)} people teach, {len(population.fleet)} are the fleet")

# 2. The base: a small CNN trained on the source people, and the frozen frame of each of its layers.
path = chosen.out / "base.safetensors"
config = config.model_copy(update={"base": str(path)})
rates = {name: find(name).default_rate for name in METHODS} if chosen.toy else {}
run = open_run(Run(config, METHODS, rates), resume=False)  # a folder in use is refused here
base = obtain_base(config.model_copy(update={"base": ""}), population)
save_base(base, path)
cores = {name: frame.rank for name, frame in base.frames.items()}
print(f"base {base.digest[:12]}; layer: rank of its core = {cores}")

# 3. The fleet: each method adapts the same base for the same rounds, many devices at a time. Rates
#    that are not given are rehearsed on source people, so that nothing is tuned on the fleet.
report = simulate(run, Told())

# 4. What it came to. The same and more is in OUT/report.md, pictures are in OUT/plots.
print(f"{'':<7} macro-F1  worst 10 %  bytes up per round")
for name, row in {"before": report["before"], **report["methods"]}.items():
    scores = f"{row['macro_f1']:.3f}     {row['macro_f1_devices_worst_decile']:.3f}"
    print(f"{name:<7} {scores} {row.get('bytes_up', 0):>24,}")

# 5. The merged model is an ordinary network: no core, no frame, no more work than the base.
network, about = load_merged(chosen.out / "core" / "merged.safetensors")
person, past = population.fleet[0], config.train_fraction
shares = share_windows(
    population, person, normalisation_of(base), train_fraction=past, seed=config.seed
)
later = shares[2]
with torch.no_grad():
    predicted = network(torch.from_numpy(later.x)).argmax(dim=1).numpy()
right = int((predicted == later.y).sum())
print(f"person {person}: {right} of {len(later.y)} later windows recognised")
print(f"the last one: {about.labels[predicted[-1]]}")
