"""Every error that isanet raises on purpose, all importable from `isanet`.

    IsanetError
        DownloadError                    a file cannot be fetched
            NetworkError                 an address cannot be reached, breaks off, stalls or refuses
            OfflineError                 the environment says to stay offline
            MirrorsExhaustedError        every address failed
        IntegrityError                   wrong bytes: size, hash, or not the file at all
        CacheError                       the cache folder cannot be used
        OutputError                      what the caller asked to be written cannot be
        CheckpointError                  a checkpoint cannot be used
            CheckpointFormatError  *     it is not a checkpoint
            UnsafeCheckpointError  *     it asks for more than tensors and containers
            CheckpointMismatchError  *   its tensors do not fit the model
        ImageError  *                    an image cannot be read, or an array is not an RGB image
        DatasetError  *                  a dataset is not what its layout promises
        ManifestError  *                 weights.json is malformed

    * also a ValueError, because the caller passed it

A message says what failed, what was expected and what was found, what was done about it, and what to do next.
"""


class IsanetError(Exception):
    """The root of all errors of this package."""


class DownloadError(IsanetError):
    """A file could not be fetched."""


class NetworkError(DownloadError):
    """An address could not be reached, broke off, stalled, or answered with an error."""


class OfflineError(DownloadError):
    """A download is needed, but the environment says to stay offline."""


class MirrorsExhaustedError(DownloadError):
    """Every address was tried and failed; the message lists each cause."""


class IntegrityError(IsanetError):
    """The bytes are not the expected ones: wrong size, wrong hash, or a web page instead of the file."""


class CacheError(IsanetError):
    """The cache folder cannot be used: no space, no permission, locked, damaged, or without the model asked for."""


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
