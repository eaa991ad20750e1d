"""Without FiftyOne its adapters say what to install. Label Studio's needs none of it."""

from __future__ import annotations

import pytest

from support.command_line import python

HIDDEN = "import sys; sys.modules['fiftyone'] = None; sys.modules['label_studio_sdk'] = None\n"


@pytest.mark.parametrize(
    "use",
    [
        "import qalign_fast.adapters.fiftyone_model",
        "from qalign_fast.adapters.fiftyone_samples import score_samples; score_samples(None, None)",
    ],
)
def test_without_fiftyone_one_line_says_what_to_install(use: str) -> None:
    body = "\n".join(f"    {line}" for line in use.split("; "))
    found = python(
        f"{HIDDEN}from qalign_fast.errors import MissingExtraError\n"
        f"try:\n{body}\nexcept MissingExtraError as error:\n    print(error)"
    )
    assert "pip install fiftyone" in found
    assert len(found.splitlines()) == 1


def test_label_studio_s_predictions_need_nothing_installed() -> None:
    """Tasks without an address: what they get says so, and no file is asked for."""
    found = python(
        f"{HIDDEN}from qalign_fast import Scorer\nfrom qalign_fast.adapters.label_studio import Target, predict\n"
        "target = Target('mos', 'number', 'img', 'image', 'image', 'quality', 5, {})\n"
        "print(predict(Scorer.load(), [target], [{'id': 1, 'data': {}}], None, 'v'))"
    )
    assert found.strip() == "[{'model_version': 'v', 'score': 0.0, 'result': []}]"
