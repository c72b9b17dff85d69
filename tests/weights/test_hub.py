import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest

from sv3d_jax.errors import InputError, OutputError, WeightsError
from sv3d_jax.weights import hub
from sv3d_jax.weights import source as weights_source
from sv3d_jax.weights.hub import find_weights, load_weights, write_shipped
from sv3d_jax.weights.safetensors_file import SafetensorsFile
from tests.reference_weights import reference_params
from tests.tiny_model import CONFIG


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def params():
    return reference_params(CONFIG)


def assert_same_tree(loaded, expected):
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_folder_loads_as_the_parameter_tree(folder, params):
    loaded, config, info = load_weights(str(folder))
    assert_same_tree(loaded, params)
    assert config == CONFIG
    assert info["path"] == str(folder)


def test_file_loads_as_the_parameter_tree(checkpoint, params):
    loaded, config, info = load_weights(checkpoint)
    assert_same_tree(loaded, params)
    assert config == CONFIG
    assert info["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_file_is_converted_once(checkpoint, monkeypatch):
    _, _, first = load_weights(checkpoint)
    monkeypatch.setattr(hub, "convert", lambda *_, **__: pytest.fail("converted again"))
    assert load_weights(checkpoint)[2] == first


def test_changed_file_is_converted_again(checkpoint, tmp_path):
    copy = Path(shutil.copy(checkpoint, tmp_path / "x.safetensors"))
    load_weights(copy)
    os.utime(copy, ns=(0, 0))
    load_weights(copy)
    assert len(list((tmp_path / "cache").glob("sv3d_jax/weights/tiny-*"))) == 2


def test_full_cache_is_answered_with_another_place(checkpoint, monkeypatch):
    def full(*_, **__):
        raise OutputError("no space")

    monkeypatch.setattr(hub, "convert", full)
    with pytest.raises(OutputError) as caught:
        load_weights(checkpoint)
    assert f"sv3d convert {checkpoint} FOLDER" in caught.value.hint


def test_dtype_of_the_loaded_tree_is_chosen(folder):
    loaded, _, _ = load_weights(folder, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"bfloat16"}


def test_variant_of_the_loaded_weights_is_checked(folder):
    with pytest.raises(WeightsError, match="of variant p, not u"):
        load_weights(folder, "u")


def test_the_shipped_model_is_opened_and_converted_by_its_name(tmp_path):
    opened = weights_source.open_weights("mini")
    assert opened.path == weights_source.MINI and opened.config.name == "sv3d_mini"
    hub.convert("mini", tmp_path / "mini.safetensors")
    assert weights_source.open_weights(tmp_path / "mini.safetensors").tensors == opened.tensors


def test_a_variant_that_there_is_not_is_refused_by_name(folder):
    for source in (folder, "some/model"):
        with pytest.raises(InputError, match="variant must be one of auto, u, p, c, v3d, got 'x'"):
            load_weights(source, "x")


def test_fingerprint_of_a_folder_is_that_of_its_values(checkpoint, folder, tmp_path):
    again = tmp_path / "again"
    hub.convert(hub.open_weights(checkpoint), again)
    assert load_weights(again)[2]["sha256"] == load_weights(folder)[2]["sha256"]


def test_shipped_model_loads_rounded_to_bfloat16(params, tmp_path):
    write_shipped(params, CONFIG, tmp_path / "mini")
    loaded, config, _ = load_weights(tmp_path / "mini")
    assert_same_tree(
        loaded, jax.tree.map(lambda leaf: leaf.astype(loaded["unet"]["out_2"]["bias"].dtype), params)
    )
    assert config == CONFIG


def test_shipped_files_are_split_below_the_limit(params, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "MAX_SHIPPED_FILE", 100_000)
    write_shipped(params, CONFIG, tmp_path / "mini")
    files = sorted((tmp_path / "mini").glob("unet-*.safetensors"))
    whole = [file for file in files if len(SafetensorsFile(file).tensors) > 1]
    assert len(files) > 3
    assert all(file.stat().st_size < 100_000 + 20_000 for file in whole)  # the header comes on top
    assert len(jax.tree.leaves(load_weights(tmp_path / "mini")[0])) == len(jax.tree.leaves(params))


def test_mini_is_the_shipped_folder(params, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_source, "MINI", tmp_path / "mini")
    write_shipped(params, CONFIG, tmp_path / "mini")
    assert find_weights("mini") == tmp_path / "mini"


def test_missing_mini_is_a_broken_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_source, "MINI", tmp_path)
    with pytest.raises(WeightsError, match="shipped weights are missing"):
        find_weights("mini")


@pytest.mark.parametrize("source", ["nowhere", "nowhere/x.safetensors", "/nowhere/at/all"])
def test_absent_path_is_listed_with_the_download_command(source):
    with pytest.raises(WeightsError) as caught:
        find_weights(source)
    assert str(Path(source).absolute()) in caught.value.message
    assert "hf download stabilityai/sv3d sv3d_p.safetensors" in caught.value.hint


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a gated model and for a private one."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/api/models/someone/gated/tree/"):
            file = {"type": "file", "path": "sv3d_p.safetensors", "size": 9, "oid": "1" * 40}
            self._answer(200, body=json.dumps([file]).encode())
        elif self.path.startswith("/api/models/someone/gated"):
            files = [{"rfilename": "sv3d_p.safetensors"}]
            model = {"id": "someone/gated", "sha": "0" * 40, "siblings": files}
            self._answer(200, body=json.dumps(model).encode())
        elif "gated" in self.path:
            self._answer(403, error="GatedRepo")
        elif "private" in self.path:
            self._answer(401, error="RepoNotFound")
        else:
            self._answer(404)

    do_HEAD = do_GET

    def _answer(self, status: int, error: str = "", body: bytes = b""):
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask_hub(source: str, tmp_path: Path, **environment: str) -> str:
    """What a fresh process says that looks for `source` (the hub's client reads its settings when imported)."""
    script = (
        "import sys\nfrom sv3d_jax.errors import WeightsError\nfrom sv3d_jax.weights.hub import find_weights\n"
        "try:\n    find_weights(sys.argv[1])\nexcept WeightsError as error:\n    print(error.message, error.hint)"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), **environment}
    done = subprocess.run([sys.executable, "-c", script, source], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gated_model_explains_the_licence_click(tmp_path, endpoint):
    said = ask_hub("someone/gated", tmp_path, HF_ENDPOINT=endpoint)
    assert "https://huggingface.co/someone/gated" in said
    assert (
        "accept the licence; then run: hf auth login && hf download someone/gated sv3d_p.safetensors" in said
    )


def test_private_or_misspelt_model_is_told_apart_from_a_gated_one(tmp_path, endpoint):
    said = ask_hub("someone/private", tmp_path, HF_ENDPOINT=endpoint)
    assert "does not exist" in said and "check the name" in said


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_offline_lists_the_places_searched_and_the_command(tmp_path, environment):
    said = ask_hub("someone/model@v2", tmp_path, **environment)
    assert str(Path("someone/model@v2").absolute()) in said
    assert str(tmp_path / "hf" / "hub" / "models--someone--model") in said
    assert "hf download someone/model sv3d_p.safetensors --revision v2" in said


def test_model_in_the_hub_s_cache_is_found_offline(tmp_path):
    folder = tmp_path / "hf" / "hub" / "models--someone--model"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "sv3d_p.safetensors").touch()
    assert ask_hub("someone/model", tmp_path, HF_HUB_OFFLINE="1") == ""
