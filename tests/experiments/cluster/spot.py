"""The metadata server of a spot machine of EC2, as documented; notice is given once a file is there."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Metadata(BaseHTTPRequestHandler):
    """Answers as IMDSv2 does; made by ``serve``.

    Attributes:
        notice: the file; it holds the Unix time at which the machine ends.
    """

    notice: Path

    def do_PUT(self):
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer("token-of-imds" if self.path == "/latest/api/token" else None)

    def do_GET(self):
        assert self.headers["X-aws-ec2-metadata-token"] == "token-of-imds"
        said = {"/latest/meta-data/instance-life-cycle": "spot"}
        if self.notice.exists():
            end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(self.notice.read_text())))
            said["/latest/meta-data/spot/instance-action"] = json.dumps({"action": "terminate", "time": end})
        self.answer(said.get(self.path))

    def answer(self, text):
        self.send_response(200 if text else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *words):
        pass


def server(address: str, port: int, notice: Path) -> HTTPServer:
    """Make a server; ``notice`` as in ``Metadata``."""
    return HTTPServer((address, port), type("Given", (Metadata,), {"notice": notice}))


if __name__ == "__main__":
    server(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])).serve_forever()
