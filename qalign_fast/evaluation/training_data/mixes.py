"""A model's name in; the data sets that it was trained on, and whether a test list is of one of them, out.

Source: upstream's model_zoo/README.md for the sets of each checkpoint; the numbers of entries were counted in its
training lists, those of AVA and LSVQ are as the paper rounds them; table 7 of the paper marks the tests that are of a
training set. DeQA-Score's sets are those of its README. Whether the lists of mixes repeat a set could not be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from qalign_kernels.contract.precisions import PRECISIONS


@dataclass(frozen=True)
class TrainingSet:
    """A data set that checkpoints were trained on.

    entries: of upstream's training list. counted: whether they were counted, or are the paper's round number.
    tests: the known test lists that are of the same data set. Those of koniq, spaq and kadid share no picture with the
    training list.
    """

    entries: int
    counted: bool
    tests: tuple[str, ...]


SETS = {
    "koniq": TrainingSet(7046, True, ("koniq-test", "koniq-official-test")),
    "spaq": TrainingSet(8897, True, ("spaq-test",)),
    "kadid": TrainingSet(8106, True, ("kadid-test",)),
    "ava": TrainingSet(236_000, False, ("ava-test",)),
    "lsvq": TrainingSet(28_000, False, ("lsvq-test", "lsvq-1080p")),
}
CROSS_TESTS = ("livec", "agiqa3k", "live", "csiq", "konvid", "maxwell-test")  # of data sets that no checkpoint has seen
MIXES = {
    "one-align": ("koniq", "spaq", "kadid", "ava", "lsvq"),
    "q-align-quality": ("koniq", "spaq", "kadid", "lsvq"),
    "q-align-image": ("koniq", "spaq", "kadid", "ava"),
    "q-align-iaa-vqa": ("ava", "lsvq"),
    "q-align-iqa": ("koniq", "spaq", "kadid"),
    "q-align-aesthetic": ("ava",),
    "q-align-vqa": ("lsvq",),
    "deqa-score-mix3": ("koniq", "spaq", "kadid"),
    "deqa-score-lora-mix3": ("koniq", "spaq", "kadid"),
}  # checkpoint -> its sets
FIGURES_OF = {
    "OneAlign": "one-align",
    "DeQA-Score-Mix3": "deqa-score-mix3",
    "DeQA-Score-LoRA-Mix3": "deqa-score-lora-mix3",
}  # model of published figures -> its checkpoint; those of an ensemble have none


def training_sets(model_name: str) -> tuple[str, ...] | None:
    """The data sets that a published checkpoint was trained on, by names in SETS; None for a model that is none."""
    name = checkpoint_of(model_name)
    return None if name is None else MIXES[name]


def checkpoint_of(model_name: str) -> str | None:
    """The published checkpoint that a model is, by its name in MIXES; None for a model that is none.

    The name may be a Hub id, a folder, or a checkpoint's name with a precision after it, such as `one-align-int8`.
    """
    name = model_name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    names = [name, *(name.removesuffix(f"-{precision}") for precision in PRECISIONS)]
    return next((each for each in names if each in MIXES), None)


def is_in_domain(model_name: str, test_list: str) -> bool | None:
    """Whether a test list, by its name among the known ones, is of a data set that a checkpoint was trained on.

    None where that is not known: of another model, or of another list.
    """
    sets = training_sets(model_name)
    seen = {test: name for name, each in SETS.items() for test in each.tests}
    if sets is None or test_list not in (*seen, *CROSS_TESTS):
        return None
    return seen.get(test_list) in sets
