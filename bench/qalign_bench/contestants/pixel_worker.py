"""One of our pixel paths as a contestant.

    python -m qalign_bench.contestants.pixel_worker '<json>'        wire.py describes the messages

Spec: {"form": a name of `forms`}. The command `pixels` takes {"files", "repeat"} and gives, by file, {"ms": times,
"decode_ms": the part of each until all is RGB, "sha256": of the uint8 [S, S, 3]}. One thread.
"""

from __future__ import annotations

from importlib.metadata import version

from qalign_bench.contestants.pixel_times import forms, measure_pixels
from qalign_bench.contestants.wire import Handler, Message, serve


def load(spec: Message) -> tuple[Message, dict[str, Handler]]:
    """The first answer and the command `pixels`."""
    [form] = [form for form in forms() if form.name == spec["form"]]

    def pixels(command: Message) -> Message:
        found = measure_pixels(command["files"], command["repeat"], chosen=[form])
        return {
            "ms": [times.whole_ms for times in found],
            "decode_ms": [times.decode_ms for times in found],
            "sha256": [times.sha256 for times in found],
        }

    ready = {
        "name": f"qalign-fast, {form.name}",
        "load_s": 0.0,
        "versions": {"Pillow": version("Pillow")},
        "device": "cpu",
        "engine": None,
        "precision": None,
        "kernels": form.name,
        "weights_bytes": None,
    }
    return ready, {"pixels": pixels}


if __name__ == "__main__":
    serve(load)
