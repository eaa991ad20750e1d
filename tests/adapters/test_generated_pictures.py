"""Pictures and clips as diffusers gives them are scored; the document's example keeps the best of n."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.video_processor import VideoProcessor
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from qalign_fast import Scorer
from support.documents import ROOT
from support.goldens import Golden

WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "c", "u", "p</w>", "of</w>", "coffee</w>"]
NAMED = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # in the document


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion's folder with random weights: latents of 8 x 8, pictures of 16 x 16."""
    folder = tmp_path_factory.mktemp("tiny-stable-diffusion")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    parts = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        **parts,
    )
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(latent_channels=4, **parts, **ends),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8),
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(goldens: dict[str, Golden]) -> Scorer:
    return Scorer.load(goldens["narrow-112"].artifact)


def generate(tiny: Path, count: int, output_type: str) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(tiny)
    numbers = torch.Generator().manual_seed(0)
    options = {"num_images_per_prompt": count, "num_inference_steps": 2, "output_type": output_type}
    return pipe("a cup of coffee", generator=numbers, **options).images


def example() -> str:
    [program] = re.findall(r"```\n(from diffusers.*?)```", (ROOT / "docs/with_generation.md").read_text(), re.DOTALL)
    return program


def test_the_example_keeps_the_best(
    tiny: Path, goldens: dict[str, Golden], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands in the document, in ten lines or fewer, with a small pipeline and a small model in place of both."""
    monkeypatch.chdir(tmp_path)
    Path("one-align-int8").symlink_to(goldens["narrow-112"].artifact)
    program = example()
    assert NAMED in program and len(program.strip().splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(program.replace(NAMED, str(tiny)), names)
    values = [names["scorer"].score(image, task="aesthetics").value for image in names["images"]]
    assert len(set(values)) == 4
    [saved] = tmp_path.glob("*.png")
    assert saved.name == f"coffee_{max(values):.2f}.png"
    assert np.array_equal(Image.open(saved), names["images"][int(np.argmax(values))])


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_arrays_and_tensors_score_as_the_pictures(tiny: Path, scorer: Scorer, output_type: str) -> None:
    """diffusers rounds to 8 bits as we do, so no score differs."""
    expected = scorer.score(generate(tiny, 3, "pil"))
    assert scorer.score(generate(tiny, 3, output_type)) == expected
    assert scorer.score(generate(tiny, 1, output_type)) == scorer.score(generate(tiny, 1, "pil")[0])


def test_a_clip_scores_alike_in_every_form(scorer: Scorer) -> None:
    """What a video pipeline gives: [batch][frame], made here by the part of diffusers that ends every one of them."""
    decoded = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1  # [B, C, F, H, W]
    forms = {kind: VideoProcessor().postprocess_video(decoded, kind)[0] for kind in ("pil", "np", "pt")}
    expected = scorer.score_video(forms["pil"])
    assert expected.frames == 4
    assert scorer.score_video(forms["np"]) == scorer.score_video(forms["pt"]) == expected
