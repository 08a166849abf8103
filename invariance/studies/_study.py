"""A study: a grid of networks, how they are trained and measured, and what is claimed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from invariance.core._arguments import as_integer, as_seed
from invariance.core._errors import UsageError
from invariance.studies._config import Config, Setting, require_plain
from invariance.studies.claims._claims import Claim, judged
from invariance.studies.claims._regions import Declared


@dataclass(frozen=True)
class Options:
    """How large a study is run, and on what.

    Attributes:
        task: Data set, as for :func:`invariance.load_task`; studies on made-up data ignore it.
        networks: Networks in each cell of the grid.
        n_train: Training-set sizes.
        n_unseen: Unseen points that weakness is counted on.
        seed: First seed.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        quick: Whether this is the version that ends in about a minute.
        scale: Study-specific sizes (epochs, steps, ...), name to plain value.
    """

    task: str = "mnist"
    networks: int = 25
    n_train: tuple[int, ...] = (500,)
    n_unseen: int = 100
    seed: int = 0
    device: str = "auto"
    quick: bool = False
    scale: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_integer(self.networks, "networks", low=1)
        as_integer(self.n_unseen, "n_unseen", low=0)
        as_seed(self.seed)
        if not self.n_train:
            raise UsageError(f"n_train must be positive integers. Got {self.n_train}.")
        for size in self.n_train:
            as_integer(size, "n_train", low=1)
        for name, value in self.scale.items():
            require_plain(name, value)

    def but(self, **changes: Any) -> Options:
        """Return the same options with ``changes``; a change to ``None`` is none at all."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})


@dataclass(frozen=True)
class Trained:
    """A trained network as it is kept.

    Attributes:
        tensors: Name to tensor: the weights, as they go into a safetensors file.
        facts: What training has to say, in plain JSON values: epochs, losses, accuracies,
            logged curves.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One network of a finished study.

    Attributes:
        config: What it is.
        facts: What training said.
        measured: What measuring said: plain JSON values. By convention ``measures`` (name to
            value as trained), ``rescaled`` (name to value after a random function-preserving
            rescaling) and ``targets`` (name to value, such as ``test_accuracy``).
    """

    config: Config
    facts: Mapping[str, Any]
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of a study's report.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: Cells, as text or numbers; a number is printed with four digits.
        note: What a reader must know, in a sentence or two.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        correlations: Rows as :func:`invariance.studies.claims._correlations.correlation_rows` makes
            them.
        claims: The claims with our numbers beside the paper's; their p-values are adjusted
            here, over all of them.
        tables: Further tables.
        notes: Sentences for the reader: what was left out, what limits the result.
    """

    correlations: tuple[Mapping[str, Any], ...] = ()
    claims: tuple[Claim, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", judged(self.claims))


class Tell(Protocol):
    """Reports how far a batch has come, from 0 to 1."""

    def __call__(self, share: float) -> object:
        """Take ``share`` of the batch's work as done."""
        ...


@dataclass(frozen=True)
class Context:
    """What a batch needs beyond its configurations.

    Attributes:
        options: The study's options. Training must not depend on them: whatever decides a
            network belongs into its configuration.
        device: Where to compute: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        tell: Progress within the batch.
    """

    options: Options
    device: str
    tell: Tell


def _first_version(options: Options) -> Mapping[str, Setting]:
    return {"version": 1}


def _no_figures(
    records: Sequence[Record], findings: Findings, folder: Path
) -> Sequence[tuple[Path, str]]:
    return []


def _usual_batch(config: Config) -> int:
    return 50


def _equal_cost(config: Config) -> float:
    return 1.0


#: What a study's name is made of: it names a folder, and stands in commands and file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Study:
    """A published claim, or several, as a runnable experiment.

    Functions must live at the top level of a module: they travel to other processes.

    Attributes:
        name: Its name on the command line and of its folder: letters, digits, "-" and "_".
        title: One line.
        paper: Authors, title, identifier.
        question: What is asked, in a few sentences for the report.
        full: Default options: the paper's sizes.
        quick: Options of ``--quick``.
        grid: Options to the configurations of all networks.
        train: Trains one batch, all of one cell: a list as long as the configurations.
            Each result must depend on its own configuration alone.
        measure: Measures one batch of trained networks: plain JSON values, a mapping each.
        analyse: Records and options to findings.
        measurement: Options to whatever decides the measured numbers beyond the network:
            plain values with a version. Networks measured under another text are measured
            anew, not trained anew.
        figures: Draws figures into a folder, returns ``(file, caption)`` pairs.
        batch_size: How many networks of a cell train together.
        cost: Relative work of one network, for order and progress: expensive ones go first.
        rescaling: How networks are rescaled at random before they are measured again, in words;
            empty if they are not.
        declared: The regions of its claims, written down in a file before they were used.
    """

    name: str
    title: str
    paper: str
    question: str
    full: Options
    quick: Options
    grid: Callable[[Options], Sequence[Config]]
    train: Callable[[Sequence[Config], Context], Sequence[Trained]]
    measure: Callable[[Sequence[Config], Sequence[Trained], Context], Sequence[Mapping[str, Any]]]
    analyse: Callable[[Sequence[Record], Options], Findings]
    measurement: Callable[[Options], Mapping[str, Setting]] = _first_version
    figures: Callable[[Sequence[Record], Findings, Path], Sequence[tuple[Path, str]]] = _no_figures
    batch_size: Callable[[Config], int] = _usual_batch
    cost: Callable[[Config], float] = _equal_cost
    rescaling: str = ""
    declared: Declared | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"A study's name must be at most 64 letters, digits, '-' and '_', so that it can "
                f"name a folder. Got {self.name!r}."
            )
