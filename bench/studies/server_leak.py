"""The control of the soak: our server, and around it a wrapper that never forgets a part of what it received.

python bench/studies/server_leak.py --port PORT [--model MODEL] [--bytes 32768]
"""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn

from qalign_fast.serve.app import make_app
from qalign_fast.serve.settings import Settings


class Leaking:
    """An application that keeps the first bytes of every body for ever."""

    def __init__(self, app: Any, count: int) -> None:
        self._app, self._count = app, count
        self._kept: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kept = 0

        async def hear() -> Any:
            nonlocal kept
            message = await receive()
            if body := message.get("body", b"")[: self._count - kept]:
                self._kept.append(bytes(body))
                kept += len(body)
            return message

        await self._app(scope, hear, send)


def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model")
    parser.add_argument("--bytes", type=int, default=1 << 15)
    options = parser.parse_args()
    app = make_app(Settings(models=(("control", options.model),), port=options.port))
    uvicorn.run(Leaking(app, options.bytes), host="127.0.0.1", port=options.port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()
