"""The models of the family, as engines ask for them (`qalign_fast.families.family.Models`)."""

from qalign_fast.families.mplug_owl2.model.checkpoint import Checkpoint, load_model
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.model.reference import Model

__all__ = ["Checkpoint", "CudaModel", "FoldedModel", "Model", "load_model"]
