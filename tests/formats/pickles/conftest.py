"""Files of these tests lie where no word of a test's name is in their path, so that sentences can be matched."""

from __future__ import annotations

import pytest


@pytest.fixture
def tmp_path(tmp_path_factory):
    return tmp_path_factory.mktemp("file")
