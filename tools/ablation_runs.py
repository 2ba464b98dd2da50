"""Pretrain and probe the variants of an ablation (§4, App. E.3)."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_vjepa.command_line import text_of
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.list_writing import write_list
from keras_vjepa.evaluation import EncoderComparison
from keras_vjepa.evaluation.ablation_cost import COST, NAME
from keras_vjepa.evaluation.ablation_variants import Variant
from keras_vjepa.evaluation.comparison import write_results
from keras_vjepa.evaluation.labelled_videos import of_task
from keras_vjepa.presets.preset import load_backbone
from keras_vjepa.recipes import pretrain, probe_configs
from keras_vjepa.recipes.pretrain_evaluation import evaluate, labelled_clips
from keras_vjepa.recipes.pretrain_objects import make_encoder
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.tools.child_runs import RECIPE, ChildRun
from keras_vjepa.tools.finetune_table import Comparison
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import writable_folder

PRETRAINED, UNTRAINED = "pretrained target encoder", "untrained encoder"


@dataclass(frozen=True)
class AblationRuns:
    """Pretrains, probes and fine-tunes variants in folders of their own.

    Attributes:
        workdir: folder of the table.
        config: config that the variants change.
        fine_tune_steps: steps of a fine-tuning.
    """

    workdir: Path
    config: PretrainConfig
    fine_tune_steps: int | None

    def folder(self, variant: Variant, seed: int) -> Path:
        """Return the folder of the pretraining of a variant."""
        return self.workdir / "runs" / f"{variant.run} {seed}"

    def is_finished(self, variant: Variant, seed: int) -> bool:
        """Tell whether a pretraining is finished and probed."""
        return bool(read_result(self.folder(variant, seed) / "probe.json"))

    def child(self, variant: Variant, seed: int, words: Sequence[str]) -> ChildRun:
        """Return the pretraining of a variant as a command for a process of its own.

        Args:
            variant: the variant.
            seed: the seed.
            words: options of `pretrain` that make the config that the variant changes.
        """
        folder = self.folder(variant, seed)
        given = {**_changes(self.config, variant), "seed": seed, "workdir": folder.absolute()}
        if variant.share < 1:
            given["data"] = self._shortened(variant.share)
        options = [f"--{name}={text_of(value)}" for name, value in given.items()]
        command = (sys.executable, *RECIPE, *words, *options)
        return ChildRun(f"{variant.name}, seed {seed}", command, folder)

    def accuracy(self, variant: Variant, seed: int, which: str, task: str) -> float:
        """Return the accuracy of a frozen probe, and make what it lacks."""
        found = self._probed(variant, seed)
        if variant.pooling != "attentive":
            found = self._pooled(variant, seed)
        return float(found[which][f"{task}_accuracy"])

    def fine_tuned(self, variant: Variant, seed: int, task: str) -> float:
        """Fine-tune the pretrained encoder on all labels of its probe; return the accuracy."""
        self._probed(variant, seed)
        data, steps = self.config.data, self.fine_tune_steps
        assert steps is not None
        train, test = labelled_sets.train_and_test(data)
        folder = writable_folder(self.workdir / "fine-tuned")
        options = argparse.Namespace(data=data, task=task, workdir=folder)
        videos = of_task(train[: self.config.probe_videos], task), of_task(test, task)
        preset = str(self.folder(variant, seed) / "preset")
        name = f"{variant.run} {steps} steps"
        return Comparison(options, *videos).fine_tune(preset, steps, 1.0, seed, name)

    def _probed(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Pretrain and probe; return the results of the probe."""
        folder = self.folder(variant, seed)
        if not self.is_finished(variant, seed):
            config = config_of(self.config, variant, seed)
            shown = replace(config, callbacks=(*(config.callbacks or ()), NAME))
            if variant.share < 1:
                shown = replace(shown, data=str(self._shortened(variant.share)))
            print(f"{variant.name}, seed {seed}: {folder}", file=sys.stderr, flush=True)
            pretrain.run(shown, folder, "ablations")
            if variant.share < 1:
                # A list has no test videos, so that the run was not probed.
                encoder = load_backbone(folder / "preset", dtype=config.dtype)
                results = evaluate(config, encoder, make_encoder(config))
                write_results(folder / "probe.json", results)
            COST.steps_left -= config.run.steps
            keras.backend.clear_session()
        return read_result(folder / "probe.json") or {}

    def _pooled(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Probe a finished run with another pooling; return the results."""
        folder = self.folder(variant, seed)
        path = folder / f"probe_{variant.pooling}.json"
        if not read_result(path):
            config = config_of(self.config, variant, seed)
            settings = replace(
                probe_configs.digit_motion(), epochs=config.probe_epochs, pooling=variant.pooling
            )
            encoder, untrained = load_backbone(folder / "preset"), make_encoder(config)
            comparison = EncoderComparison(encoder, settings, *labelled_clips(config))
            write_results(path, {PRETRAINED: comparison(encoder), UNTRAINED: comparison(untrained)})
        return read_result(path) or {}

    def _shortened(self, share: float) -> Path:
        """Write a list of the first training videos, and return its path."""
        path = self.workdir / f"{share:g} of the videos.csv"
        train, _ = labelled_sets.train_and_test(self.config.data)
        write_list(path, train[: max(1, round(share * len(train)))])
        return path


def config_of(config: PretrainConfig, variant: Variant, seed: int) -> PretrainConfig:
    """Return the config of a variant's pretraining.

    Args:
        config: config that the variant changes.
        variant: the variant.
        seed: the seed.
    """
    return replace(config, **_changes(config, variant), seed=seed)


def _changes(config: PretrainConfig, variant: Variant) -> dict[str, Any]:
    """Return the options that a variant sets, with their values."""
    return variant.options(config.encoder.num_frames or 1)
