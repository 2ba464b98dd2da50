"""Write ablations as tables, with the paper's figures beside ours (§4, App. E.3)."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from keras_vjepa.arguments import counted
from keras_vjepa.evaluation.ablation_variants import ABLATIONS, Ablation
from keras_vjepa.evaluation.report import mean_and_deviation
from keras_vjepa.evaluation.seed_table import NUMBERS, SeedTable

# Shares by column, row and seed.
Numbers = Mapping[str, Mapping[str, Mapping[str, float]]]


class AblationTable(SeedTable):
    """Holds the shares of one ablation, and writes them with those of the others in its folder.

    Args:
        workdir: folder of `table.md` and `table.json`.
        name: name of the ablation, one of `ABLATIONS`.

    Raises:
        ValueError: if the folder holds the table of another command.
    """

    def __init__(self, workdir: Path, name: str) -> None:
        super().__init__(workdir, name, ())
        if unknown := [heading for heading in self.numbers if heading not in ABLATIONS]:
            raise ValueError(
                "`workdir` must be a folder of ablations. "
                f"Received: {workdir}, whose {NUMBERS} has {unknown[0]!r}"
            )

    def text(self) -> str:
        """Write the tables of all ablations in the folder, each with what the paper found."""
        found = [name for name in ABLATIONS if self.numbers.get(name)]
        return "\n".join(_text(name, ABLATIONS[name], self.numbers[name]) for name in found)


def _text(name: str, ablation: Ablation, numbers: Numbers) -> str:
    """Write one ablation; rows and columns without a number are left out."""
    columns, paper = [*numbers], [f"paper: {column}" for column in ablation.columns]
    lines = [f"| {name}: {ablation.title} | {' | '.join([*columns, *paper])} |"]
    lines.append("|---" * (1 + len(columns) + len(paper)) + "|")
    for variant in ablation.variants:
        cells = [[*numbers[column].get(variant.name, {}).values()] for column in columns]
        if any(cells):
            ours = [f"{mean_and_deviation(cell)} ({len(cell)})" if cell else "" for cell in cells]
            theirs = [str(figure) for figure in variant.paper] or [""] * len(paper)
            lines.append(f"| {' | '.join([variant.name, *ours, *theirs])} |")
    lines.append("")
    lines += [
        f"- {column}: {verdict(better, worse, numbers[column])}"
        for better, worse in ablation.findings
        for column in columns
        if "untrained" not in column and {better, worse} <= numbers[column].keys()
    ]
    return "\n".join(lines) + "\n"


def verdict(better: str, worse: str, cells: Mapping[str, Mapping[str, float]]) -> str:
    """Say whether a row is above another one, as the paper finds, over the seeds of both.

    A mean difference within two of its standard errors is undecided; one seed decides nothing.

    Args:
        better: name of the row that the paper finds better.
        worse: name of the other row.
        cells: shares by row and seed.

    Example:

    >>> print(verdict("a", "b", {"a": {"0": 0.5, "1": 0.6}, "b": {"0": 0.3, "1": 0.4}}))
    the paper has a above b; here +20.0 ± 0.0 points (2 seeds): as in the paper
    """
    both = [seed for seed in cells[better] if seed in cells[worse]]
    if not both:
        return f"the paper has {better} above {worse}; here no seed has both"
    differences = [cells[better][seed] - cells[worse][seed] for seed in both]
    mean, text = float(np.mean(differences)), mean_and_deviation(differences)
    sign = "" if text.startswith("-") else "+"
    said = f"the paper has {better} above {worse}; here {sign}{text} points"
    if len(both) == 1:
        return f"{said} (1 seed)"
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(both))
    direction = "as in the paper" if mean > 0 else "the other way round"
    return f"{said} ({len(both)} seeds): {direction if abs(mean) > 2 * error else 'undecided'}"


def cost_in_words(runs: Iterable[bool], steps: int, batch_size: int) -> str:
    """Say how many trainings are left to do.

    Args:
        runs: whether each of the trainings is finished.
        steps: steps of each.
        batch_size: clips of a step.

    Example:

    >>> cost_in_words([True, False, False], 1000, 32)
    '3 pretrainings of 1,000 steps of 32 clips, 1 of them there: 2,000 steps to do'
    """
    done = list(runs)
    left = done.count(False)
    return (
        f"{counted(len(done), 'pretraining')} of {counted(steps, 'step')} of "
        f"{counted(batch_size, 'clip')}, {len(done) - left} of them there: "
        f"{left * steps:,} steps to do"
    )
