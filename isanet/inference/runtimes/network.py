"""A network that another runtime runs."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet._text import clean, shortened
from isanet.errors import CheckpointMismatchError, IsanetError
from isanet.inference.fast.network import FastISANet
from isanet.inference.runtimes.exported import ExportedModel
from isanet.model import ISANet, check_images

T = TypeVar("T")
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(N, 3, H, W) normalized images -> (N, K, h, w) coarse logits, in memory of their own; may be called by any thread."""

log = logging.getLogger("isanet")


class RuntimeNetwork:
    """A network that another runtime runs, an image at once; a `isanet.inference.network.Network`.

    Args:
        runtime: Its name.
        make: Makes the session, and gives what it runs by and what that says of itself.
        model: What the classes are of.
        sizes: The same network for torch, of which sizes of maps are asked; it is not kept.
        in_bands: Makes a copy of the network that goes through an image in bands of rows, with torch, for what does
            not fit at once; None: there is no such copy.

    Attributes:
        max_memory: Bytes for maps; may be set at any time.
        providers: What the session says that it runs on.

    Raises:
        IsanetError: The runtime does not take the network.
        MemoryError: There is not enough memory for it.
    """

    device = torch.device("cpu")  # where images lie; what else the runtime uses is its own matter

    def __init__(
        self,
        runtime: str,
        make: Callable[[], tuple[Run, str]],
        model: ISANet | ExportedModel,
        sizes: FastISANet,
        in_bands: Callable[[], FastISANet] | None,
        max_memory: int,
    ) -> None:
        self.runtime, self.max_memory = runtime, max_memory
        self.classes, self.logits_resize = model.classes, model.logits_resize
        self._in_bands, self._lock = in_bands, Lock()
        self._torch: FastISANet | None = None
        self._process, self._failed = os.getpid(), False
        self._run, self.providers = self._ours(make)
        if self.providers:
            log.info("%s runs on %s", runtime, self.providers)
        self._sizes = sizes.to("meta")  # whose weights are not needed any more

    def coarse_logits(self, images: Tensor) -> Tensor:
        """As `isanet.inference.network.Network.coarse_logits`, float32."""
        check_images(images)
        N, _, H, W = images.shape
        shape = N, len(self.classes), self._sizes.map_size(H), self._sizes.map_size(W)
        if self._in_bands is not None and self._bytes_at_once(N, *shape[2:]) > self.max_memory:
            return self._banded(images)
        array = images.detach().float().contiguous().numpy()
        if self._failed:
            raise MemoryError(f"{self.runtime}: not enough memory")  # another thread's failure
        try:
            logits = self._ours(lambda: self._run(array))
        except BaseException:
            self._failed = True
            raise
        if logits.shape != shape:
            raise CheckpointMismatchError(
                f"the network gave logits of shape {logits.shape}, not {shape}: the file is damaged, or its metadata "
                "belong to another; export the model again"
            )
        return torch.from_numpy(logits)

    def is_usable(self) -> bool:
        """Whether it may run: not after an error, and not in another process than its own.

        OpenVINO, out of memory once, gives the logits of another image afterwards, or none.
        """
        if self._process != os.getpid():  # never freed: that would wait for its threads, which did not come along
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        return self._process == os.getpid() and not self._failed

    def fits(self, shape: Sequence[int]) -> bool:
        """As `isanet.inference.network.Network.fits`."""
        N, _, H, W = shape
        sizes, sizes.max_memory = self._sizes, self.max_memory
        at_once = self._bytes_at_once(N, sizes.map_size(H), sizes.map_size(W)) <= self.max_memory
        return at_once or (self._in_bands is not None and sizes.fits(shape))

    def _bytes_at_once(self, N: int, h: int, w: int) -> int:
        """As of `FastISANet`, and attention's weights, which that one never has whole, up to 2.25 times."""
        positions = self._sizes.block_size**2
        blocks = -(-h * w // positions)
        return self._sizes._bytes_at_once(N, h, w) + 9 * N * positions * blocks * max(positions, blocks)

    def _banded(self, images: Tensor) -> Tensor:
        assert self._in_bands is not None
        with self._lock:
            if self._torch is None:
                log.info("an image takes more than max_memory at once: torch computes it in bands of rows")
                self._torch = self._in_bands()
        self._torch.max_memory = self.max_memory
        return self._torch.coarse_logits(images)

    def _ours(self, call: Callable[[], T]) -> T:
        """The result of a call; what the runtime raises becomes an error of ours."""
        try:
            return call()
        except (IsanetError, ValueError):
            raise
        except Exception as error:  # of its own classes, or a RuntimeError
            text = clean(str(error))
            if isinstance(error, MemoryError) or any(
                word in text.lower()
                for word in ("bad_alloc", "failed to allocate", "out of memory", "not enough memory")
            ):
                raise MemoryError(f"{self.runtime}: not enough memory") from error
            raise IsanetError(
                f"{self.runtime} cannot run this network ({shortened(text, 300)}); use runtime='torch'"
            ) from error
