"""A mirror on loopback with a stand-in for one released file, made at the first request.

    python .ci/mirror.py FOLDER

Writes its address to FOLDER/address. Standard library only: it starts before anything is installed, and makes the
file in a process with what is installed by then. The first of the two published names gets 404, as it may on the real
host.
"""

import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])
NAME = "isanet_resnet50os8_voc.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != f"/{NAME}":
            self.send_error(404)
            return
        path = FOLDER / NAME
        if not path.exists():
            command = ["python", "tests/helpers/stand_in.py", "sssegmentation_r50_voc", str(path)]
            subprocess.run(command, check=True)
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        with path.open("rb") as file:
            shutil.copyfileobj(file, self.wfile)


with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    temporary = FOLDER / "address.part"
    temporary.write_text(f"http://127.0.0.1:{server.server_port}")
    temporary.rename(FOLDER / "address")
    server.serve_forever()
