"""The server that people write: one FastAPI handler, a lock around the same scorer, run by uvicorn.

    python -m qalign_bench.peers.naive_server [--model MODEL] [--device DEVICE] --port PORT

POST /v1/score takes a picture's file as the body and answers {"score": ..}, so that the requests of our own server do
for it too, and it has no multipart body to take apart. It has no queue of its own and refuses nobody: requests wait in
the threads that FastAPI runs plain functions on, 40 by default, and for those.
"""

from __future__ import annotations

import argparse
from threading import Lock
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, HTTPException

from qalign_fast import ImageError, Scorer

Picture = Annotated[bytes, Body(media_type="application/octet-stream")]


def make_app(scorer: Scorer, task: str = "quality") -> FastAPI:
    """The whole server."""
    app, lock = FastAPI(), Lock()

    @app.post("/v1/score")
    def score(data: Picture) -> dict[str, float]:
        try:
            with lock:
                return {"score": scorer.score(data, task).value}
        except ImageError as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ready": True}

    return app


def main() -> None:
    """Loads the model, scores a picture, and serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--task", default="quality")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    app = make_app(Scorer.load(options.model, device=options.device, threads=options.threads).warm(), options.task)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
