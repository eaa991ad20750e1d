"""The text of a user's own task in, the token ids around its image slot out, tokenized as the family does."""

from __future__ import annotations

from pathlib import Path

from qalign_fast.errors import MissingExtraError, TaskError
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.families.prompt import MEDIA, Prompt

SLOT = "<image>"
TOKENIZER = "tokenizer.model"  # its name in a checkpoint


def tokenize_prompt(task: str, text: str, tokenizer: Path) -> tuple[Prompt, ...]:
    """The task's prompt for each medium.

    `text` is for example "USER: How sharp is this?\\n<image>\\nASSISTANT: The sharpness of the image is"; the token
    after it is one of the five level words. The texts before and after the slot are tokenized separately, the first
    with BOS. `tokenizer` is a sentencepiece file. Raises TaskError for a text without exactly one slot, a name that is
    taken or not allowed, or a tokenizer that cannot be read; MissingExtraError without sentencepiece.
    """
    if task in TASKS or not task.replace("-", "_").isidentifier():
        raise TaskError(f"task {task!r}: a custom task needs a name of letters, digits, - and _ that is not {TASKS}")
    parts = text.split(SLOT)
    if len(parts) != 2 or not all(parts):
        raise TaskError(f"task {task!r}: its text has {len(parts) - 1} {SLOT}; expected one, with text on both sides")
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"a custom prompt needs sentencepiece: pip install 'qalign-fast[export]' ({error})"
        ) from error
    try:
        processor = SentencePieceProcessor(model_file=str(tokenizer))
    except (OSError, RuntimeError) as error:
        raise TaskError(f"{tokenizer}: not a readable sentencepiece tokenizer ({error})") from error
    before, after = (tuple(processor.encode(part)) for part in parts)
    return tuple(Prompt(task, medium, (processor.bos_id(), *before), after) for medium in MEDIA)
