"""The transformers package, which the converters are tested against; tests import it from here.

It needs torchvision for its processor alone, but imports it for a model too where it is installed.
PyPI's torchvision is built for CUDA: beside torch's CPU build its operators do not load, and the
import of it ends in an error that names the first of them. Those that it must find are declared
here, and computed with by nothing.
"""

import sys

import torch

try:
    import torchvision
except ModuleNotFoundError:  # as with the lowest versions, see tests/lowest.py
    torchvision = None
except RuntimeError as error:
    assert "torchvision::" in str(error), error
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    # The library is kept, because its declarations end with it.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import transformers  # it imports a model's code when that is first used

__all__ = ["torchvision", "transformers"]
