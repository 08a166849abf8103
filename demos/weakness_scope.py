"""What weakness is invariant under, what it is not, and a repair.

Train a few small networks. Scaling, permuting and splitting units of every hidden layer
leaves every weakness count as it was. Then give each network units that nothing listens
to: the function stays, and the counts rise. Counted over what the function
uses, they stay.

    python demos/weakness_scope.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from common import options, save
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import invariance as inv
from invariance import weakness
from invariance.transforms import LayerScaling, NeuronScaling, Permutation, Transform
from invariance.transforms._dormant_units import DormantUnits
from invariance.transforms._split_units import SplitUnits

DORMANT = (1, 2, 4)
Counts = dict[str, list[float]]


def transforms() -> dict[str, Transform]:
    """Everything that is applied, by the name that the table shows."""
    kept: dict[str, Transform] = {
        "layer scaling": LayerScaling([5.0, 0.5, 0.4]),
        "neuron scaling": NeuronScaling(spread=10.0, seed=1),
        "permutation": Permutation(seed=1),
        "split 2 units": SplitUnits(2, seed=1),
    }
    return kept | {f"{k} dormant": DormantUnits(k, seed=1) for k in DORMANT}


def measures(task: inv.Task, probes: int) -> dict[str, Callable[[nn.Module], float]]:
    """Every count, plain and repaired, as a function of the network alone."""
    x, y, unseen = task.x_train.double(), task.y_train, task.x_unseen.double()
    few: Tensor = unseen[:probes]
    return {
        "pairs": lambda net: float(weakness.pair_proxy(net, x, y, few)),
        "patterns": lambda net: float(weakness.activation_patterns(net, unseen)),
        "regions": lambda net: float(weakness.free_regions(net, x, unseen)),
        "pairs, repaired": lambda net: float(weakness.repaired_pair_proxy(net, x, y, few)),
        "patterns, repaired": lambda net: float(weakness.repaired_activation_patterns(net, unseen)),
        "regions, repaired": lambda net: float(weakness.repaired_free_regions(net, x, unseen)),
    }


def count(networks: Sequence[nn.Module], task: inv.Task, probes: int) -> dict[str, Counts]:
    """Transform to measure to one value a network; ``"as trained"`` is the first."""
    x = task.x_train.double()
    every = measures(task, probes)
    found: dict[str, Counts] = {}
    moved = {"as trained": list(networks)}
    moved |= {name: [move(net, x[:8]) for net in networks] for name, move in transforms().items()}
    for name, nets in moved.items():
        found[name] = {label: [measure(net) for net in nets] for label, measure in every.items()}
    return found


def table_of(found: dict[str, Counts]) -> Table:
    """Mean counts, and how many networks moved."""
    base = found["as trained"]
    table = Table(title="Mean count (networks whose count moved)")
    table.add_column("")
    for label in base:
        table.add_column(label, justify="right")
    for name, counts in found.items():
        cells = []
        for label, values in counts.items():
            changed = sum(a != b for a, b in zip(values, base[label], strict=True))
            text = f"{np.mean(values):.1f}"
            cells.append(f"[red]{text} ({changed})[/red]" if changed else f"{text} (0)")
        table.add_row(name, *cells)
    return table


def figure_of(found: dict[str, Counts], networks: int) -> Figure:
    """Change of each plain and repaired count against the number of dormant units."""
    labels = ("pairs", "patterns", "regions")
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, label in zip(figure.subplots(1, 3), labels, strict=True):
        for kind, style in ((label, "o-"), (f"{label}, repaired", "s--")):
            rows = [found["as trained"][kind]] + [found[f"{k} dormant"][kind] for k in DORMANT]
            means = np.mean(rows, axis=1)
            error = np.std(rows, axis=1, ddof=1) / np.sqrt(networks) if networks > 1 else None
            axis.errorbar((0, *DORMANT), means, error, fmt=style, capsize=3, label=kind)
        axis.set_xlabel("dormant units a layer")
        axis.set_title(label, fontsize=10)
        axis.legend(fontsize=7)
    figure.suptitle("Same function, another weakness", fontsize=11)
    return figure


def main(arguments: list[str] | None = None) -> dict[str, Counts]:
    """Run the demo and return every count."""
    chosen = options(__doc__, arguments)
    networks, n_train, probes, n_unseen = (2, 60, 6, 100) if chosen.small else (4, 250, 15, 1_000)
    task = inv.load_task(chosen.task, n_train=n_train, n_unseen=n_unseen, seed=chosen.seed)
    sizes = [task.x_train.shape[1], *((16, 6) if chosen.small else (64, 8)), task.n_classes]
    seeds = range(chosen.seed, chosen.seed + networks)
    fits = inv.fit_ensemble(sizes, task, seeds=seeds, lr=0.1, batch_size=64, max_epochs=500)
    nets = [fit.model.double() for fit in fits]
    accuracy = ", ".join(f"{fit.train_accuracy:.1%}" for fit in fits)
    print(f"{task.name}: {networks} networks {sizes}, train accuracy {accuracy}")

    found = count(nets, task, probes)
    x = task.x_unseen.double()
    wider = [DormantUnits(DORMANT[-1], seed=1)(net, x[:8]) for net in nets]
    gap = max(float((a(x) - b(x)).detach().abs().max()) for a, b in zip(nets, wider, strict=True))
    Console().print(table_of(found))
    print(f"outputs after {DORMANT[-1]} dormant units a layer moved by at most {gap:.0e}")
    for label in ("pairs", "patterns", "regions"):
        rise = np.subtract(found[f"{DORMANT[-1]} dormant"][label], found["as trained"][label])
        print(
            f"{label}: {rise.mean():+.1f} on average, from {rise.min():+.0f} to {rise.max():+.0f}"
        )
    save(figure_of(found, networks), chosen.out, "weakness-scope")
    return found


if __name__ == "__main__":
    main()
