"""Downloads, from a server on the loopback."""

import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest

from skcryo.datasets import (
    fetch_emdb,
)
from skcryo.io import load_volume, save_volume


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A server on this machine that holds one entry: its address, its folder, SHA-256, list of requests."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "archive" / "EMD-0042" / "map"
    folder.mkdir(parents=True)
    save_volume(tmp_path / "map.mrc", np.arange(64.0).reshape(4, 4, 4), 2.0)
    content = gzip.compress((tmp_path / "map.mrc").read_bytes(), mtime=0)
    (folder / "emd_0042.map.gz").write_bytes(content)
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "archive"))

        def log_message(self, *arguments):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, hashlib.sha256(content).hexdigest(), requests
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("entry", [42, "42", "EMD-0042", "emd_0042"])
def test_a_map_is_fetched_once(archive, tmp_path, entry, capfd):
    url, _, sha256, requests = archive
    path = fetch_emdb(entry, data_home=tmp_path / "home", base_url=url + "/", known_hash=sha256)
    assert path.name == "emd_0042.map.gz"
    volume, voxel_size = load_volume(path)
    assert volume[0, 0, 1] == 1 and voxel_size == 2
    assert fetch_emdb(entry, data_home=tmp_path / "home", base_url=url, known_hash=sha256) == path
    assert fetch_emdb(entry, data_home=tmp_path / "home", base_url=url) == path
    assert requests == ["/EMD-0042/map/emd_0042.map.gz"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_wrong_hash_is_refused_and_leaves_no_file(archive, tmp_path, prefix):
    url = archive[0]
    with pytest.raises(ValueError, match="hash"):
        fetch_emdb(42, data_home=tmp_path / "home", base_url=url, known_hash=prefix + "0" * 64)
    assert [file for file in (tmp_path / "home").rglob("*") if file.is_file()] == []


def test_a_damaged_cache_is_noticed_without_a_known_hash(archive, tmp_path):
    url, folder, _, requests = archive
    path = fetch_emdb(42, data_home=tmp_path / "home", base_url=url)
    path.write_bytes(b"damaged")
    assert fetch_emdb(42, data_home=tmp_path / "home", base_url=url).stat().st_size > 100
    path.write_bytes(b"damaged")
    (folder / "emd_0042.map.gz").write_bytes(b"another file")
    with pytest.raises(ValueError, match="hash"):
        fetch_emdb(42, data_home=tmp_path / "home", base_url=url)


def test_mirrors_are_tried_in_order(archive, tmp_path, monkeypatch):
    url, _, sha256, requests = archive
    monkeypatch.setenv("SKCRYO_DATA", str(tmp_path / "from_environment"))
    path = fetch_emdb(42, base_url=[url + "/nothing", url], known_hash=sha256.upper())
    assert path.parent.parent == tmp_path / "from_environment"
    with pytest.raises(OSError, match="EMD-0043 could not be downloaded") as error:
        fetch_emdb(43, base_url=[url + "/first", url + "/second"])
    assert "/first/EMD-0043" in str(error.value) and "/second/EMD-0043" in str(error.value)
    assert not list(path.parent.glob("*0043*"))


def test_entries_and_hashes_are_checked(tmp_path):
    for entry in ("ribosome", "EMD-1234567", "", True):
        with pytest.raises(ValueError, match="entry is"):
            fetch_emdb(entry, data_home=tmp_path)
    with pytest.raises(ValueError, match="known_hash is 'abc'"):
        fetch_emdb(42, data_home=tmp_path, known_hash="abc")
