"""Attack downloads by a hostile server: python -m tests.presets.fuzz --count 800 --seed 1000."""

import argparse
import collections
import contextlib
import io
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.presets.test_hostile_server import attack


def main() -> None:
    """Print how downloads ended, the slowest, and what should not have been."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes, slowest, wrong = collections.Counter(), (0.0, 0), {}
    for seed in range(options.seed, options.seed + options.count):
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                # The hash of every fourth file is unknown.
                ended = attack(seed, Path(folder), with_hash=seed % 4 != 0)
        except Exception as error:
            wrong[seed] = repr(error)
        else:
            outcomes.update(
                re.sub(r"[\d,a-f]{6,}", "N", text.split(": ")[-1])[:60] for text in ended
            )
        slowest = max(slowest, (time.perf_counter() - start, seed))
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    seconds, seed = slowest
    print(f"{options.count} attacks, {len(wrong)} wrong; the slowest, {seed}, took {seconds:.1f} s")
    print("\n".join(f"seed {seed}: {text}" for seed, text in wrong.items()))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
