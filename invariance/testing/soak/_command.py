"""The soak's command line: seeds side by side, progress on disk, one summary."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import torch

from invariance.core._errors import InvarianceError, UsageError
from invariance.core._files import require_writable, write_atomically
from invariance.core._reproducible import ask_for_reproducible_kernels
from invariance.measures._registry import Measure, get_measure
from invariance.testing.soak import _soak as soak
from invariance.testing.soak._cases import draw_case
from invariance.testing.soak._progress import SoakProgress, summary
from invariance.testing.soak._soak import Tally

#: Networks between two writes of the progress.
BLOCK = 10

Block = tuple[int, dict[str, Tally]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    ask_for_reproducible_kernels()
    try:
        return _run(options)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m invariance.testing.soak",
        description=soak.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("measures", nargs="*", help="registered names; all by default")
    add("--cases", type=int, default=500, help="comparisons a measure and seed (500)")
    add("--runs", type=int, default=20, help="how many seeds (20)")
    add("--seed", type=int, default=0, help="first seed (0)")
    add("--jobs", type=int, default=1, help="processes (1); the results do not depend on it")
    add("--progress", type=Path, metavar="FILE", help="keep the progress here, and resume from it")
    add("--again", nargs="+", default=[], metavar="NAME", help="forget these measures' progress")
    add("--full", action="store_true", help="slow measures owe as many cases as all others")
    add("--summary", type=Path, metavar="FILE", help="write what came out as JSON")
    add("--case", type=int, metavar="N", help="show case N of the first seed, and stop")
    return parser


def _run(options: argparse.Namespace) -> int:
    for name in ("cases", "runs", "jobs"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1. Got {getattr(options, name)}.")
    measures = soak.chosen(options.measures)
    if options.case is not None:
        return _show(measures, options.seed, options.case)
    if options.summary is not None:
        require_writable(options.summary)
    progress = SoakProgress(options.progress, options.again)
    seeds = range(options.seed, options.seed + options.runs)
    full = options.full
    owed = {e.name: options.cases if full else soak.budget(e, options.cases) for e in measures}
    before = {seed: progress.of(seed, owed) for seed in seeds}
    for seed, tallies in _blocks(measures, owed, before, options.jobs):
        known = progress.of(seed, owed)
        progress.keep(seed, tallies)
        for name, tally in tallies.items():
            if _ended(tally, owed) and not _ended(known[name], owed):
                _say(f"run {seed}  {tally}", *tally.alarms[:3])
        if options.summary is not None:
            _write(options.summary, progress, seeds, owed)
    found = summary(progress, seeds, owed)
    if options.summary is not None:
        _write(options.summary, progress, seeds, owed)
    _say(f"{found['compared']} cases compared, {found['alarms']} alarms")
    return int(found["alarms"] > 0)


def _blocks(
    measures: Sequence[Measure],
    owed: Mapping[str, int],
    start: Mapping[int, dict[str, Tally]],
    jobs: int,
) -> Iterator[Block]:
    """Yield the tallies of a seed after each block of networks, until all seeds are done."""
    todo = [seed for seed, tallies in start.items() if soak.open_measures(measures, owed, tallies)]
    if jobs == 1:
        for seed in todo:
            tallies = start[seed]
            while soak.open_measures(measures, owed, tallies):
                tallies = soak.advance(measures, owed, tallies, seed, networks=BLOCK)
                yield seed, tallies
        return
    # Threads of torch in several processes would fight for the cores; a fresh interpreter
    # inherits no lock of this one.
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = list(reversed(todo))
        names = [entry.name for entry in measures]
        running: set[Future[Block]] = set()
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop()
                running.add(pool.submit(_block, names, owed, start[seed], seed))
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                seed, tallies = future.result()
                yield seed, tallies
                if soak.open_measures(measures, owed, tallies):
                    running.add(pool.submit(_block, names, owed, tallies, seed))


def _block(
    names: Sequence[str], owed: Mapping[str, int], tallies: dict[str, Tally], seed: int
) -> Block:
    measures = [get_measure(name) for name in names]
    return seed, soak.advance(measures, owed, tallies, seed, networks=BLOCK)


def _show(measures: Sequence[Measure], seed: int, number: int) -> int:
    """Print one case and what measures do in it, failures explained."""
    case = draw_case(seed, number)
    _say(f"{case}: {list(case.x.shape)} inputs, {case.model}")
    broken = False
    for entry in measures:
        maps = case.admitted(soak.declared_kinds(entry))
        if not maps:
            _say(f"measure {entry.name!r} declares nothing about {', '.join(map(repr, case.maps))}")
            continue
        try:
            certificate, findings = soak.judged(case, entry, maps, explained=True)
        except InvarianceError as error:
            _say(f"measure {entry.name!r}: {error}")
            continue
        broken |= bool(findings)
        _say(*map(str, findings or (certificate,)))
    return int(broken)


def _ended(tally: Tally, owed: Mapping[str, int]) -> bool:
    return tally.compared >= owed[tally.measure] or tally.given_up


def _write(
    path: Path, progress: SoakProgress, seeds: Sequence[int], owed: Mapping[str, int]
) -> None:
    write_atomically(path, json.dumps(summary(progress, seeds, owed), indent=1) + "\n")


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
