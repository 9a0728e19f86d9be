"""Fixtures that every test file may use."""

import os
from pathlib import Path

import numpy as np
import pytest

from skcryo.ctf import make_ctf
from skcryo.particles import ParticleStack
from skcryo.rotations import random_rotations

# Python started by a test imports the installed package, not the source folder that it may be started in.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def shared_data():
    """Folder of files that other programs made; not part of the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data (files made by other programs) is not beside the repository")
    return folder


@pytest.fixture
def simulated():
    """Six particles in memory with every fact that a file can hold."""
    rng = np.random.default_rng(0)
    n = 6
    return ParticleStack(
        rng.standard_normal((n, 8, 8)).astype(np.float32),
        pixel_size=1.37,
        ctf=make_ctf(
            n,
            defocus_u=rng.uniform(1e4, 2e4, n),
            defocus_v=rng.uniform(1e4, 2e4, n),
            defocus_angle=rng.uniform(0, 180, n),
            voltage=[300, 300, 200, 300, 200, 300],
            cs=2.7,
            amplitude_contrast=0.07,
            phase_shift=12.5,
            b_factor=40.0,
            scale=0.9,
        ),
        rotations=random_rotations(n, random_state=1),
        shifts=rng.uniform(-3, 3, (n, 2)),
    )
