"""The models of the family: mPLUG-Owl2's, read from a checkpoint with this family's tokens and anchors."""

from functools import partial

from qalign_fast.families.compare2score.family import FAMILY
from qalign_fast.families.mplug_owl2.model import checkpoint
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.model.reference import Model

Checkpoint = partial(checkpoint.Checkpoint, family=FAMILY)
load_model = partial(checkpoint.load_model, family=FAMILY)

__all__ = ["Checkpoint", "CudaModel", "FoldedModel", "Model", "load_model"]
