"""What every process that computes has in its environment, to be said before torch or MONAI are imported, and how it
gives way to whoever clicks.
"""

import os

NICENESS = 10  # of what nobody waits for


def prepare_environment() -> None:
    """Sets what nobody has set otherwise, here and for the processes that this one starts."""
    # OpenMP's threads wait for each other in busy loops, which costs server and training several times their speed
    # when both share few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # MONAI imports MLflow wherever it finds it, and MLflow reports to its makers unless told otherwise before.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def give_way() -> None:
    """Lowers this process's priority, for good; one that is lower already stays as it is."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
