"""Every error that isanet raises on purpose, all importable from `isanet`.

A message says what failed, what was expected and what was found, what was done about it, and
what to do next. Where the caller passed something wrong, the class is also a `ValueError`.
"""


class IsanetError(Exception):
    """The root of all errors of this package."""


class DownloadError(IsanetError):
    """A file could not be fetched."""


class NetworkError(DownloadError):
    """An address could not be reached, broke off, stalled, or answered with an error."""


class IntegrityError(IsanetError):
    """The bytes are not the expected ones: wrong size, wrong hash, or not a checkpoint at all."""


class OfflineError(DownloadError):
    """A download is needed, but the environment says to stay offline."""


class MirrorsExhaustedError(DownloadError):
    """Every address was tried and failed; the message lists each cause."""


class CacheError(IsanetError):
    """The cache folder cannot be used: no space, no permission, locked, or damaged."""


class OutputError(IsanetError):
    """What the caller asked to be written cannot be: it exists already, or there is no space or permission."""


class CheckpointError(IsanetError):
    """A checkpoint cannot be used."""


class CheckpointFormatError(CheckpointError, ValueError):
    """The file is not a checkpoint; the message says what it looks like instead."""


class UnsafeCheckpointError(CheckpointError, ValueError):
    """The file asks for more than plain tensors and containers; nothing in it was run."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """The tensors do not fit the model: missing, extra, wrongly shaped, or not finite."""


class ImageError(IsanetError, ValueError):
    """An image cannot be read, or an array is not an RGB image."""


class DatasetError(IsanetError, ValueError):
    """A dataset's folder, image or mask is not what its layout promises."""


class ManifestError(IsanetError, ValueError):
    """weights.json is malformed; the message names the place."""
