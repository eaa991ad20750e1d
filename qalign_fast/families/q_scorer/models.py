"""The models of the family: mPLUG-Owl2's, read from a checkpoint with this family's names and sizes."""

from functools import partial

from qalign_fast.families.mplug_owl2.model import checkpoint
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.q_scorer.family import FAMILY

Checkpoint = partial(checkpoint.Checkpoint, family=FAMILY)
load_model = partial(checkpoint.load_model, family=FAMILY)

__all__ = ["Checkpoint", "CudaModel", "FoldedModel", "Model", "load_model"]
