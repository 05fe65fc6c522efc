"""The one exception tree of medsa.

Every message names what was wrong, the value found and what is allowed. The edges
(`infers/`, `server/`, `datastore/`, `cli.py`) translate `http_status` and the message; nothing else does.
"""


class MedsaError(Exception):
    """Anything medsa refuses or cannot do. `http_status` is what a client is answered."""

    http_status = 500


class InputError(MedsaError):
    """A value from outside that does not fit; the message names field, value and what is allowed."""

    http_status = 422

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:200] + "..."
        super().__init__(f"{field}: {shown} is not accepted; allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class NotFoundError(InputError):
    """A name or id that nothing answers to."""

    http_status = 404


class SettingsError(InputError):
    """A setting in a YAML file or `--conf` that does not fit."""


class VolumeError(MedsaError):
    """An image that cannot be read as a volume."""

    http_status = 422


class UnavailableError(VolumeError):
    """An image that cannot be read now, for a reason that is not in the file: it may be read another time."""


class LabelError(MedsaError):
    """A label that does not fit its image or its label set."""

    http_status = 422


class CheckpointError(MedsaError):
    """A base checkpoint that is absent, damaged or of another architecture."""


class AdapterError(MedsaError):
    """An adapter folder that is damaged or was made for something else."""


class TrainingError(MedsaError):
    """Training that cannot start or go on, e.g. without any label."""

    http_status = 409


class AlreadyTrainingError(TrainingError):
    """Another training holds the state folder's lock."""

    http_status = 429


class UnjudgedError(TrainingError):
    """A label that the serving version has learned, and no case can judge: nothing could be published."""


class DivergenceError(TrainingError):
    """The loss is no number any more; going on from what there is would end in the same way."""


class TrainingStopped(MedsaError):
    """Training ends because it was asked to; what it has is kept in its checkpoint."""

    http_status = 409


class UntrainedError(MedsaError):
    """An answer without clicks that nothing was trained for yet."""

    http_status = 409


class TooLargeError(InputError):
    """More than this server takes in one request."""

    http_status = 413


class BusyError(MedsaError):
    """Too many wait already, or it took too long; `retry_after_s` says when asking again makes sense."""

    http_status = 503

    def __init__(self, text: str, retry_after_s: int) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class PacsError(MedsaError):
    """The PACS refused something, or sent what cannot be read. The status is that of a gateway."""

    http_status = 502


class PacsUnreachableError(PacsError):
    """The PACS does not answer; later it may."""

    http_status = 503


class ClientGoneError(MedsaError):
    """Whoever asked has left; nobody reads the answer. The status is nginx's for it."""

    http_status = 499
