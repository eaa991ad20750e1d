"""The errors a user can meet. Each message says what was found, what was expected and what would work."""


class QAlignError(Exception):
    """Base of every error this package raises on purpose."""


class ImageError(QAlignError):
    """A picture that cannot be read: not an image, truncated, over a limit, of an unsupported kind."""


class VideoError(QAlignError):
    """A clip that cannot be read, or one without a single frame."""


class CheckpointError(QAlignError):
    """An upstream checkpoint whose files, tensors or settings are not what the family has."""


class ArtifactError(QAlignError):
    """An artifact whose files do not match its manifest, or a manifest this version cannot read."""


class TaskError(QAlignError):
    """A task that the loaded model does not have."""


class DeviceError(QAlignError):
    """A device, engine or precision that this machine or this model lacks."""


class OptionError(QAlignError, ValueError):
    """A number or a name that a call does not take."""


class MissingExtraError(QAlignError, ImportError):
    """An optional dependency that is not installed; the message holds the line that installs it."""


def one_line(error: BaseException) -> str:
    """The first line of what an error of another library says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
