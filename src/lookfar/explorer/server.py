"""The server of the page: this computer alone, one address that nobody can guess, nothing written to disk."""

import hmac
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lookfar.explorer.asking import Answers
from lookfar.explorer.pictures import BYTES, read_picture
from lookfar.explorer.subjects import Subject

HERE = Path(__file__).parent
SHARED = HERE.parent / "study"  # style and drawing of the report
FILES = {
    "": (HERE / "explore.html", "text/html; charset=utf-8"),
    "explore.js": (HERE / "explore.js", "text/javascript; charset=utf-8"),
    "explore.css": (HERE / "explore.css", "text/css; charset=utf-8"),
    "maps.js": (SHARED / "maps.js", "text/javascript; charset=utf-8"),
    "report.css": (SHARED / "report.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
JSON = "application/json"
SECONDS = 30  # after which a silent connection is given up


class Server(ThreadingHTTPServer):
    """Serves the page on 127.0.0.1.

    Args:
        subjects: The networks.
        port: 0 for a free one.

    Attributes:
        url: Where the page is; it holds a random token, without which nothing is answered.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, subjects: Sequence[Subject], port: int = 0) -> None:
        self.answers = Answers(subjects)
        self.token = secrets.token_urlsafe(18)
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent where the page was left or loaded again before its answer was there."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def hosts(self) -> set[str]:
        """Names that a browser on this computer calls it by; another name was resolved to here by somebody else."""
        return {f"{host}:{self.server_port}" for host in ("127.0.0.1", "localhost")}


class Refused(Exception):
    """An answer other than 200: status and one line."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """Files of the page, and two routes: ``image`` takes in an image, ``map`` says where blocks look from a point."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = SECONDS
    server_version, sys_version = "lookfar", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""

    def _answer(self, find: Callable[[str, dict[str, str]], tuple[bytes, str]]) -> None:
        kind, status = JSON, HTTPStatus.OK
        try:
            content, kind = find(*self._asked())
        except Refused as error:
            content, status = _json({"error": str(error)}), error.status
        except ValueError as error:
            content, status = _json({"error": str(error)}), HTTPStatus.BAD_REQUEST
        # of a network that cannot take this image; timm's assert their size
        except (AssertionError, RuntimeError, TypeError, MemoryError) as error:
            line = f"the network failed: {str(error).splitlines()[0] if str(error) else 'out of memory'}"
            content, status = _json({"error": line}), HTTPStatus.INTERNAL_SERVER_ERROR
        self.send_response(status)
        headers = {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _asked(self) -> tuple[str, dict[str, str]]:
        """Route and parameters of a request that comes from the page itself."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in self.server.hosts or origin not in (None, *(f"http://{h}" for h in self.server.hosts)):
            raise Refused(HTTPStatus.FORBIDDEN, "only the page itself is answered")
        parts = urlsplit(self.path)
        token, _, route = parts.path.lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "want the whole address, as the terminal shows it")
        return route, {name: values[-1] for name, values in parse_qs(parts.query).items()}

    def _get(self, route: str, given: dict[str, str]) -> tuple[bytes, str]:
        answers = self.server.answers
        if route in FILES:
            path, kind = FILES[route]
            return path.read_bytes(), kind
        if route == "start":
            return _json(answers.start()), JSON
        if route == "image":
            return _json(answers.show(answers.sample(int(_number(given, "sample"))))), JSON
        if route == "map":
            point = _number(given, "x"), _number(given, "y")
            return _json(answers.look(int(_number(given, "image")), *point, mean=given.get("mean") == "1")), JSON
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self, route: str, given: dict[str, str]) -> tuple[bytes, str]:
        if route != "image":
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # what is not read must not be taken for the next request
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the size of the file is not given")
        name = unquote(given.get("name", "image"))
        if int(length) > BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{name[:80]} has more than {BYTES >> 20} MB")
        return _json(self.server.answers.show(read_picture(name, self.rfile.read(int(length))))), JSON


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _number(given: dict[str, str], name: str) -> float:
    """A parameter as a finite number."""
    try:
        value = float(given[name])
    except (KeyError, ValueError):
        raise ValueError(f"want a number for {name}, got {given.get(name, '')[:20]!r}") from None
    if not abs(value) < 1e9:  # nan too
        raise ValueError(f"want a number for {name}, got {given[name][:20]!r}")
    return value
