"""An artifact's folder in, a repository on the Hub out: the files that other tools look for, and the upload.

README.md, config.json and modeling_qalign_fast.py are written beside the manifest. It does not list them, so they
change neither what `verify` checks nor what tells the model from others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qalign_fast.adapters.model_card import card_text
from qalign_fast.artifact.manifest import MANIFEST, Artifact, Manifest, open_artifact
from qalign_fast.errors import ArtifactError, OptionError, one_line
from qalign_fast.hub import failures
from qalign_fast.needs import need

CARD, CONFIG, MODELING = "README.md", "config.json", "modeling_qalign_fast.py"

_OWN = ("LICENSE*", "NOTICE*")  # the owner's, which a licence may ask for
_WEIGHTS = ("onnx/*", "torch/*", "*.safetensors")  # where an artifact that was pushed before may have left others
_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
_MODULE = MODELING.removesuffix(".py")
_MODELING_TEXT = '''"""transformers runs this with trust_remote_code=True: qalign-fast loads the repository.

pip install 'qalign-fast[torch]'
"""

from qalign_fast.adapters.image_quality_pipeline import ImageQualityPipeline, QAlignConfig, QAlignModel

__all__ = ["ImageQualityPipeline", "QAlignConfig", "QAlignModel"]
'''


def write_files(directory: str | Path, repository: str | None = None, *, force: bool = False) -> dict[str, bool]:
    """Writes README.md, config.json and modeling_qalign_fast.py into an artifact's folder.

    repository: the id that the examples of README.md name. force: also over files that are there and differ.

    Returns name -> whether it is now as it would be written; False for a file that was kept. Raises ArtifactError for a
    folder that is no whole artifact, or that cannot be written.
    """
    artifact = open_artifact(directory, remembered=True)
    return _write(artifact, repository, force)


def push(directory: str | Path, repository: str, *, private: bool = False, force: bool = False) -> str:
    """Writes the files as `write_files` does, uploads the artifact with them, and returns the repository's URL.

    repository: "owner/name", which is made if it is not there. private: only its owners see it. What the manifest
    lists is uploaded, with the three files, LICENSE* and NOTICE*; nothing else of the folder. Weights that an earlier
    artifact left in the repository are deleted. huggingface_hub uploads, by its own settings: HF_TOKEN, HF_ENDPOINT.

    Raises OptionError for what is no id, ArtifactError for a folder that is no whole artifact and where the Hub refuses
    or cannot be reached, and MissingExtraError without huggingface_hub.
    """
    if not re.fullmatch(_ID, repository):
        raise OptionError(f"{repository!r} is not a repository's id; expected owner/name")
    artifact = open_artifact(directory)
    need("huggingface_hub", "'qalign-fast[torch]'")
    _write(artifact, repository, force)
    try:
        return _upload(artifact, repository, private)
    except failures() as error:
        raise ArtifactError(f"{repository}: not pushed ({type(error).__name__}: {one_line(error)})") from error


def _write(artifact: Artifact, repository: str | None, force: bool) -> dict[str, bool]:
    unknown = f"OWNER/{artifact.manifest.name}"
    wanted = {
        CARD: card_text(artifact.manifest, repository or unknown),
        CONFIG: json.dumps(_config(artifact.manifest), indent=2) + "\n",
        MODELING: _MODELING_TEXT,
    }
    replaced = (card_text(artifact.manifest, unknown),)  # a card whose examples name no repository yet
    try:
        return {name: _write_one(artifact.path(name), text, force, replaced) for name, text in wanted.items()}
    except OSError as error:
        raise ArtifactError(f"{error.filename or artifact.directory}: {error.strerror or error}") from error


def _write_one(path: Path, text: str, force: bool, replaced: Iterable[str]) -> bool:
    there = path.read_bytes().decode("utf-8", "replace") if path.exists() else None
    if there is None or force or there in replaced:
        path.write_text(text, "utf-8")
        return True
    return there == text


def _config(manifest: Manifest) -> dict[str, Any]:
    """What transformers reads: where its classes are. None of a model's keywords may stand here: it would take them."""
    words = [word for word, _ in manifest.levels]
    return {
        "model_type": "qalign_fast",
        "architectures": ["QAlignModel"],
        "auto_map": {
            "AutoConfig": f"{_MODULE}.QAlignConfig",
            "AutoModel": f"{_MODULE}.QAlignModel",
            "AutoModelForCausalLM": f"{_MODULE}.QAlignModel",
        },
        "custom_pipelines": {
            "image-quality-assessment": {
                "impl": f"{_MODULE}.ImageQualityPipeline",
                "pt": ["AutoModel"],
                "type": "image",
            }
        },
        "id2label": {str(i): word for i, word in enumerate(words)},
        "label2id": {word: i for i, word in enumerate(words)},
    }


def _upload(artifact: Artifact, repository: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    made = api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.repo_info(repository).private:
        raise ArtifactError(
            f"{repository}: is there, and public; make it private on the Hub, or push without --private"
        )
    files = [*artifact.manifest.files, MANIFEST, CARD, CONFIG, MODELING, *_OWN]
    api.upload_folder(
        repo_id=repository,
        folder_path=artifact.directory,
        allow_patterns=files,
        delete_patterns=list(_WEIGHTS),
        commit_message=f"{artifact.manifest.name}, {artifact.manifest.precision}",
    )
    return str(made)
