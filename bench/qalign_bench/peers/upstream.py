"""The peer upstream: a checkout of Q-Align, its own model and its own path from files to pixels.

    PYTHON upstream.py '{"checkout": "path/to/Q-Align", "model": "path/to/checkpoint"}'
    PYTHON upstream.py '{"checkout": ..., "model": "random:one-align", "random_numbers": "path/to/random_numbers.py"}'

PYTHON needs what upstream's inference needs (`_INSTALL`) and none of this project's packages. This file imports only
siblings and runs `qalign_export/random_numbers.py`. Upstream's code is not changed, but for the tokenizer and the
preprocessor, which it would fetch from the Hub.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from qalign_bench.peers.loop import Peer, PeerError, Pictures, Spec, serve
    from qalign_bench.peers.upstream_model import Tokenizer, load_checkpoint, random_model
else:  # a script's own folder is on its path
    from loop import Peer, PeerError, serve
    from upstream_model import Tokenizer, load_checkpoint, random_model

_TRANSFORMERS = "4.36.1"
_INSTALL = (
    f"pip install torch transformers=={_TRANSFORMERS} 'tokenizers<0.16' 'huggingface_hub<1' 'numpy<2' Pillow icecream"
    " colorama asttokens executing pygments"
)
# CLIP's numbers, which upstream's preprocessor_config.json has
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_WEIGHTS = (5.0, 4.0, 3.0, 2.0, 1.0)
_PROMPT = "USER: How would you rate the {0} of this image?\n<|image|>\nASSISTANT: The {0} of the image is"
_TASKS = ("quality", "aesthetics")


def load(spec: Spec) -> Upstream:
    """Raises PeerError for a checkout, an interpreter or a model that this peer cannot use."""
    code = import_upstream(Path(spec.own.get("checkout") or ""))
    reference = "random:one-align" if spec.model is None else spec.model
    config = read_config(code, reference)
    processor, tokenizer = make_processor(code, config, Path(reference)), Tokenizer(code.transformers.BatchEncoding)
    # the model's own __init__ asks the Hub for these two
    code.transformers.CLIPImageProcessor.from_pretrained = lambda *_, **__: processor
    code.transformers.AutoTokenizer.from_pretrained = lambda *_, **__: tokenizer
    if spec.model is None:
        model = None
    elif reference.startswith("random:"):
        model = random_model(code.modeling.MPLUGOwl2LlamaForCausalLM, config, spec)
    else:
        model = load_checkpoint(code.modeling.MPLUGOwl2LlamaForCausalLM, config, reference, spec)
    return Upstream(code, processor, model, spec)


def import_upstream(checkout: Path) -> SimpleNamespace:
    """Imports upstream's code. From here on transformers' LLaMA is upstream's in the whole process."""
    if not (checkout / "q_align" / "__init__.py").is_file():
        raise PeerError(
            f"{checkout}: no checkout of Q-Align (no q_align/__init__.py);"
            " git clone https://github.com/Q-Future/Q-Align makes one"
        )
    sys.path.insert(0, str(checkout))
    try:
        transformers = importlib.import_module("transformers")
        if transformers.__version__ != _TRANSFORMERS:
            raise PeerError(f"{sys.executable} has transformers {transformers.__version__}; upstream needs: {_INSTALL}")
        modeling = importlib.import_module("q_align.model.modeling_mplug_owl2")
    except ImportError as error:
        raise PeerError(f"{sys.executable} lacks what upstream needs ({error}): {_INSTALL}") from error
    project = tomllib.loads((checkout / "pyproject.toml").read_text("utf-8"))["project"]
    return SimpleNamespace(transformers=transformers, modeling=modeling, version=project["version"])


def read_config(code: SimpleNamespace, reference: str) -> Any:
    """The config of a checkpoint's directory, of `random:` and a directory with a config.json, or of
    `random:one-align`. Raises PeerError for anything else.
    """
    config_class, geometry = code.modeling.MPLUGOwl2Config, reference.removeprefix("random:")
    if (Path(geometry) / "config.json").is_file():
        config = config_class.from_pretrained(geometry)
    elif reference == "random:one-align":
        config = config_class()
    else:
        raise PeerError(f"{reference}: not random:one-align, and no directory with a config.json")
    # Upstream pins torch 2.0.1, with which transformers takes the decoder's eager attention. From 2.1.1 on it would
    # take the scaled_dot_product_attention form, in which upstream's code calls a function that it does not import.
    config._attn_implementation = "eager"
    return config


