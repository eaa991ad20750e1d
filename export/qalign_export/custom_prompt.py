"""A prompt's text in, the token ids around its image slot out, as the family tokenizes: for tasks of one's own."""

from __future__ import annotations

from pathlib import Path

from qalign_fast.errors import MissingExtraError, TaskError
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.families.prompt import MEDIA, Prompt

SLOT = "<image>"
TOKENIZER = "tokenizer.model"  # its name in a checkpoint


def tokenize_prompt(task: str, text: str, tokenizer: Path) -> tuple[Prompt, ...]:
    """The prompt for each medium. What stands before and after the slot is tokenized by itself, the first with BOS.

    `text` is for example "USER: How sharp is this?\\n<image>\\nASSISTANT: The sharpness of the image is"; the five
    level words are read as the token after it. Raises TaskError for a text without one slot, a name that is taken, or a
    tokenizer that cannot be read; MissingExtraError without sentencepiece.
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
