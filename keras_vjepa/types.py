"""Types with names: what travels between the rooms of the package (§3.1).

Backends have tensor types of their own; here all of them are `Tensor`.
"""

from typing import Any

# A tensor of whichever backend runs, or a NumPy array in its place.
Tensor = Any

# A model's input by name, see `tasks/pretrainer.py` for pretraining's.
Batch = dict[str, Tensor]
