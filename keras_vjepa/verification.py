"""Check the authors' files against what is known of them (App. C, App. D.1).

No official file could be read where this package was made. Anybody who has one can use this module
to report what is in it: hash and length, whether all its keys are known, how many tensors it has,
and what its networks compute for a clip made by a formula, so that reports of several people can be
compared. The command is `keras-vjepa verify`.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.conversion import CheckpointError, convert, convert_probe, hugging_face
from keras_vjepa.conversion.authors import state_dict
from keras_vjepa.conversion.authors_21 import DISTILLED_AVERAGE
from keras_vjepa.conversion.errors import listed
from keras_vjepa.conversion.lazy_tensors import LazyTensor
from keras_vjepa.conversion.torch_archive import read_checkpoint
from keras_vjepa.named_errors import one_line
from keras_vjepa.presets.downloads import RemoteFile, received
from keras_vjepa.presets.hubs import preset_from_hub
from keras_vjepa.presets.preset import BUILT_IN
from keras_vjepa.presets.transfer import hash_of
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.zoo import ClassifierEntry, PretrainedEntry

CLIP = "sin(2 pi (t/8 + y/32 + x/48) + c), with t, y, x, c from 0; 16 frames at most"
_MOST_FRAMES = 16
_PROBE_TOKENS = 64

# Where the same weights are published in the layout of the transformers package, by preset.
TWINS = {"vjepa2_large_patch16_256": "hf://facebook/vjepa2-vitl-fpc64-256"}

_NETWORKS = ("encoder", "predictor", "target_encoder")


@dataclass(frozen=True)
class Finding:
    """Holds one fact that was found in a file.

    Attributes:
        what: what was looked at.
        value: what was found.
        is_right: whether this is as it must be; None if there is nothing to compare it with.
    """

    what: str
    value: str
    is_right: bool | None = None


@dataclass
class FileReport:
    """Collects what is found in a file.

    Attributes:
        name: name of a preset, or of a local file.
        findings: the findings, in the order in which they were made.
        seconds: how long each part of the work took, by its name.
        folder: the folder of the file, which is private and left out of the findings.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def passed(self) -> bool:
        """Return whether nothing was found to be wrong."""
        return all(finding.is_right is not False for finding in self.findings)

    def add(self, what: str, value: Any, is_right: bool | None = None) -> None:
        """Add a finding to the report."""
        text = str(value) if self.folder is None else str(value).replace(f"{self.folder}/", "")
        self.findings.append(Finding(what, text, is_right))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Measure the time of a block; note its errors as findings that end this file's report."""
        start = time.perf_counter()
        try:
            yield
        except _Failed:
            raise
        except Exception as error:  # the other files are still checked
            self.add(what, f"{type(error).__name__}: {one_line(error)}", False)
            raise _Failed from error
        finally:
            self.seconds[what] = time.perf_counter() - start

    def lines(self) -> list[str]:
        """Write the report as lines of Markdown."""
        marks = {True: "ok", False: "**WRONG**", None: "-"}
        rows = [f"| {f.what} | {_cell(f.value)} | {marks[f.is_right]} |" for f in self.findings]
        taken = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.seconds.items())
        title = f"### {self.name}: {'passed' if self.passed else 'FAILED'}"
        return [title, "", "| | found | |", "|---|---|---|", *rows, "", f"Time: {taken}.", ""]


class _Failed(Exception):
    """Says that the rest of a file cannot be checked; the report tells why."""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- Files ---------------------------------------------------------------------------------------


def verifiable() -> list[str]:
    """Return the names of the zoo whose files can be verified: V-JEPA's."""
    kinds = (ClassifierEntry, PretrainedEntry)
    return [name for name, entry in BUILT_IN.items() if isinstance(entry, kinds)]


def official_file(name: str) -> RemoteFile:
    """Return the file that belongs to a name of the zoo: a probe, or a pretraining checkpoint."""
    entry = BUILT_IN[name]
    if isinstance(entry, ClassifierEntry):
        return entry.probe
    assert isinstance(entry, PretrainedEntry)
    return entry.checkpoint


def verify(name: str, keep: bool = False) -> FileReport:
    """Check one file, and report what is in it.

    Args:
        name: one of `verifiable`, whose file is downloaded, or the path of a file.
        keep: whether a downloaded file stays in the cache, for `from_preset` to find.

    Returns:
        The report; an error while reading the file is a finding in it.

    Example:

    ```python
    from keras_vjepa.verification import verify
    print("\\n".join(verify("vjepa2_large_patch16_256").lines()))
    ```
    """
    path = Path(name).expanduser()
    report = FileReport(name if name in verifiable() else path.name)
    with suppress(_Failed):
        if name in verifiable():
            _verify_official(report, official_file(name), keep)
        else:
            _verify_local(report, path)
    return report


