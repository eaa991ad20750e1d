"""Runs ComfyUI's main.py, a copy of it beside nothing else: `python start_comfyui.py MAIN ROOT [ARGUMENTS]`.

ROOT is where ComfyUI's modules are. Its own folder names a further folder of nodes there that is not installed.
"""

import runpy
import sys

import torch

# PyPI's torchvision has operators for CUDA alone; beside the CPU's torch its import asks for their signatures
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    _library.define(name + _SIGNATURE)

main, root, *arguments = sys.argv[1:]
sys.argv = [main, *arguments]
sys.path.insert(0, root)
runpy.run_path(main, run_name="__main__")
