"""Watch a run, and say in words what it learns and whether it collapses (§3.1)."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_flag, check_whole
from keras_vjepa.backend import collectives
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.monitoring.follower import RunFollower
from keras_vjepa.monitoring.health import Verdict, checkpoint_to_keep, judge, steps_to_protect
from keras_vjepa.monitoring.held_out import HeldOut
from keras_vjepa.monitoring.looking import Looking
from keras_vjepa.monitoring.looks import variables_of
from keras_vjepa.monitoring.tables import Row, Table, read_rows

FILE_NAME = "monitor"


class CollapseError(RuntimeError):
    """Says that a monitor has stopped a run because it collapsed."""


class Monitor(RunFollower):
    """Measures the features of the same clips at regular steps, and says what they show.

    A look is one such measurement. The monitor writes `monitor.csv` and `monitor.jsonl`, with a row
    for each look, and at the end it names the checkpoint that is worth keeping. The run does not
    remove the best checkpoint so far, nor that of the last look. All processes of a run need the
    monitor, since they may hold parts of the weights; the first one writes.

    Args:
        held_out: the clips to look at; None in all processes but the first.
        folder: the folder to write to.
        every: steps between two looks; there are also looks before the first step and at the last.
        stop_on_collapse: whether the run ends when features have collapsed.
        probe_every: steps between two looks at which a probe is trained too; there are also probes
            at the first look and at the last.
        probe: trains and tests it, as an `OnlineProbe` does; None for no probe.
        writers: functions that are called with the new row after each look.

    Attributes:
        seconds: time that looking has taken so far.
        verdict: verdict of the last look.

    Raises:
        ValueError: if `every` or `probe_every` is not positive.
    """

    def __init__(
        self,
        held_out: HeldOut | None,
        folder: Path,
        every: int = 300,
        stop_on_collapse: bool = False,
        probe_every: int = 6000,
        probe: Callable[[VJEPABackbone, Sequence[NDArray[Any]]], Row] | None = None,
        writers: Sequence[Callable[[Sequence[Row]], None]] = (),
    ) -> None:
        super().__init__()
        check_whole(1, every=every, probe_every=probe_every)
        check_flag(stop_on_collapse=stop_on_collapse)
        self.held_out = held_out
        self.folder = folder
        self.every = every
        self.stop_on_collapse = stop_on_collapse
        self.probe_every = probe_every
        self.probe = probe
        self.writers = writers
        self.seconds = 0.0
        self.verdict: Verdict | None = None
        self.step = 0
        self._table: Table | None = None
        self._rows: list[dict[str, Any]] = []
        self._step_losses: list[Any] = []
        self._looking: Looking | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self.step = self.begun_at
        self._step_losses = []
        if self.held_out is not None:
            self._table = Table(self.folder / FILE_NAME, self.step)
            self._rows = read_rows(self.folder / f"{FILE_NAME}.jsonl")
            self._protect()
        if self.step == 0:
            self._write()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += 1
        self._step_losses.append((logs or {}).get("step_loss"))
        if self.step % self.every == 0 or self.step == self.last:
            self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._rows and self._rows[-1]["step"] == self.step:
            found = checkpoint_to_keep(self._rows, self._saved())
            if found is not None:
                self._say(f"Keep the checkpoint of step {found[0]:,}: {found[1]}.")

    def _write(self) -> None:
        began = time.perf_counter()
        values = collectives.values(variables_of(self.model))
        losses, self._step_losses = self._step_losses, []
        if self.held_out is None or self._table is None:
            return
        # It is made only once, so that it is compiled only once.
        self._looking = self._looking or Looking(self.model, self.held_out)
        row: dict[str, Any] = {
            "step": self.step,
            "loss": float(np.mean([float(loss) for loss in losses])) if losses else None,
            **self._looking(values),
            **self._probe_numbers(values),
        }
        self.verdict = judge([*self._rows, row])
        row |= {"state": self.verdict.state, "words": self.verdict.words}
        self._rows.append(row)
        self._table.add([row])
        for write in self.writers:
            write([row])
        self._protect()
        self._say(self.verdict.words)
        self.seconds += time.perf_counter() - began
        if self.stop_on_collapse and self.verdict.is_bad:
            raise CollapseError(f"Stopped at step {self.step}: {self.verdict.words}")

    def _probe_numbers(self, values: Sequence[NDArray[Any]]) -> Row:
        """Train a probe if one is due, and return its numbers."""
        if self.probe is None:
            return {}
        before = [row["step"] for row in self._rows if "clips_of_probe" in row]
        if before and self.step - before[-1] < self.probe_every and self.step != self.last:
            return {}
        variables = variables_of(self.model)
        known = {id(v): value for v, value in zip(variables, values, strict=True)}
        encoder = self.model.target_encoder
        return self.probe(encoder, [known[id(v)] for v in encoder.weights])

    def _saved(self) -> set[int] | None:
        """Return the steps that have a checkpoint or are about to get one; None without a run."""
        if self.start is None:
            return None
        checkpoints = self.start.checkpoints
        found = {*checkpoints.steps(), *checkpoints.protected}
        is_due = self.step % self.start.checkpoint_every == 0 or self.step == self.last
        return found | {self.step} if self.step and is_due else found

    def _protect(self) -> None:
        """Protect the checkpoints that may still be the one to keep."""
        saved = self._saved()
        if self.start is not None and saved is not None and self._rows:
            self.start.checkpoints.protected = steps_to_protect(self._rows, saved)

    def _say(self, words: str) -> None:
        print(f"step {self.step}: {words}", file=sys.stderr, flush=True)


def said(folder: Path) -> list[tuple[int, str]]:
    """Read what a run's monitor has said, as pairs of a step and a sentence.

    Args:
        folder: folder of the run.
    """
    rows = read_rows(folder / f"{FILE_NAME}.jsonl")
    return [(row["step"], str(row.get("words", ""))) for row in rows]
