"""Every numeric option of every command is checked: one line that names it, and nothing is done."""

import importlib
import re
import shutil

import pytest

from keras_vjepa import __main__ as command
from keras_vjepa.command_line import OneLineParser

pytestmark = pytest.mark.data

VALUES = ("0", "-1", "nan", "inf", "1e30", "")

# The required arguments of each command, and the first function that it calls with checked options.
COMMANDS = {
    "pretrain": ([], "run"),
    "probe": ([], "run"),
    "probe-table": (["--presets", "untrained"], "run"),
    "supervised": ([], "run"),
    "finetune": (["--preset", "here", "--data", "here"], "check_preset"),
    "finetune-table": (["out", "--preset", "here"], "check_preset"),
    "bench-finetune": ([], "bench_step"),
    "bench-plain": ([], "bench_decoder"),
    "detect": (["--preset", "here"], "check_preset"),
    "detect-table": (["out", "--preset", "here"], "check_preset"),
    "dense-probe": (["here"], "check_preset"),
    "decode": (
        ["sample", "here", "--preset", "here", "--decoder", "here", "--output", "out.png"],
        "check_preset",
    ),
    "check-videos": (["here", "--output", "out"], "samples_of"),
    "transcode": (["here", "out"], "samples_of"),
    "videomix": (["--k400", "here", "--output", "out"], "mix_videos"),
    "bench-data": (["here"], "chosen_files"),
    "features": (["here", "--preset", "here", "--output", "out"], "prepare"),
    "convert": (["here", "out"], "convert"),
    "masks": (["--output", "masks.png"], "draw_batch"),
    "picture": (["masks", "here", "--preset", "here", "--output", "out.png"], "check_preset"),
    "bench": ([], "bench_training"),
    "bench-decoding": (["--video", "here"], "bench"),
    "plain-torch-step": ([], "Encoder"),
    "bench-rivals": ([], "compare"),
    "bench-pretraining": (["out"], "measured"),
    "sweep": (["out"], "run_all"),
    "ablations": (["out", "--table", "4"], "run"),
    "check-resume": (["out"], "reference_run"),
}
WITHOUT_NUMBERS = {"compare", "export", "export-checkpoint", "report", "upload", "verify"}
# These parse their command lines as `probe` and `pretrain` do.
AS_OTHERS = {"knn", "find-batch"}

_RATES = """learning_rate start_learning_rate final_learning_rate learning_rates start_weight_decay
    final_weight_decay weight_decays frozen_learning_rate""".split()
_WEIGHTS = "variance_weight context_variance_weight context_covariance_weight".split()
ACCEPTED = {
    # Zeros that leave something out, and seeds.
    "0": {
        *_RATES, *_WEIGHTS, "seed", "seeds", "kill_seed", "kills", "keep_every", "clip_after",
        "warmup_steps", "epsilon", "beta_1", "beta_2", "start_momentum", "final_momentum",
        "quality", "gain_videos", "max_bad_share", "erasing", "horizontal_flip",
        "augment_num_operations", "augment_magnitude", "augment_magnitude_std",
        "augment_probability", "start", "warmup_learning_rate", "weight_decay", "warmup_epochs",
        "drop_path_rate", "head_dropout", "color_jitter", "mixup", "cutmix", "smoothing",
        "mixup_probability", "mixup_switch", "first_second", "least_score", "jitter", "extension",
        "layers", "sampling_ratio", "dropout", "context_loss_weight", "context_warmup_start",
        "context_warmup_end", "mask_token", "monitor_probe_clips",
    },
    # Layers can be counted from the last one.
    "-1": {"layers"},
    # Any finite number is accepted, because a loss that is not finite stops the training.
    "1e30": {
        *_RATES, *_WEIGHTS, "epsilon", "clip_norm", "loss_scale_factor", "augment_magnitude_std",
        "warmup_learning_rate", "weight_decay", "mixup", "cutmix",
    },
}  # fmt: skip


class Accepted(Exception):
    """A command went on with what it was given."""


def accept(*args, **kwargs):
    raise Accepted


def parser_of(main, arguments):
    """The parser that a command makes."""
    found = []

    def keep(parser, *args, **kwargs):
        found.append(parser)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Accepted):
        patch.setattr(OneLineParser, "parse_all", keep)
        patch.setattr(OneLineParser, "parse_known_args", keep)
        main(arguments, "keras-vjepa")
    return found[0]


def numbers_of(action):
    """How many numbers an option takes: 1, 2, or none if it takes something else."""
    for text in ("3", "3,3"):
        try:
            value = action.type(text)
        except Exception:  # it is not of this kind
            continue
        if isinstance(value, int | float | tuple):
            return text.count("3")
    return 0


def numeric_options(parser):
    typed = [action for action in parser._actions if action.option_strings and action.type]
    return {a.option_strings[-1]: n for a in typed if (n := numbers_of(a))}


def test_every_command_is_walked():
    assert set(COMMANDS) | WITHOUT_NUMBERS | AS_OTHERS == set(command.COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_numeric_option(name, tmp_path, monkeypatch, capsys):
    given, first = COMMANDS[name]
    module = importlib.import_module(command.COMMANDS[name])
    monkeypatch.setattr(module, first, accept)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    options = numeric_options(parser_of(module.main, given))
    assert options, "the parser has options, and none was found"
    wrong = {}
    for option, count in options.items():
        for value in VALUES:
            text = ",".join([value] * count)
            is_accepted = option.lstrip("-").replace("-", "_") in ACCEPTED.get(value, ())
            try:
                module.main([*given, f"{option}={text}"], "keras-vjepa")
                code = None
            except Accepted:
                code = 0
            except SystemExit as ended:
                code = ended.code
            except Exception as error:
                code = repr(error)
            said = capsys.readouterr().err
            named = re.search(rf"(?<![\w-]){option}(?![\w-])", said)
            is_refused = code == 2 and said.count("\n") == 1 and named
            left = [path for path in tmp_path.iterdir() if path.name != "here"]
            if not (code == 0 if is_accepted else is_refused and not left):
                wrong[option, value] = (code, said, left)
            for path in left:
                shutil.rmtree(path)
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())
