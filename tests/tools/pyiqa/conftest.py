"""pyiqa itself, with a small model where it asks the Hub for OneAlign's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from support.documents import ROOT

os.environ["TQDM_DISABLE"] = "1"  # transformers shows each tensor that it reads

ONE_ALIGN = "q-future/one-align"

# PyPI's torchvision does not find its operators beside the CPU torch, and stops at its import. Of these two it only
# asks whether they exist.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint narrow-112 and its tokenizer, in one folder."""
    folder = tmp_path_factory.mktemp("model") / "narrow-112"
    shutil.copytree(ROOT / "tests/golden/narrow-112", folder)
    shutil.copy(ROOT / "tests/golden/tokenizer.model", folder)
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}  # as LLaMA-2's has it
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def theirs(checkpoint: Path) -> ModuleType:
    """pyiqa, which takes the small checkpoint for OneAlign's."""
    import pyiqa
    from pyiqa.archs.q_align.modeling_mplug_owl2 import MPLUGOwl2LlamaForCausalLM
    from transformers import CLIPImageProcessor, LlamaTokenizer

    for kind in (MPLUGOwl2LlamaForCausalLM, CLIPImageProcessor, LlamaTokenizer):
        kind.from_pretrained = classmethod(_instead(kind.from_pretrained.__func__, checkpoint))
    return pyiqa


def _instead(load: Any, checkpoint: Path) -> Any:
    def from_pretrained(cls: type, name: str, *args: Any, **options: Any) -> Any:
        return load(cls, str(checkpoint) if name == ONE_ALIGN else name, *args, **options)

    return from_pretrained
