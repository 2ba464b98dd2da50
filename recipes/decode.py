"""Train a decoder, which turns the predictor's features into pixels (§6, App. F).

    keras-vjepa decode train --preset PRESET

The result is a preset for `decode sample`. If the run is stopped, the same command continues.
"""

import logging
import sys
from contextlib import nullcontext
from pathlib import Path

from keras_vjepa import command_line, decoding
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.decoding import check_decode_files
from keras_vjepa.locks import locked
from keras_vjepa.monitoring import LossCurve, StepLog
from keras_vjepa.monitoring.options_file import OptionsFile
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.pictures.loading import load_pictured
from keras_vjepa.recipes.decode_configs import CONFIGS, DecodeConfig
from keras_vjepa.recipes.pretrain_objects import make_samples
from keras_vjepa.tasks.region_features import RegionFeatures
from keras_vjepa.training.resumable import folder_of_results


def run(config: DecodeConfig, workdir: Path) -> None:
    """Train in the folder `workdir`, or go on where a run was stopped, and save a preset."""
    parallel = distribution.setup()
    with (
        folder_of_results(workdir),
        locked(workdir, "--workdir") if parallel.is_first else nullcontext(),
    ):
        config = decoding.with_colours(config)
        if decoding.is_finished(config, workdir, parallel.is_first):
            return
        samples = make_samples(config)  # first, because a model takes longer to load
        features = RegionFeatures(load_pictured(config.preset, needs_predictor=True).pretrainer)
        decoder, batches = decoding.make_decoder(config, samples, features, parallel)
        options = [OptionsFile(workdir, values(config))] if parallel.is_first else []
        config.run.make(
            model=decoder,
            batches=batches,
            workdir=workdir,
            callbacks=[*options, StepLog(workdir, config.run.log_every), LossCurve(workdir)],
            description=decoding.description_of(config, decoder),
            parallel=parallel,
        )
        weights = collectives.values(decoder.weights)
        parallel.release()
        if parallel.is_first:
            decoding.save_alone(decoder, weights, workdir / "preset")
            decoding.write_options(config, workdir)
            print(f"Saved {workdir}/preset and {write_report(workdir)}.", file=sys.stderr)


def main(arguments: list[str] | None = None, program: str = "decode.py") -> None:
    """Run the recipe as a command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    name, given, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="decode_"
    )
    with command_line.refusing(program, CONFIGS, arguments):
        config = replace(CONFIGS[name](), **given)
        check_decode_files(config, workdir)
    distribution.launch_on_all_devices()
    try:
        run(config, workdir)
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        collectives.exit_with_error(f"{program}: {command_line.explain(error, CONFIGS)}")
