"""A Q-Scorer checkpoint's config.json, or a manifest, in; its sizes out: mPLUG-Owl2's and the MLP's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qalign_fast.errors import CheckpointError
from qalign_fast.families.mplug_owl2 import sizes
from qalign_fast.families.mplug_owl2.config_json import check_same, parse_config, read_files
from qalign_fast.families.mplug_owl2.config_json import read_config as mplug_owl2_config
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.q_scorer.prompts import SCORE_IDS
from qalign_fast.json_values import counts

_USUAL = [2048, 1024]  # what the authors' code takes where the config does not say
_MOST = 1 << 16  # of an MLP's width


def read_config(directory: Path, base: Path | None = None) -> ModelConfig:
    """The sizes of the checkpoint in a directory, or of an adapter with its base.

    An adapter's files do not say its score tokens, as the authors' training writes them: it has the usual ones.
    Raises CheckpointError as mPLUG-Owl2's, and for other score tokens or an MLP that is not implemented.
    """
    raw, preprocessor = read_files(directory, base)
    config = parse_config({key: raw[key] for key in raw if key != "deepmlp_hidden_dims"}, preprocessor)
    if base is not None:
        check_same(directory, config, base, mplug_owl2_config(base))
        config = replace(config, decoder=replace(config.decoder, vocab=max(SCORE_IDS) + 1))
        raw = {"score_token_id": list(SCORE_IDS), **raw}
    if (found := raw.get("score_token_id")) != list(SCORE_IDS):
        raise CheckpointError(
            f"config.json: 'score_token_id' is {found!r}; expected {list(SCORE_IDS)}, as a merged checkpoint has"
        )
    if config.decoder.vocab <= max(SCORE_IDS):
        raise CheckpointError(
            f"config.json: 'vocab_size' is {config.decoder.vocab}; the score tokens need {max(SCORE_IDS) + 1}"
        )
    try:
        return replace(config, mlp=_widths(raw.get("deepmlp_hidden_dims") or _USUAL, config.decoder.width))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: 'deepmlp_hidden_dims': {error}") from error


def sizes_to_json(config: ModelConfig) -> dict[str, Any]:
    """The manifest's "sizes" and "pixels"; the sizes have the MLP's hidden widths as "mlp"."""
    content = sizes.sizes_to_json(config)
    return content | {"sizes": content["sizes"] | {"mlp": list(config.mlp)}}


def sizes_from_json(manifest: Mapping[str, Any]) -> ModelConfig:
    """The inverse. Raises KeyError, TypeError or ValueError for a size that is missing, malformed or out of range."""
    config = sizes.sizes_from_json(manifest)
    return replace(config, mlp=_widths(manifest["sizes"]["mlp"], config.decoder.width))


def describe(config: ModelConfig) -> dict[str, str]:
    """The sizes in words, for `qalign-fast info`."""
    return sizes.describe(config) | {"mlp": f"layers {', '.join(map(str, config.mlp))} and 1 wide"}


def _widths(found: Any, width: int) -> tuple[int, ...]:
    widths = counts(found)
    if not all(0 < one <= _MOST for one in widths):
        raise ValueError(f"{found!r}, expected widths from 1 to {_MOST}")
    if widths[0] == width:  # upstream would add the decoder's row to the first layer, which `decode` does not give
        raise ValueError(f"{found!r} begins with the decoder's width; such a residual layer is not implemented")
    return widths
