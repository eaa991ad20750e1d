"""An artifact's manifest in, the README.md of its repository on the Hub out. Every figure in it is the manifest's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qalign_fast.artifact.manifest import Manifest
from qalign_fast.families.published import inverted_remark, published_id, trained_for
from qalign_fast.pixels.rule import PixelRule, SquareRule

# The Hub's names of licences that are also common names; any other is "other", with the name as it stands.
_LICENSES = frozenset(
    """
    apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 gpl-2.0 gpl-3.0
    llama2 openrail
    """.split()
)
_WORD = r"(?!(?:null|true|false|yes|no|on|off|y|n)\Z)[a-z][\w./-]*"  # YAML reads it as text without quotes
_ROUNDED = ("fp8", "int8", "int4")
_TAGS = {"quality": "quality-assessment", "aesthetics": "aesthetics-assessment"}  # after "image-" and "video-"


def card_text(manifest: Manifest, repository: str) -> str:
    """The model card, markdown with a YAML head as the Hub reads it. `repository`: the id that examples name."""
    parts = (
        f"---\n{_head(manifest)}---\n\n# {manifest.name}\n",
        _what(manifest),
        f"## Use\n\n{_use(manifest, repository)}",
        f"## Facts\n\n{_facts(manifest)}",
        f"## How far its scores are from its source's\n\n{_fidelity(manifest)}",
        f"## Limits\n\n{_limits(manifest)}",
    )
    return "\n".join(parts)


def _head(manifest: Manifest) -> str:
    base = published_id(_source(manifest))
    found: dict[str, Any] = {
        **_license(manifest.license),
        "library_name": "qalign-fast",
        "pipeline_tag": "image-classification",
    }
    if base is not None:
        found["base_model"] = base
        if manifest.precision in _ROUNDED:
            found["base_model_relation"] = "quantized"
    found["tags"] = _tags(manifest)
    return "".join(f"{name}:{_yaml(value)}\n" for name, value in found.items())


def _yaml(value: Any) -> str:
    """Text in quotes unless it is plainly a word: YAML reads JSON's."""
    if isinstance(value, list):
        return "".join(f"\n-{_yaml(one)}" for one in value)
    return f" {value if re.fullmatch(_WORD, value, re.ASCII) else json.dumps(value)}"


def _license(text: str) -> dict[str, str]:
    if text.lower().startswith("unknown"):
        return {"license": "unknown"}
    if text.lower() in _LICENSES:
        return {"license": text.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "see-below"}


def _tags(manifest: Manifest) -> list[str]:
    asked = {(entry.prompt.medium, entry.prompt.task) for entry in manifest.prompts}
    of_tasks = [
        f"{medium}-{tag}" for medium in ("image", "video") for task, tag in _TAGS.items() if (medium, task) in asked
    ]
    return [*of_tasks, manifest.family.name, manifest.precision]


def _what(manifest: Manifest) -> str:
    scale = manifest.family.scale
    return (
        f"Rates {_media(manifest)} on {scale.low:g} (bad) to {scale.high:g} (excellent). An artifact of "
        f"qalign-fast, made from `{_source(manifest)}`, in {manifest.precision}.\n"
    )


def _use(manifest: Manifest, repository: str) -> str:
    extra = "torch" if "torch" in manifest.engines else "cpu"
    also = "" if extra == "torch" else " huggingface-hub"
    task = _tasks(manifest, "image")[0] if _tasks(manifest, "image") else manifest.prompts[0].prompt.task
    chosen = "" if task == "quality" else f', "{task}"'
    return f"""```
pip install 'qalign-fast[{extra}]'{also}
```

```python
from qalign_fast import Scorer

score = Scorer.load("{repository}").score("photo.jpg"{chosen})
print(score.value, score.level, score.probabilities)
```

With transformers 5 and torch, which then run `modeling_qalign_fast.py` of this repository, a few lines that import
qalign-fast:

```python
from transformers import AutoModelForCausalLM, pipeline

model = AutoModelForCausalLM.from_pretrained("{repository}", trust_remote_code=True)
print(model.score([picture], task_="{task}", input_="image"))  # a list of PIL pictures
pipe = pipeline("image-quality-assessment", model="{repository}", trust_remote_code=True)
print(pipe("photo.jpg", task_="{task}"))  # [{{"label": ..., "score": ..., "rating": ...}}, ...]
```
"""