def _verify_official(report: FileReport, file: RemoteFile, keep: bool) -> None:
    report.folder = file.path.parent
    report.add("address", file.address)
    with ExitStack() as stack:
        with report.timed("download"):
            path, sha256 = stack.enter_context(received(file, keep))
        _check_bytes(report, file, path, sha256)
        _look_into(report, report.name, path)


def _verify_local(report: FileReport, path: Path) -> None:
    report.folder = path.parent
    with report.timed("hash"):
        sha256 = hash_of(path)
    names = verifiable()
    alike = [name for name in names if official_file(name).name == path.name]
    same = [name for name in names if official_file(name).sha256 == sha256]
    # The probes of several encoders have the same file name.
    [name] = same[:1] or (alike if len(alike) == 1 else [""])
    if name:
        report.add("taken for", f"the file of {name}")
    _check_bytes(report, official_file(name) if name else RemoteFile(str(path)), path, sha256)
    _look_into(report, name, path)


def _check_bytes(report: FileReport, file: RemoteFile, path: Path, sha256: str) -> None:
    num_bytes, stated = path.stat().st_size, file.num_bytes
    is_right = None if stated is None else num_bytes == stated
    report.add("bytes", f"{num_bytes:,}" + ("" if is_right else _of(stated)), is_right)
    is_right = None if file.sha256 is None else sha256 == file.sha256
    whose = (
        ", nobody has stated it"
        if is_right is None
        else f", stated by {file.stated_by or 'this package'}"
    )
    report.add("SHA-256", f"{sha256}{whose}{'' if is_right else _of(file.sha256)}", is_right)


def _of(stated: object) -> str:
    return "" if stated is None else f"; it must be {stated}"


# --- Their contents ------------------------------------------------------------------------------


def _look_into(report: FileReport, name: str, path: Path) -> None:
    with report.timed("index"):
        checkpoint = read_checkpoint(path)
        _count(report, checkpoint)
    is_probe = bool({"classifier", "classifiers"} & checkpoint.keys())
    if name and is_probe != isinstance(BUILT_IN[name], ClassifierEntry):
        kinds = "networks", "a probe"
        report.add("kind", f"{kinds[is_probe]}; it must be {kinds[not is_probe]}", False)
    if is_probe:
        _look_into_probe(report, name, path)
    else:
        _look_into_networks(report, name, path)


def _count(report: FileReport, checkpoint: dict[str, Any]) -> None:
    plain = {k: v for k, v in checkpoint.items() if isinstance(v, int | float)}
    report.add("keys", listed(sorted(map(str, checkpoint))))
    report.add("numbers", ", ".join(f"{key} {value:.6g}" for key, value in plain.items()) or "none")
    for network in (*_NETWORKS, DISTILLED_AVERAGE, "classifier", "classifiers"):
        if network in checkpoint:
            tensors = state_dict(checkpoint, network)
            report.add(f"tensors of {network}", f"{len(tensors)} of {_values(tensors):,} values")


