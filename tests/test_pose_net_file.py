"""A saved network of poses: the same poses after loading, and files that are something else."""

import numpy as np
import pytest

from skcryo.datasets import make_molecule, make_particles
from skcryo.orientation import EquivariantPoseNet

pytest.importorskip("torch", reason="the network needs the extra skcryo[torch]")
pytest.importorskip("safetensors", reason="models are saved with the extra skcryo[torch]")


@pytest.fixture(scope="module")
def fitted():
    volume = make_molecule(32, random_state=0)
    stack, truth = make_particles(volume, 220, preset="ctf", snr=1.0, pixel_size=5.0, random_state=0)
    net = EquivariantPoseNet(
        init=truth.rotations[:200], max_iter=60, n_jobs=1, device="cpu", random_state=np.random.RandomState(0)
    )
    return net.fit(stack[:200]), stack[200:]


@pytest.mark.parametrize("refine", [True, False])
def test_poses_are_the_same_after_loading(fitted, tmp_path, refine):
    net, new = fitted
    net.refine = refine
    net.save(tmp_path / "net.safetensors")
    loaded = EquivariantPoseNet.load(tmp_path / "net.safetensors")
    found, expected = loaded.predict_poses(new), net.predict_poses(new)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert loaded.score(new) == net.score(new)
    np.testing.assert_array_equal(loaded.rotations_, net.rotations_)
    assert loaded.validation_error_ == net.validation_error_
    assert loaded.get_params() == net.get_params() | {"init": None, "random_state": None}


def test_a_file_is_not_replaced_unless_told(fitted, tmp_path):
    path = tmp_path / "net.safetensors"
    fitted[0].save(path)
    with pytest.raises(FileExistsError, match="net.safetensors"):
        fitted[0].save(path)
    fitted[0].save(path, overwrite=True)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError):
        EquivariantPoseNet.load(path)
    path.write_bytes(b"no tensors at all, but long enough for a header")
    with pytest.raises(ValueError, match="not a model saved by skcryo"):
        EquivariantPoseNet.load(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a model saved by skcryo"):
        EquivariantPoseNet.load(path)
    save_file({"x": np.zeros(3)}, path, metadata={"info": '{"format": "other"}'})
    with pytest.raises(ValueError, match="format 'other'"):
        EquivariantPoseNet.load(path)


def test_saving_needs_a_fit(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        EquivariantPoseNet().save(tmp_path / "net.safetensors")
