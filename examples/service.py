"""A segmentation service over HTTP.

pip install isanet 'fastapi>=0.164' uvicorn python-multipart
ISANET_MODEL=isanet_r50_voc uvicorn --app-dir examples service:app

curl -F image=@examples/chelsea.jpg 'localhost:8000/segment'                            # {"width": ..., "areas": ...}
curl -F image=@examples/chelsea.jpg 'localhost:8000/segment?output=labels' -o labels.png    # class indices
curl -F image=@examples/chelsea.jpg 'localhost:8000/segment?output=overlay' -o overlay.png

Threads share one Segmenter, and every request gets exactly the labels that it would get alone. An error is {"detail":
"..."}: 413 for an upload that is too large, 422 for one that is no image, 503 with Retry-After when too many wait.
localhost:8000/docs describes the interface; localhost:8000/healthz answers once the model is loaded, also under load.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import BinaryIO, Literal

from fastapi import FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from isanet import ImageError, IsanetError, Segmenter

MAX_BYTES = 20 << 20  # of a request
MAX_PIXELS = 40_000_000  # a larger image is refused before it is decoded
THREADS = 2  # images at once; each takes up to Segmenter's max_memory, and its own size several times
MAX_REQUESTS = 16  # being segmented or waiting

Output = Literal["areas", "labels", "overlay"]
slots = asyncio.Semaphore(MAX_REQUESTS)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the first request."""
    app.state.segmenter = Segmenter(os.environ.get("ISANET_MODEL", "isanet_nano_toystreets"), max_pixels=MAX_PIXELS)
    app.state.segmenter.network()  # it would be made at the first image
    with ThreadPoolExecutor(THREADS) as app.state.threads:
        yield


app = FastAPI(title="Segmentation", lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether requests are taken."""
    return {"status": "ok"}


@app.post("/segment", max_body_size=MAX_BYTES)
async def segment(request: Request, image: UploadFile, output: Output = "areas") -> Response:
    """Segments an image: shares of the classes as JSON, or labels or an overlay as PNG."""
    if slots.locked():
        raise HTTPException(503, "too many images are waiting; try again", headers={"Retry-After": "1"})
    async with slots:
        state, loop = request.app.state, asyncio.get_running_loop()
        return await loop.run_in_executor(state.threads, respond, state.segmenter, image.file, output)


def respond(segmenter: Segmenter, file: BinaryIO, output: Output) -> Response:
    """Runs in a thread: reads, segments, encodes."""
    result = segmenter(file)
    if output == "areas":
        height, width = result.labels.shape
        return JSONResponse({"width": width, "height": height, "areas": result.areas()})
    png = io.BytesIO()
    (result.colored() if output == "labels" else result.overlay()).save(png, "PNG")
    return Response(png.getvalue(), media_type="image/png")


@app.exception_handler(IsanetError)
async def failed(request: Request, error: IsanetError) -> JSONResponse:
    """What isanet says, with a status code."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ImageError) else 500)
