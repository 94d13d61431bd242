"""How a run ends, as exit codes; and the failures that have one of their own."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of `python -m ml.training`. A signal, or any other status, is a crash."""

    DONE = 0
    STOPPED = 75  # asked to stop; a checkpoint was written if a step had been made
    DISK_FULL = 76  # the run may be tried again
    OUT_OF_MEMORY = 77  # by its own memory limit
    NON_FINITE_LOSS = 78
    BAD_INPUT = 79  # a spec or data that cannot be trained on


class StoppedError(Exception):
    """The run was asked to stop and has written its checkpoint."""


class NothingToLearnError(ValueError):
    """No row of a step counts towards the loss."""


class NonFiniteLossError(Exception):
    """The loss or its gradient became NaN or infinite."""


class UnfitModelError(Exception):
    """A model that would not be served: it is damaged, or doesn't answer as the trained one did."""


class ExportError(Exception):
    """The exported model does not answer as the trained one."""
