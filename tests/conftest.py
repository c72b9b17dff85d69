"""The option `--reference DIR`, the report of `tests/parity` and `tests/recon`, and a pipeline of the tiny model.

With `-n 2` two workers share the tests, each on half of the cores: most tests compile or run on one core. What they
compile themselves is small and runs once, so XLA leaves its costly passes out, which takes a third off the time of the
suite. It optimizes as for users on an accelerator, with `--reference`, and in programs that tests start without
`COMPILE_QUICKLY` (tests/tiny_model.py).
"""

import json
import os
from pathlib import Path

import pytest

# Settings of the user's shell that change what is computed, cached, downloaded or printed. JAX_PLATFORMS stays: it
# says which device to test on. Tests that need one of the others set it themselves.
PREFIXES = ("HF_", "HUGGINGFACE_", "JAX_", "SV3D_")
NAMES = (
    "XLA_FLAGS",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "LINES",
    "TZ",
    "PYTHONWARNINGS",
    "SOURCE_DATE_EPOCH",
)
for name in [*os.environ]:
    if (name.startswith(PREFIXES) and name != "JAX_PLATFORMS") or name in NAMES:
        del os.environ[name]

REPORT = pytest.StashKey[list[dict]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        metavar="DIR",
        type=Path,
        help="folder of reference data to check instead of tests/reference; nothing is deselected then",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = []
    if hasattr(config, "workerinput") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        index, count = (
            int(config.workerinput["workerid"].removeprefix("gw")),
            config.workerinput["workercount"],
        )
        os.sched_setaffinity(0, cores[index::count] or cores)
    if (folder := config.getoption("--reference")) is not None:
        if not folder.is_dir():
            raise pytest.UsageError(f"--reference: {folder} is not a folder")
        config.option.markexpr = ""  # a folder was named to be checked whole, whatever the defaults leave out
    elif not getattr(config.option, "numprocesses", None):
        _compile_quickly()


def _compile_quickly() -> None:
    import jax
    import jaxlib

    older = jaxlib.version.__version_info__ < (0, 11)
    if older:  # its first emitters, which later ones have not, take half the time of the others
        os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
    jax.jit(lambda x: x + 1)(1.0)  # reads the flags
    if older:
        del os.environ["XLA_FLAGS"]
    jax.config.update("jax_disable_most_optimizations", jax.default_backend() == "cpu")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """A worker of `-n` sends its reports as UTF-8, which names of any bytes are not: it would end there."""
    return _encodable((yield))


def _encodable(data):
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {key: _encodable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_encodable(each) for each in data)
    return data


def pytest_testnodedown(node) -> None:
    """What a worker of `-n` has to add to the report."""
    node.config.stash[REPORT] += getattr(node, "workeroutput", {}).get("parity", [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash[REPORT]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = report
    elif report:
        path = session.config.invocation_params.dir / "parity.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


@pytest.fixture(scope="session")
def parity_report(request: pytest.FixtureRequest) -> list[dict]:
    """Records {"file", "tensor", "path", "error", "tolerance"}, written to `parity.json` in the current folder."""
    return request.config.stash[REPORT]


@pytest.fixture(scope="session")
def pipe():
    """A pipeline of the tiny model, whose compiled programs serve all tests of a process."""
    from tests.tiny_model import tiny_pipeline  # not before it is needed: it imports jax

    return tiny_pipeline()


@pytest.fixture
def command_line():
    """Messages as the `sv3d` command prints them."""
    from sv3d_jax.names_of_flags import speaking_of_flags

    with speaking_of_flags():
        yield


@pytest.fixture
def program_folder(tmp_path: Path):
    """Where programs are kept: a folder of this test's alone."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from sv3d_jax.programs import FOLDER

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()  # jax opens its own with the first compilation
    yield tmp_path / FOLDER
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def compilations(monkeypatch) -> list[str]:
    """Names of the programs that are compiled from now on, and not found on disk."""
    from sv3d_jax import programs

    names, load_or_compile = [], programs.load_or_compile

    def recorded(description, compile_now, inputs=()):
        return load_or_compile(description, lambda name: names.append(name) or compile_now(name), inputs)

    monkeypatch.setattr(programs, "load_or_compile", recorded)
    return names
