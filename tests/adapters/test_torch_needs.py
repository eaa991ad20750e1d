"""Without torch its adapters say in one line what to install."""

from __future__ import annotations

import pytest

from support.command_line import python


@pytest.mark.parametrize("name", ["pyiqa", "torch_module", "torch_metric", "auto_model", "image_quality_pipeline"])
def test_without_torch_one_line_says_what_to_install(name: str) -> None:
    found = python(
        "import sys; sys.modules['torch'] = None\nfrom qalign_fast.errors import MissingExtraError\n"
        f"try:\n    import qalign_fast.adapters.{name}\nexcept MissingExtraError as error:\n    print(error)"
    )
    assert "pip install 'qalign-fast[torch]'" in found
    assert len(found.splitlines()) == 1
