"""Name the types of what passes between the folders of the package (§3.1).

Each backend has a tensor type of its own; here all of them are `Tensor`.
"""

from typing import Any

# A tensor of whichever backend runs, or a NumPy array in its place.
Tensor = Any

# A model's input by name; `tasks/pretrainer.py` describes that of pretraining.
Batch = dict[str, Tensor]
