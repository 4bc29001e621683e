"""The page of `isanet serve`: a Gradio app that segments a visitor's images, and the server that it runs in.

Nothing on the page comes from another host, which a Content-Security-Policy holds the browser to; uploads and results
are kept in a private temporary folder, for an hour at most, and removed with the server.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from isanet._progress import reported_bars
from isanet.datasets.toystreets import ToyStreets
from isanet.errors import IsanetError
from isanet.inference.runtimes.packages import check_installed, load
from isanet.inference.segmenter import Segmenter
from isanet.tools.demo import MODEL
from isanet.tools.page import OWN, Limits, choices, failed, message, segment_files
from isanet.weights.manifest import load_manifest

MAX_SEGMENTERS = 2
"""Models that are held in memory."""

KEEP_SECONDS = 3600
"""How long uploads and results are kept."""

MIN_FREE_BYTES = 1_000_000_000
"""Of the disk with the temporary folder, for uploads to be taken."""

EXAMPLES = (8, 20, 18)
"""Seeds of the drawn streets."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Gradio's page has scripts of its own in the HTML, and makes functions of text; other hosts are never asked."""

FONTS = ("system-ui", "sans-serif")

_temporary: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def page(model: str | None = None, *, limits: Limits | None = None, **options: Any) -> Any:
    """Build the page.

    >>> isanet.tools.serve.page().title
    'ISANet'

    Args:
        model: Chosen at first: what `isanet.Segmenter` takes; None: the packaged one.
        limits: Of a visitor's requests.
        **options: `device`, `precision` and `runtime` of `isanet.Segmenter`.

    Returns:
        A `gradio.Blocks`, to be launched by `serve`.

    Raises:
        ValueError: Gradio is not installed.
    """
    gradio = _gradio()
    limits = limits or Limits()
    own = None if model in (None, *load_manifest()) else model

    @lru_cache(maxsize=MAX_SEGMENTERS)
    def segmenter(name: str) -> Segmenter:
        return Segmenter(name, max_pixels=limits.pixels, **options)

    segmenter(own or MODEL)  # what would fail for every visitor fails now
    here, folder = Path(__file__).parent, Path(os.environ["GRADIO_TEMP_DIR"])
    with gradio.Blocks(
        title="ISANet", analytics_enabled=False, delete_cache=(max(KEEP_SECONDS // 6, 1), KEEP_SECONDS)
    ) as blocks:
        gradio.Markdown("# ISANet\nDrop or paste images or a video, choose a model, and see the class of every pixel.")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                uploads, camera, chosen, button = _inputs(gradio, own, model, limits, folder)
            with gradio.Column(scale=3, min_width=300):
                result = gradio.HTML(
                    html_template='<div class="isanet-result"></div>',
                    js_on_load=(here / "serve.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="result",
                )
                files = gradio.File(
                    label="Downloads", file_count="multiple", visible=False, interactive=False, elem_id="downloads"
                )
        button.click(
            _runner(blocks, segmenter, own, limits, folder),
            [chosen, uploads],
            [result, files],
            concurrency_limit=1,
            show_progress_on=result,
            api_visibility="private",
        )
        camera.input(
            lambda path, items: ([*(items or []), (path, None)] if path else items, None),
            [camera, uploads],
            [uploads, camera],
            api_visibility="private",
        )
        blocks.load(lambda: gradio.Dropdown(_labeled(own)), None, chosen, api_visibility="private")  # now cached ones
    return blocks.queue(max_size=limits.waiting)


def _inputs(gradio: Any, own: str | None, model: str | None, limits: Limits, folder: Path) -> tuple[Any, Any, Any, Any]:
    """The left column: files, camera, model and button."""
    uploads = gradio.Gallery(
        label=f"Images or videos, at most {limits.files}",
        type="filepath",
        file_types=["image", "video"],
        interactive=True,
        height=220,
        columns=3,
        fit_columns=False,
        object_fit="contain",
        buttons=[],
        elem_id="uploads",
    )
    with gradio.Accordion("Camera", open=False):
        camera = gradio.Image(sources=["webcam"], type="filepath", show_label=False, elem_id="camera")
    chosen = gradio.Dropdown(_labeled(own), value=OWN if own else model or MODEL, label="Model", elem_id="model")
    button = gradio.Button("Segment", variant="primary", elem_id="segment")
    gradio.Examples([[[path]] for path in _examples(folder)], [uploads], label="Drawn streets to try")
    return uploads, camera, chosen, button


def _runner(
    blocks: Any, segmenter: Callable[[str], Segmenter], own: str | None, limits: Limits, folder: Path
) -> Callable[..., Any]:
    """The function behind the button."""
    gradio = _gradio()

    def run(chosen: str, uploads: list[tuple[str, str | None]] | None, progress: Any) -> tuple[Any, ...]:
        work = Path(tempfile.mkdtemp(dir=folder))
        try:
            progress(0, desc="loading the model")
            with reported_bars(lambda what, done, total: progress((done, total), desc=what, unit="B")):
                network = segmenter(own if own and chosen == OWN else chosen)
            paths = [Path(path) for path, _ in uploads or []]
            shown = segment_files(
                network,
                paths,
                work,
                limits,
                lambda done, total, unit: progress((done, total), desc="segmenting", unit=unit),
            )
        except (IsanetError, ValueError, OSError, MemoryError, RuntimeError) as error:
            shutil.rmtree(work, ignore_errors=True)
            shown = failed(message(error))
        files = [str(file) for file in shown.files]
        blocks.upload_file_set.update(map(str, work.glob("*")))  # for Gradio to remove with its own, when they are old
        return shown.value, gradio.File(value=files or None, visible=bool(files), interactive=False)

    run.__defaults__ = (gradio.Progress(),)  # Gradio passes it to what has it as a default
    return run


def _labeled(own: str | None) -> list[tuple[str, str]]:
    return [(text, name) for name, text in choices(own).items()]


def serve(
    model: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    limits: Limits | None = None,
    ready: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve the page until Ctrl-C.

    >>> isanet.tools.serve.serve("isanet_r50_voc", port=8000)  # doctest: +SKIP

    Args:
        model: As for `page`.
        host: The address to listen on. The page has no login: others than 127.0.0.1 let everyone in who reaches it.
        port: None: the first that is free from 7860 on.
        share: Also open a tunnel through Gradio's servers, by which the whole internet reaches the page.
        browser: Open the page in the browser.
        limits: As for `page`.
        ready: Called with the page's address.
        **options: As for `page`.

    Raises:
        ValueError: Gradio is not installed.
        OSError: The address or the port cannot be used.
    """
    _check_address(host, port)
    blocks, gradio = page(model, limits=limits, **options), _gradio()
    middleware = load("starlette.middleware").Middleware(_Policy)
    _, address, public = blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=(limits or Limits()).file_bytes,
        theme=gradio.themes.Default(primary_hue="blue", font=FONTS, font_mono=("ui-monospace", "monospace")),
        css_paths=Path(__file__).parent / "serve.css",
        app_kwargs={"middleware": [middleware], "docs_url": None, "redoc_url": None},
    )
    try:
        ready(public or address)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def _check_address(host: str, port: int | None) -> None:
    try:
        if port is not None and not 0 < port < 1 << 16:
            raise OSError("there is no such port")
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise OSError(f"cannot listen on {where}: {error}; choose others with --host and --port") from error


class _Policy:
    """Adds the policy to every answer; refuses uploads when the disk is nearly full.

    And it refuses to fetch for a visitor what is elsewhere, as Gradio would.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], (b"content-security-policy", POLICY.encode())]
            await send(event)

        path, answer = scope.get("path", ""), self.app
        if re.search(r"/(file|proxy)=https?:", path):
            answer = load("starlette.responses").PlainTextResponse("only files of this page", 403)
        elif path.endswith("/upload") and shutil.disk_usage(os.environ["GRADIO_TEMP_DIR"]).free < MIN_FREE_BYTES:
            answer = load("starlette.responses").PlainTextResponse("the server has no room now; try again later", 507)
        await answer(scope, receive, send_with_policy)


def _examples(folder: Path) -> list[str]:
    """Drawn streets as files."""
    paths = []
    for number, seed in enumerate(EXAMPLES, 1):
        image, _ = ToyStreets(count=1, seed=seed, split="test").read(0)
        paths.append(str(folder / f"street_{number}.png"))
        Image.fromarray(image).save(paths[-1])
    return paths


def _gradio() -> Any:
    """Gradio, which is told to report nothing and to keep its files in a folder of its own."""
    if not _temporary:
        _temporary.append(tempfile.TemporaryDirectory(prefix="isanet-serve-", ignore_cleanup_errors=True))
    os.environ["GRADIO_TEMP_DIR"] = _temporary[0].name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks itself whether it is there
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))
    check_installed("gradio", "serve")
    return load("gradio")
