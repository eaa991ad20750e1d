"""Label Studio's tasks in, its predictions out: the class that an ML backend's server makes anew for each request."""

import os
from pathlib import Path
from typing import Any

from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse

from qalign_fast import Scorer, __version__
from qalign_fast.adapters.label_studio import find_targets, predict

# Loaded once: the class below has an object for each request. None is the embedded model.
MODEL = os.environ.get("QALIGN_MODEL") or None
SCORER = Scorer.load(MODEL, api_key=os.environ.get("QALIGN_API_KEY") or None)
VERSION = f"{Path(MODEL or 'qalign-mini').name} (qalign-fast {__version__})"


class QAlign(LabelStudioMLBase):
    """Fills in a project's Number, Rating and Choices tags with what Q-Align says of its pictures and videos."""

    def setup(self) -> None:
        """Raises OptionError for a label config without such a tag; Label Studio shows it where one connects."""
        self.set("model_version", VERSION)
        if hasattr(self, "label_interface"):
            find_targets(self.label_interface, SCORER)

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> ModelResponse:
        """A prediction for each task, in order; one without results where the file cannot be had or read."""
        targets = find_targets(self.label_interface, SCORER)
        found = predict(SCORER, targets, tasks, self.get_local_path, VERSION)
        return ModelResponse(model_version=VERSION, predictions=found)
