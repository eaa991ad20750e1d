"""Q-Align's nodes for ComfyUI: by its V3 interface where there is one, by NODE_CLASS_MAPPINGS in older installs.

ComfyUI does not ask for V3's entry point where it finds NODE_CLASS_MAPPINGS, so only one of them is defined.
"""

try:
    from qalign_fast.adapters import comfyui as _comfyui  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"Q-Align's nodes need qalign-fast: pip install 'qalign-fast[video]' with ComfyUI's Python ({missing})"
    ) from missing

try:
    from comfy_api.latest import ComfyExtension as _ComfyExtension  # noqa: F401
except ImportError:
    from .nodes_v1 import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
else:
    from .nodes_v3 import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
