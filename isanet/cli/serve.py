"""The page in the browser: serve."""

from __future__ import annotations

import argparse

from isanet.cli.options import RUNNABLE, AddCommand, add_device_options, positive_int


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    serve = add_command("serve", _serve, "segment images in the browser: serve a page, on this machine alone")
    serve.add_argument("--model", help=f"chosen at first: {RUNNABLE}; default: the packaged model")
    text = "address to listen on; there is no login, so others than 127.0.0.1 (default) let everyone in"
    serve.add_argument("--host", default="127.0.0.1", help=text)
    serve.add_argument("--port", type=positive_int, help="default: the first that is free from 7860 on")
    text = "also open a tunnel through Gradio's servers: the whole internet reaches the page"
    serve.add_argument("--share", action="store_true", help=text)
    serve.add_argument("--open", action="store_true", help="open the page in the browser")
    limits = serve.add_argument_group("limits of a visitor's request")
    for name, default, text in (
        ("files", 20, "images and videos at once"),
        ("megabytes", 100, "size of a file"),
        ("megapixels", 50, "size of an image"),
        ("video-seconds", 60, "length of a video; the rest of it is left out"),
        ("seconds", 120, "time for it all; what is done by then is shown"),
    ):
        text = f"{text}; default: {default}"
        limits.add_argument(f"--max-{name}", type=positive_int, default=default, metavar="N", help=text)
    add_device_options(serve, precision="auto", runtime="auto")


def _serve(options: argparse.Namespace) -> int:
    from isanet.tools.page import Limits
    from isanet.tools.serve import serve

    serve(
        options.model,
        host=options.host,
        port=options.port,
        share=options.share,
        browser=options.open,
        limits=Limits(
            files=options.max_files,
            file_bytes=options.max_megabytes * 1_000_000,
            pixels=options.max_megapixels * 1_000_000,
            seconds=options.max_seconds,
            video_seconds=options.max_video_seconds,
        ),
        ready=lambda address: print(f"{address} is ready; Ctrl-C ends it", flush=True),
        device=options.device,
        precision=options.precision,
        runtime=options.runtime,
    )
    return 0
