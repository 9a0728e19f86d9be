"""Fixtures that every test file may use."""

import os
from pathlib import Path

import pytest

# Python started by a test imports the installed package, not the source folder that it may be started in.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def shared_data():
    """Folder of files that other programs made; not part of the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data (files made by other programs) is not beside the repository")
    return folder
