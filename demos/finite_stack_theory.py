"""Finite Stack Theory in two tables: a scalpel, and binary arithmetic.

First a world of four states, where the shortest correct policy is not the weakest and
survives half as many further demands: everything is enumerated, every number exact.
Then binary addition and multiplication from examples: the weakest correct hypothesis
still permits the right answer where the shortest has ruled it out, and says less.

    python demos/finite_stack_theory.py
"""

from __future__ import annotations

from common import options, save
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from invariance.papers.bennett.stack_theory import (
    Arithmetic,
    ArithmeticResult,
    StackTask,
    Vocabulary,
    arithmetic_experiment,
    information_bits,
    survival_probability,
)


def scalpel() -> StackTask:
    """One strong program p does the work of two weak ones, q and r."""
    vocabulary = Vocabulary(
        4, (0b0001, 0b0111, 0b1011, 0b1100, 0b0010, 0b1010), ("p", "q", "r", "s", "t", "u")
    )
    language = vocabulary.language
    p, q, r, s = 1, 2, 4, 8
    return StackTask(language, language.collect([p | q | r, s]), language.extension(p | q | r))


def policies_table(task: StackTask) -> Table:
    """Every correct policy with its length, weakness and survival."""
    table = Table(title="Correct policies of one task")
    for name in ("policy", "length", "weakness", "survives", "complexity (bits)"):
        table.add_column(name, justify="right")
    for policy in task.correct_policies():
        table.add_row(
            task.language.vocabulary.spell(policy),
            str(policy.bit_count()),
            str(task.language.weakness(policy)),
            str(survival_probability(task, policy)),
            str(information_bits(task, policy)),
        )
    return table


def arithmetic_table(results: list[ArithmeticResult]) -> Table:
    """Weakest against shortest on the inputs held out."""
    table = Table(title="Held-out inputs: weakest / shortest correct hypothesis (95 % interval)")
    for name in ("", "shown", "tasks", "permits answer", "difference", "says just it"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        gap, half = float(result.difference["extent"]), result.half_width["extent"]
        table.add_row(
            {"addition": "+", "multiplication": "x"}[result.problem.operation],
            f"{result.shown}/{result.problem.inputs}",
            f"{result.tasks}{' (all)' if result.enumerated else ''}",
            " / ".join(f"{float(s['extent']):.2f}" for s in (result.weakest, result.shortest)),
            f"{gap:+.2f}" + ("" if result.enumerated else f" +- {half:.2f}"),
            " / ".join(f"{float(s['decided']):.2f}" for s in (result.weakest, result.shortest)),
        )
    return table


def figure_of(results: list[ArithmeticResult]) -> Figure:
    """Both scores of both rules against the number of examples."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    operations = ("addition", "multiplication")
    for axis, operation in zip(figure.subplots(1, 2, sharey=True), operations, strict=True):
        rows = [result for result in results if result.problem.operation == operation]
        shown = [result.shown for result in rows]
        for rule, colour in (("weakest", "tab:blue"), ("shortest", "tab:orange")):
            for score, style in (("extent", "o-"), ("decided", "s:")):
                values = [float(getattr(result, rule)[score]) for result in rows]
                halves = [result.half_widths[rule][score] for result in rows]
                label = f"{rule}: {'permits the answer' if score == 'extent' else 'says just it'}"
                axis.errorbar(
                    shown, values, halves, fmt=style, color=colour, capsize=3, label=label
                )
        axis.set_title(operation, fontsize=10)
        axis.set_xlabel("examples shown, of 16")
    figure.axes[0].set_ylabel("share of the held-out inputs")
    figure.axes[1].legend(fontsize=7)
    return figure


def main(arguments: list[str] | None = None) -> list[ArithmeticResult]:
    """Run the demo and return the arithmetic results."""
    chosen = options(__doc__, arguments)
    console = Console()
    console.print(policies_table(scalpel()))
    results = [
        arithmetic_experiment(
            Arithmetic(operation, width=2, max_literals=3),
            shown,
            tasks=20 if chosen.small else 200,
            seed=chosen.seed,
        )
        for operation in ("addition", "multiplication")
        for shown in ((6, 10) if chosen.small else (4, 6, 8, 10, 12, 14))
    ]
    console.print(arithmetic_table(results))
    print(
        "The weakest hypothesis is the likeliest to permit what comes; it also commits itself\n"
        "to least. Which of the two counts as generalising is a choice, so both are shown.\n"
        "(No data set is used here: --task has no effect.)"
    )
    save(figure_of(results), chosen.out, "finite-stack-theory")
    return results


if __name__ == "__main__":
    main()
