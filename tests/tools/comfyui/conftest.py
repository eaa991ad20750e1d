"""A ComfyUI server with the folder integrations/comfyui among its nodes, one for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from comfyui_server import ComfyUI, running

from support.documents import ROOT

NODES = ROOT / "integrations/comfyui"
OLD = """
from .nodes import nodes_v1
NODE_CLASS_MAPPINGS = {f"Old{name}": node for name, node in nodes_v1.NODE_CLASS_MAPPINGS.items()}
NODE_DISPLAY_NAME_MAPPINGS = {f"Old{name}": said for name, said in nodes_v1.NODE_DISPLAY_NAME_MAPPINGS.items()}
"""


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("custom_nodes/old", "input", "page"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes/qalign-fast").symlink_to(NODES)
    # the V1 classes too, by names of their own, because a node has one class
    (base / "custom_nodes/old/nodes").symlink_to(NODES)
    (base / "custom_nodes/old/__init__.py").write_text(OLD)
    (base / "page/index.html").write_text("<html></html>")  # in place of the page's package
    shutil.copy(ROOT / "samples/coffee.jpg", base / "input/example.png")
    with running(base) as url:
        yield ComfyUI(url, base)
