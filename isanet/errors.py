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
    """The root of all errors of this package.

    >>> try:
    ...     segmenter("missing.jpg")
    ... except isanet.IsanetError as error:
    ...     print(error)
    missing.jpg does not exist; check the path (working folder: ...)
    """


class DownloadError(IsanetError):
    """A file could not be fetched.

    >>> try:
    ...     segmenter("http://127.0.0.1:1/street.jpg")
    ... except isanet.DownloadError as error:
    ...     print(type(error).__name__)
    NetworkError
    """


class NetworkError(DownloadError):
    """An address could not be reached, broke off, stalled, or answered with an error.

    >>> segmenter("http://127.0.0.1:1/street.jpg")
    Traceback (most recent call last):
    isanet.errors.NetworkError: http://127.0.0.1:1/street.jpg: cannot be reached: ...
    """


class OfflineError(DownloadError):
    """A download is needed, but the environment says to stay offline.

    >>> os.environ["ISANET_OFFLINE"] = "1"
    >>> isanet.from_pretrained("isanet_r50_voc")
    Traceback (most recent call last):
    isanet.errors.OfflineError: isanet_r50_voc is not cached, and ISANET_OFFLINE is set; ...
    """


class MirrorsExhaustedError(DownloadError):
    """Every address was tried and failed; the message lists each cause.

    >>> issubclass(isanet.MirrorsExhaustedError, isanet.DownloadError)
    True
    """


class IntegrityError(IsanetError):
    """The bytes are not the expected ones: wrong size, wrong hash, or a web page instead of the file.

    >>> issubclass(isanet.IntegrityError, isanet.DownloadError)  # it was fetched, or was there already
    False
    """


class CacheError(IsanetError):
    """The cache folder cannot be used: no space, no permission, locked, damaged, or without the model asked for.

    >>> os.environ["ISANET_HOME"] = "street.jpg"
    >>> isanet.from_pretrained("isanet_r50_voc")
    Traceback (most recent call last):
    isanet.errors.CacheError: cannot write to the cache folder street.jpg: ...
    """


class OutputError(IsanetError):
    """What the caller asked to be written cannot be: it exists already, or there is no space or permission.

    >>> result.save("missing/street.png")
    Traceback (most recent call last):
    isanet.errors.OutputError: cannot write street.png: the folder missing does not exist; create it first
    """


class CheckpointError(IsanetError):
    """A checkpoint cannot be used.

    >>> try:
    ...     isanet.from_pretrained("street.jpg")
    ... except isanet.CheckpointError as error:
    ...     print(type(error).__name__)
    CheckpointFormatError
    """


class CheckpointFormatError(CheckpointError, ValueError):
    """The file is not a checkpoint; the message says what it looks like instead.

    >>> isanet.from_pretrained("street.jpg")
    Traceback (most recent call last):
    isanet.errors.CheckpointFormatError: street.jpg (... bytes) is not a checkpoint: it looks like ...
    """


class UnsafeCheckpointError(CheckpointError, ValueError):
    """The file asks for more than plain tensors and containers; nothing in it was run.

    >>> torch.save({"model": print}, "unsafe.pth")
    >>> isanet.from_pretrained("unsafe.pth")
    Traceback (most recent call last):
    isanet.errors.UnsafeCheckpointError: unsafe.pth: it names '__builtin__.print' ...
    """


class CheckpointMismatchError(CheckpointError, ValueError):
    """The tensors do not fit the model: missing, extra, wrongly shaped, or not finite.

    >>> del (weights := model.state_dict())["classifier.bias"]
    >>> torch.save(weights, "part.pth")
    >>> isanet.from_pretrained("part.pth")
    Traceback (most recent call last):
    isanet.errors.CheckpointMismatchError: ... classifier.bias is missing
    """


class ImageError(IsanetError, ValueError):
    """An image cannot be read, or an array is not an RGB image.

    >>> segmenter(np.zeros((480, 640), np.float32))
    Traceback (most recent call last):
    isanet.errors.ImageError: ...
    """


class DatasetError(IsanetError, ValueError):
    """A dataset's folder, image or mask is not what its layout promises.

    >>> isanet.datasets.Folder("missing")
    Traceback (most recent call last):
    isanet.errors.DatasetError: missing does not exist (working folder: ...)
    """


class ManifestError(IsanetError, ValueError):
    """weights.json is malformed; the message names the place.

    >>> from isanet.weights.manifest import parse_manifest
    >>> parse_manifest(b"{}", "mine.json")
    Traceback (most recent call last):
    isanet.errors.ManifestError: ...
    """
