"""Lists of labels, as data sets and papers publish them, in; labelled names with counts, hash and direction out."""

from qalign_fast.evaluation.lists.entries import KnownList, Labelled, LabelList, Published
from qalign_fast.evaluation.lists.known import KNOWN_LISTS
from qalign_fast.evaluation.lists.read import read_list

__all__ = ["KNOWN_LISTS", "KnownList", "LabelList", "Labelled", "Published", "read_list"]
