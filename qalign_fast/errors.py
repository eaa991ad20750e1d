"""The errors a user can meet. Each message says what was found, what was expected and what would work."""


class QAlignError(Exception):
    """Base of every error this package raises on purpose."""


class ImageError(QAlignError):
    """A picture that cannot be read: it is no image, truncated, over a limit, or of an unsupported kind."""


class VideoError(QAlignError):
    """A clip that cannot be read, or that has no frame."""


class CheckpointError(QAlignError):
    """An upstream checkpoint whose files, tensors or settings are not what the family has."""


class ArtifactError(QAlignError):
    """A model that cannot be found or read.

    Raised for a path that is no model, for an id that the Hub refuses or that cannot be fetched, for a server that
    cannot be reached when its model is loaded, for an artifact whose files do not match its manifest, and for a
    manifest that this version cannot read.
    """


class ServerError(QAlignError):
    """A server that was there when its model was loaded, and now is not, refuses, or answers what it should not.

    Where that could help, it was asked again before. The next picture may fare no better.
    """


class TaskError(QAlignError):
    """A task that the loaded model does not have."""


class DeviceError(QAlignError):
    """A device, engine or precision that this machine or this model lacks, or a number of `threads` below 1.

    Also raised for what a device cannot do, such as a batch that its memory has no room for.
    """


class RowsError(QAlignError):
    """A rows file that cannot be read, is none of ours, or lacks what was asked of it: a column, a task, a score."""


class ListError(QAlignError):
    """A list of labels that cannot be read, is of no known form, or has an entry without a usable name or label."""


class CalibrationError(QAlignError):
    """A calibration that cannot be read, is none of ours, or is of another model."""


class OptionError(QAlignError, ValueError):
    """A number or a name that a call does not take."""


class MissingExtraError(QAlignError, ImportError):
    """An optional dependency that is not installed. The message says the command that installs it."""


class ModelWarning(UserWarning):
    """What may make a model's scores other than they seem; told when it is loaded, and when it is exported."""


class InternalError(QAlignError):
    """What should not happen while a picture or a clip is read: a fault of ours or of a library, in its place.

    The text names the picture; `__cause__` is what was raised.
    """


def one_line(error: BaseException) -> str:
    """The first line of another library's error, or the name of its class if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