def _values(tensors: dict[str, LazyTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _look_into_networks(report: FileReport, name: str, path: Path) -> None:
    entry = BUILT_IN.get(name)
    given: dict[str, Any] = {}
    if isinstance(entry, PretrainedEntry):
        given = {name: entry.encoder[name] for name in entry.unwritten}
        given |= {"num_heads": entry.encoder["num_heads"]}
        given |= {"predictor_num_heads": entry.predictor["num_heads"]}
        if "num_frames" in given:
            given["num_frames"] = min(given["num_frames"], _MOST_FRAMES)
    with report.timed("strict load"):
        pretrainer = convert(path, **given)
        assert isinstance(pretrainer, VJEPAPretrainer)
    report.add("strict load", "every key is known, none is missing, all shapes fit", True)
    if isinstance(entry, PretrainedEntry):
        _check_architecture(report, pretrainer, entry, given)
    with report.timed("features"):
        num_frames, *picture = pretrainer.encoder.video_shape
        clip = fixed_clip((min(num_frames, _MOST_FRAMES), *picture))
        for network in ("target_encoder", "encoder"):
            tokens = getattr(pretrainer, network).predict_on_batch(clip)
            report.add(f"features of {network}", statistics(tokens), _is_finite(tokens))
    if name in TWINS:
        with report.timed("twin"):
            _compare(report, pretrainer, TWINS[name], given)


def _check_architecture(
    report: FileReport, pretrainer: VJEPAPretrainer, entry: PretrainedEntry, given: dict[str, Any]
) -> None:
    expected = {**entry.encoder, **{k: v for k, v in given.items() if k in entry.encoder}}
    wrong = []
    for part, arguments in (("encoder", expected), ("predictor", entry.predictor)):
        found = getattr(pretrainer, part).get_config()
        wrong += [f"{part}.{k} {found[k]}, not {v}" for k, v in arguments.items() if found[k] != v]
    report.add("architecture", "; ".join(wrong) or "as the zoo has it", not wrong)
    count = sum(math.prod(v.shape) for v in pretrainer.encoder.trainable_variables)
    right = count == entry.parameters
    report.add("parameters", f"{count:,}" + ("" if right else _of(f"{entry.parameters:,}")), right)


def _look_into_probe(report: FileReport, name: str, path: Path) -> None:
    entry = BUILT_IN.get(name)
    num_heads = None
    if isinstance(entry, ClassifierEntry):
        pretrained = BUILT_IN[entry.pretrained]
        assert isinstance(pretrained, PretrainedEntry)
        num_heads = pretrained.encoder["num_heads"]
    with report.timed("strict load"):
        probe = convert_probe(path, num_heads)
    report.add("strict load", "every key is known, none is missing, all shapes fit", True)
    if isinstance(entry, ClassifierEntry):
        right = probe.num_classes == entry.num_classes
        report.add(
            "classes", f"{probe.num_classes:,}{'' if right else _of(entry.num_classes)}", right
        )
    with report.timed("features"):
        width = probe.linear.kernel.shape[0]
        tokens = fixed_clip((_PROBE_TOKENS, 1, width, 1)).reshape(1, _PROBE_TOKENS, width)
        logits = probe.predict_on_batch(tokens)
        report.add(
            f"logits of {_PROBE_TOKENS} tokens by the formula",
            statistics(logits),
            _is_finite(logits),
        )


def fixed_clip(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make a clip by the formula `CLIP`, the same on every machine.

    Args:
        shape: frames, height, width and channels.

    Returns:
        One clip, `(1, frames, height, width, channels)`.
    """
    t, y, x, c = np.indices(shape, dtype="float64", sparse=True)
    return np.sin(2 * np.pi * (t / 8 + y / 32 + x / 48) + c).astype("float32")[None]


def statistics(tokens: NDArray[np.float32]) -> str:
    """Write numbers that sum up features, to compare those of two machines."""
    values = np.asarray(tokens, "float64")
    first = " ".join(f"{value:.5f}" for value in values.reshape(-1)[:4])
    return (
        f"mean {values.mean():.6f}, std {values.std():.6f}, least {values.min():.5f}, "
        f"most {values.max():.5f}, first {first}, shape {values.shape}"
    )


def _is_finite(tokens: NDArray[np.float32]) -> bool | None:
    """Return False if a number is not finite; else None, as nothing says what it must be."""
    return None if np.isfinite(tokens).all() else False


def _compare(
    report: FileReport, pretrainer: VJEPAPretrainer, address: str, given: dict[str, Any]
) -> None:
    """Compare the weights with those of a folder of the transformers package, number by number."""
    try:
        folder = preset_from_hub(address, load_weights=True)
        hugging_face.safetensors()
    except (ImportError, CheckpointError) as error:
        report.add("twin", f"{address} not compared: {one_line(error)}")
        return
    sizes = {k: v for k, v in given.items() if k in ("image_size", "num_frames")}
    twin = hugging_face.convert(folder, **sizes)
    assert isinstance(twin, VJEPAPretrainer)
    found = {part: _difference(getattr(pretrainer, part), twin.encoder) for part in _NETWORKS[::2]}
    equal = [part for part, difference in found.items() if difference == 0]
    shown = ", ".join(f"to {part} {difference:.3g}" for part, difference in found.items())
    report.add(
        f"encoder of {address}",
        f"equal to {' and '.join(equal) or 'neither'} (largest difference {shown})",
        bool(equal),
    )
    difference = _difference(pretrainer.predictor, twin.predictor)
    report.add(f"predictor of {address}", f"largest difference {difference:.3g}", difference == 0)


def _difference(one: keras.Model, other: keras.Model) -> float:
    """Return the largest difference of two models' weights; infinity if the shapes differ."""
    pairs = list(zip(one.get_weights(), other.get_weights(), strict=False))
    alike = len(one.weights) == len(other.weights) and all(a.shape == b.shape for a, b in pairs)
    return max(float(np.abs(a - b).max()) for a, b in pairs) if alike else math.inf
