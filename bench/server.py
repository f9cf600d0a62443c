"""A server for the load client: a bare Flask hello or the application, on the same waitress class.

Run as ``python -m bench.server '{"app": "hello"}'`` or ``'{"app": "runspan", "data": DIR, "keyed": true}'``; it ends
with its standard input.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from flask import Flask

from bench.machine import pin
from runspan.backends.sqlite import SqliteStore
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from runspan.web.server import WebServer


def hello() -> Flask:
    """The minimal cost of a Flask application."""
    app = Flask("hello")

    @app.get("/")
    def greet() -> str:
        return "Hello, World!"

    return app


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    pin(options.get("cpu"))
    ready: dict[str, Any] = {}
    if options["app"] == "hello":
        app: Flask = hello()
    else:
        data = Path(options["data"])
        keys = None
        if options.get("keyed"):
            keys = ApiKeyStore(data / "keys.sqlite3")
            ready["key"] = keys.create("bench")[0]
        # A limit that is counted but never reached.
        config = WebConfig(reads_per_minute=100_000_000)
        store = SqliteStore(data)
        app = create_app(store, store, config=config, keys=keys)
    server = WebServer(app)

    def stop_with_input() -> None:
        sys.stdin.read()
        server.stop()

    threading.Thread(target=stop_with_input, daemon=True).start()
    print(json.dumps({**ready, "port": server.port}), flush=True)
    server.run(grace=1)


if __name__ == "__main__":
    main()