def make_processor(code: SimpleNamespace, config: Any, directory: Path) -> Any:
    """transformers' own CLIPImageProcessor, set as the checkpoint's file says, or with CLIP's numbers without one."""
    processor_class = code.transformers.CLIPImageProcessor
    if (directory / "preprocessor_config.json").is_file():
        return processor_class.from_pretrained(directory)
    side = config.visual_config["visual_model"]["image_size"]
    return processor_class(
        size={"shortest_edge": side},
        crop_size=side,
        resample=Image.Resampling.BICUBIC,
        image_mean=_MEAN,
        image_std=_STD,
    )


class Upstream(Peer):
    """Upstream's model, called as upstream's scorer calls it. `model` is None where pixels alone are asked for."""

    packages = ("transformers", "tokenizers", "Pillow")

    def __init__(self, code: SimpleNamespace, processor: Any, model: Any, spec: Spec) -> None:
        self.name = f"Q-Align {code.version}, upstream's own code"
        self.precision, self.device, self._dtype = spec.precision, spec.device, spec.dtype()
        self.side: int = processor.crop_size["height"]
        self.pixel_path = UpstreamPixels(processor, code.modeling.expand2square)
        self._processor, self._model = processor, model
        self.stations: dict[str, nn.Module] = {}
        self.weights_bytes = None
        if model is not None:
            self._set_up(code, model)

    def _set_up(self, code: SimpleNamespace, model: Any) -> None:
        self.weights_bytes = sum(p.nbytes for p in model.parameters())
        body = model.get_model()  # it is called with embeddings: it runs the layers and the last norm
        self.stations = {"vision": body.vision_model, "abstractor": body.visual_abstractor, "decoder": body}
        self.stations["head"] = model.lm_head
        self._weights = torch.tensor(_WEIGHTS, dtype=self._dtype, device=self.device)
        self._ids = {}
        for task in _TASKS:
            ids = code.modeling.tokenizer_image_token(_PROMPT.format(task), model.tokenizer, return_tensors="pt")
            self._ids[task] = ids.to(self.device)  # [T], one of them the picture's place

    def prepare(self, pictures: Pictures) -> Tensor:
        settings = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        values: Tensor = self._processor.preprocess(list(pictures), **settings)["pixel_values"]
        return values.to(self.device, self._dtype)  # [B, 3, S, S]

    @torch.inference_mode()
    def score(self, prepared: Tensor, task: str) -> list[float]:
        if self._model is None:
            raise PeerError("the spec has no model; without one this peer answers `pixels` only")
        if task not in self._ids:
            raise PeerError(f"task {task!r} is not one this peer has: {', '.join(self._ids)}")
        ids = self._ids[task].repeat(len(prepared), 1)  # [B, T]
        logits = self._model(ids, images=prepared)["logits"][:, -1, self._model.preferential_ids_]  # [B, 5]
        scores: list[float] = (torch.softmax(logits, -1) @ self._weights).tolist()
        return scores


class UpstreamPixels:
    """Upstream's path from a file to what the model takes: upstream's function pads, transformers does the rest."""

    def __init__(self, processor: Any, expand2square: Any) -> None:
        self._processor, self._expand2square = processor, expand2square
        self._background = tuple(int(255 * mean) for mean in processor.image_mean)

    def values(self, file: str) -> Tensor:
        values: Tensor = self._preprocess(file, return_tensors="pt")
        return values

    def resized(self, file: str) -> Pictures:
        values: Pictures = self._preprocess(file, do_rescale=False, do_normalize=False, return_tensors="np")[0]
        return np.ascontiguousarray(values.transpose(1, 2, 0))

    def _preprocess(self, file: str, **settings: Any) -> Any:
        try:
            picture = self._expand2square(Image.open(file), self._background)
            return self._processor.preprocess([picture], **settings)["pixel_values"]
        except (ValueError, TypeError) as error:  # what it raises for modes of pictures that it does not know
            raise PeerError(f"{file}: upstream fails on this picture ({error})") from error


if __name__ == "__main__":
    serve(load)
