"""What the tests of files share."""

import gemmi
from numpy.testing import assert_allclose


def assert_same_facts(stack, other, *, atol=2e-6):
    assert_allclose(stack.pixel_size, other.pixel_size, rtol=1e-6)
    for name in ("rotations", "shifts"):
        if getattr(stack, name) is None:
            assert getattr(other, name) is None
        else:
            assert_allclose(getattr(stack, name), getattr(other, name), atol=atol)
    if stack.ctf is None:
        assert other.ctf is None
    else:
        for field in stack.ctf.dtype.names:
            assert_allclose(stack.ctf[field], other.ctf[field], rtol=1e-6, atol=atol)




def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def columns_of(path, tag="_rlnImageName"):
    """All columns of the table with `tag`, by gemmi alone."""
    for block in gemmi.cif.read(str(path)):
        if block.find_values(tag):
            loop = block.find_values(tag).get_loop()
            return {name.lstrip("_"): list(block.find_values(name)) for name in loop.tags}
    return {}
