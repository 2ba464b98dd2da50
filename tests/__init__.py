"""The tests. What engines read from the environment is set here, before one is loaded."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs that run only for a moment are compiled without optimisations, which take more than half
# of the suite's time on JAX. `tests/run.py all` leaves them on, as users have them.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)
os.environ.setdefault("XLA_FLAGS", QUICK)