def _facts(manifest: Manifest) -> str:
    total = sum(entry.bytes for entry in manifest.files.values())
    rows = {
        "made from": f"`{_source(manifest)}`, SHA-256 `{manifest.source.get('sha256', 'not recorded')}`",
        **_base(manifest),
        "licence of the weights": _cell(manifest.license),
        "family": f"`{manifest.family.name}`",
        "levels": ", ".join(word for word, _ in manifest.levels),
        "tasks of pictures": ", ".join(_tasks(manifest, "image")) or "none",
        "tasks of clips": ", ".join(_tasks(manifest, "video")) or "none",
        "precision": manifest.precision,
        **_rounding(manifest),
        "size": f"{total / 1e6:,.1f} MB in {len(manifest.files)} files",
        **{f"engine {engine}": _engine(manifest, parts) for engine, parts in manifest.engines.items()},
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.made_with.items()),
    }
    return _table(("", ""), rows.items())


def _base(manifest: Manifest) -> dict[str, str]:
    base = manifest.source.get("base")
    return {"merged into": f"`{base.get('name')}`, SHA-256 `{base.get('sha256')}`"} if isinstance(base, Mapping) else {}


def _rounding(manifest: Manifest) -> dict[str, str]:
    if manifest.quantization is None:
        return {}
    higher = manifest.quantization.get("higher") or {}
    kept = "".join(f"; `{name}` in {precision}" for name, precision in list(higher.items())[:8])
    more = f"; {len(higher) - 8} more" if len(higher) > 8 else ""
    return {"rounding": f"{manifest.quantization.get('calibration_pictures', 0)} calibration pictures{kept}{more}"}


def _engine(manifest: Manifest, parts: Mapping[str, str]) -> str:
    stems = {path.rpartition(".")[0] for path in parts.values()}
    size = sum(entry.bytes for path, entry in manifest.files.items() if path.rpartition(".")[0] in stems)
    return f"{', '.join(f'`{path}`' for path in parts.values())}: {size / 1e6:,.1f} MB, which have to fit into memory"


def _fidelity(manifest: Manifest) -> str:
    """The figures of `verify`, as the manifest has them."""
    if not manifest.fidelity:
        return f"Not measured; `qalign-fast verify FOLDER --against {_source(manifest)}` measures it.\n"
    head = ("engine", "against", "pictures", "off in the mean", "at most", "SRCC (95 %)", "level flips")
    rows = [(engine, *_row(report)) for engine, report in manifest.fidelity.items()]
    return (
        f"{_table(head, rows)}\nMeasured by `qalign-fast verify`, on the scale of the scores. SRCC is with the\n"
        "source's scores of the same pictures, and says nothing of people's opinions.\n"
    )


def _row(report: Mapping[str, Any]) -> Iterator[str]:
    yield _cell(report.get("against", "?"))
    yield _cell(report.get("pictures", "?"))
    yield _number(report.get("mean_delta"), ".2g")
    yield _number(report.get("max_delta"), ".2g")
    ends: Sequence[float] | None = report.get("srcc_interval")
    yield _number(report.get("srcc"), ".5f") + (f" ({ends[0]:.5f} to {ends[1]:.5f})" if ends else "")
    yield _number(report.get("level_flips"), ".2%")


def _limits(manifest: Manifest) -> str:
    name = _source(manifest)
    trained = trained_for(name)
    lines = [
        f"`{name}` was trained for {trained}. Other tasks are answered, and may mean little."
        if trained
        else f"What `{name}` was trained for is not recorded here.",
        *_resized(manifest.config.pixels),
        *([warning] if (warning := inverted_remark(name)) and "base" in manifest.source else []),
        "Agreement with people's opinions was not measured on this artifact, unless somebody has written it in below.",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _resized(rule: PixelRule) -> list[str]:
    if not isinstance(rule, SquareRule):
        return []
    return [f"A picture is padded to a square and resized to {rule.side} pixels a side: finer detail is not seen."]


def _media(manifest: Manifest) -> str:
    media = {entry.prompt.medium for entry in manifest.prompts}
    return " and ".join(word for medium, word in (("image", "pictures"), ("video", "clips")) if medium in media)


def _tasks(manifest: Manifest, medium: str) -> list[str]:
    return [entry.prompt.task for entry in manifest.prompts if entry.prompt.medium == medium]


def _source(manifest: Manifest) -> str:
    return str(manifest.source.get("name", manifest.name))


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "?"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Any) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
