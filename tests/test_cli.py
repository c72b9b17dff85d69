"""The command line: help, usage errors, exit codes, where output goes."""

import argparse
import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import sv3d_jax.doctor
from sv3d_jax import cli, cutout, errors
from sv3d_jax.cameras.orbit import CameraWarning
from sv3d_jax.cli import VERBS, Verb, main
from sv3d_jax.errors import OutputError

ROOT = Path(__file__).parents[1]
SV3D = [sys.executable, "-m", "sv3d_jax"]


@pytest.fixture
def verb(monkeypatch):
    """Makes `sv3d toy` run the given function on (config, progress)."""

    def install(function, uses_jax=False):
        monkeypatch.setattr(sv3d_jax.doctor, "run_toy", function, raising=False)
        monkeypatch.setitem(
            VERBS, "toy", Verb("a toy", "doctor:DoctorConfig", "doctor:run_toy", uses_jax=uses_jax)
        )

    return install


def raising(error):
    def run(config, progress):
        raise error

    return run


# Help and usage errors


def test_help_of_every_verb_needs_no_jax():
    script = (
        "import sys; from sv3d_jax.cli import VERBS, main\n"
        "for name in VERBS: assert main([*name.split(), '--help']) == 0, name\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: sv3d {name} " in done.stdout for name in VERBS)


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("help", "--help"),
        ("help orbit", "orbit --help"),
        ("help data", "data --help"),
        ("version", "--version"),
    ],
)
def test_help_and_version_are_words_too(words, same, capsys):
    assert main(words.split()) == main(same.split()) == 0
    said = capsys.readouterr().out
    assert said and said[: len(said) // 2] == said[len(said) // 2 :]


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_can_be_run(name):
    assert callable(cli._named(VERBS[name].run))


USAGE_ERRORS = {
    "a misspelt verb": ("generat x.png", ["generat", "generate"]),
    "a misspelt second word": ("data rendr x.glb", ["data rendr", "data render"]),
    "no such verb": ("xyz", ["xyz", "known: ", "generate"]),
    "a misspelt flag": ("orbit x.png -o y --num-stpes 3", ["--num-stpes", "--num-steps"]),
    "a word for a number": ("orbit x.png -o y --num-steps many", ["--num-steps", "many", "INT"]),
    "a number out of range": ("orbit x.png -o y --num-steps 0", ["--num-steps 0", "between 1 and 1000"]),
    "a wrong choice": ("orbit x.png -o y --orbit spiral", ["--orbit", "spiral", "static", "sine", "dynamic"]),
    "no output": ("orbit x.png", ["-o DIR is needed", "sv3d orbit x.png -o DIR"]),
    "no picture": ("orbit -o y", ["IMAGES", "needed"]),
    "an absent picture": ("orbit absent.png -o y", ["absent.png"]),
    "one frame": ("generate README.md -o y --frames 1", ["--frames 1", "between 2 and 128"]),
    "too few elevations": ("cameras --elevation 1 2 3", ["21", "3"]),
    "an absent settings file": ("cameras --config absent.toml", ["absent.toml"]),
    "no such recipe": ("train --config sv3d_q -o x", ["--config sv3d_q", "did you mean sv3d_u?"]),
    "settings in YAML": ("cameras --config x.yaml", ["x.yaml", "TOML"]),
}


@pytest.mark.parametrize("words, expected", USAGE_ERRORS.values(), ids=USAGE_ERRORS)
def test_a_usage_error_says_what_is_wrong_and_ends_with_2(words, expected, capsys):
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and all(text in captured.err for text in expected), captured.err


@pytest.mark.parametrize(
    "words", ["--help", "generate --help", "orbit x.png -o y --num-steps 0", "orbit absent.png -o y"]
)
def test_help_and_usage_errors_take_less_than_a_second(words):
    process = subprocess.Popen([*SV3D, *words.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    usage = os.wait4(process.pid, 0)[2]
    process.returncode = 0  # it was waited for above
    assert (
        usage.ru_utime + usage.ru_stime < 1.0
    )  # CPU seconds: the wall clock of a busy machine proves nothing


def test_a_settings_file_is_overridden_by_flags(tmp_path, capsys):
    (tmp_path / "path.toml").write_text('orbit = "sine"\nframes = 4\n')
    assert main(["cameras", "--config", str(tmp_path / "path.toml"), "--frames", "5", "--json", "-q"]) == 0
    elevations = [frame["elevation_deg"] for frame in json.loads(capsys.readouterr().out)["frames"]]
    assert len(elevations) == 5 and max(elevations) > 35


def test_a_former_name_in_a_settings_file_is_taken_with_a_note(tmp_path, capsys):
    (tmp_path / "orbit.toml").write_text("steps = 2\n")
    config = cli.parse("orbit", ["box.png", "-o", "out", "--config", str(tmp_path / "orbit.toml")])
    assert config.num_steps == 2
    assert "note:" in (said := capsys.readouterr().err) and "steps is now num_steps" in said


def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path, capsys):
    (tmp_path / "path.toml").write_text("frmaes = 4\n")
    assert main(["cameras", "--config", str(tmp_path / "path.toml")]) == 2
    assert "unknown key frmaes" in (said := capsys.readouterr().err) and "did you mean frames?" in said


def test_negative_numbers_are_values_and_not_flags(capsys):
    assert (
        main(["cameras", "--frames", "2", "--azimuths", "-30", "0", "--elevation", "-5", "-q", "--json"]) == 0
    )
    frame = json.loads(capsys.readouterr().out)["frames"][0]
    assert (frame["azimuth_deg"], frame["elevation_deg"]) == (330.0, -5.0)


# Results, errors and exit codes


def test_results_go_to_stdout_and_progress_to_stderr(verb, capsys):
    def run(config, progress):
        progress.stage("work")
        progress.note("a remark")
        return {"mesh": "out/mesh.glb", "psnr": 24.5}

    verb(run)
    assert main(["toy"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "mesh: out/mesh.glb\npsnr: 24.5\n" and captured.err == "work\na remark\n"


def test_a_warning_is_said_once_however_often_it_is_given(verb, capsys):
    def run(config, progress):
        for text in ("few frames", "few frames", "steep"):
            warnings.warn(text, CameraWarning, stacklevel=1)
        return {}

    verb(run)
    assert main(["toy"]) == 0
    assert capsys.readouterr().err == "warning: few frames\nwarning: steep\n"


def test_an_orbit_of_few_frames_is_warned_of_once(capsys, tmp_path):
    picture = str(ROOT / "examples" / "figure.png")
    assert main(["orbit", picture, "-o", str(tmp_path / "out"), "--frames", "12", "--dry-run"]) == 0
    assert capsys.readouterr().err.count("trained on 21 frames") == 1


def test_quiet_leaves_the_result_alone(verb, capsys):
    verb(lambda config, progress: progress.note("a remark") or {"a": [1, 2]})
    assert main(["toy", "-q", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": [1, 2]} and captured.err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("bad picture"), 2),
        (errors.CameraError("bad camera"), 2),
        (errors.WeightsError("no weights"), 3),
        (errors.OutOfMemory("too large"), 4),
        (errors.OutputError("disk full"), 5),
        (errors.CheckpointError("damaged"), 5),
        (errors.Preempted("saved"), 75),
        (errors.Cancelled("stopped"), 130),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 4),
        (OSError(28, "No space left on device", "out/frame.png"), 5),
        (ZeroDivisionError("division by zero"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_exit_code_and_shows_no_trace(verb, capsys, error, code):
    verb(raising(error))
    assert main(["toy"]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sv3d: ") and "Traceback" not in captured.err


def test_verbose_adds_the_trace(verb, capsys):
    verb(raising(errors.InputError("bad", hint="do this")))
    assert main(["toy", "-v"]) == 2
    assert "Traceback" in (said := capsys.readouterr().err) and said.endswith("sv3d: bad\nhint: do this\n")


def test_a_real_allocation_failure_ends_in_advice(verb, capsys):
    def run(config, progress):
        import jax.numpy as jnp

        return {"sum": float(jnp.zeros(1 << 50).sum())}

    verb(run)
    assert main(["toy"]) == 4
    assert "out of memory" in (said := capsys.readouterr().err) and "--decode-chunk 1" in said


def test_a_long_file_name_stays_on_one_line(capsys):
    name = "a-very-long-folder-name/" * 12 + "picture.png"
    assert main(["orbit", name, "-o", "out"]) == 2
    assert f"there is no {name}; looked in" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_comes_out_as_it_is():
    done = subprocess.run([*SV3D, "orbit", b"caf\xe9.png", "-o", "out"], capture_output=True)
    assert done.returncode == 2 and b"there is no caf\xe9.png; looked in" in done.stderr


def test_no_color_is_respected_on_a_terminal():
    terminal = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": ""}
    assert b"\x1b[" in on_a_terminal("cameras --help", terminal)
    assert b"\x1b[" not in on_a_terminal("cameras --help", {**terminal, "NO_COLOR": "1"})


def on_a_terminal(words, environment):
    """What a terminal gets to see of `sv3d WORDS`."""
    primary, secondary = pty.openpty()
    subprocess.run([*SV3D, *words.split()], stdout=secondary, stderr=secondary, env=environment)
    os.close(secondary)
    text = b""
    try:
        while part := os.read(primary, 65536):
            text += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(primary)
    return text


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m sv3d_jax cameras --frames 128 | head -1", shell=True, capture_output=True
    )
    assert b"frame" in done.stdout and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>/dev/full"])
def test_a_closed_or_full_stream_does_not_end_a_run(tmp_path, closed):
    command = f"{sys.executable} -m sv3d_jax data objects -o {tmp_path / 'out'} --count 1 {closed}"
    assert subprocess.run(command, shell=True).returncode == 0
    assert (tmp_path / "out" / "run.json").is_file()


def test_a_null_byte_in_a_path_is_refused_with_its_flag(tmp_path, capsys):
    (tmp_path / "a.toml").write_text('output = "a\\u0000b"\n')
    assert main(["data", "objects", "--config", str(tmp_path / "a.toml"), "--count", "1"]) == 2
    assert "--output" in (said := capsys.readouterr().err) and "null byte" in said


def test_a_file_name_cannot_steer_the_terminal(tmp_path, capsys):
    assert main(["reconstruct", str(tmp_path / "a\x1b[31m"), "-o", str(tmp_path / "out")]) == 2
    assert "a\\x1b[31m" in (said := capsys.readouterr().err) and "\x1b" not in said


# Devices


def test_a_device_that_is_absent_is_refused_with_what_there_is(verb):
    done = subprocess.run(
        [*SV3D, "doctor", "--device", "tpu:0", "--json"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert "--device tpu:0: this machine has no such device" in json.loads(done.stdout)["problems"][0]


@pytest.mark.parametrize("name", ["gpux", "cpu:one", "cpu:999"])
def test_a_device_name_that_cannot_be_is_refused(verb, capsys, name):
    verb(lambda config, progress: {}, uses_jax=True)
    assert main(["toy", "--device", name, "--no-compile-cache"]) == 2
    assert name in capsys.readouterr().err


def test_a_backend_named_in_the_environment_and_absent_is_explained():
    script = "from sv3d_jax.devices import select_device; select_device(None)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": "bogus"},
        capture_output=True,
        text=True,
    )
    assert "InputError: jax cannot start on JAX_PLATFORMS=bogus" in done.stderr


FAILING_DEVICE = """
import sys, jax, sv3d_jax.doctor
from sv3d_jax.cli import VERBS, Verb, main
from sv3d_jax.devices import check_devices
put = jax.device_put
def failing(value, device=None, **options):
    if getattr(device, "id", None) == 2:
        raise jax.errors.JaxRuntimeError("INTERNAL: the memory of the device is gone")
    return put(value, device, **options)
def run(config, progress):
    if sys.argv[1] == "never used":
        return {}
    if sys.argv[1] == "before the work":
        check_devices(jax.local_devices())
    jax.device_put = failing
    raise jax.errors.JaxRuntimeError("INTERNAL: something, somewhere")
if sys.argv[1] != "in the run":
    jax.device_put = failing
sv3d_jax.doctor.run_toy = run
VERBS["toy"] = Verb("", "doctor:DoctorConfig", "doctor:run_toy")
sys.exit(main(["toy", "--no-compile-cache", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("moment", ["before the work", "in the run"])
def test_one_failing_device_of_several_is_named(moment):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", FAILING_DEVICE, moment]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 of 4 devices fail: cpu:2 (cpu): INTERNAL: the memory of the device is gone" in done.stderr
    assert "hint: leave them out" in done.stderr


def test_a_failing_device_ends_no_run_on_another():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", FAILING_DEVICE, "never used"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_device_is_taken_where_one_fails():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", FAILING_DEVICE, "in the run", "--device", "cpu:1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "something, somewhere" in done.stderr and "devices fail" not in done.stderr


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path):
    script = (
        "import jax; from sv3d_jax.devices import enable_compile_cache; enable_compile_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.jit(lambda x: x + 1)(1.0); print(jax.config.jax_compilation_cache_max_size)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert 0 < int(done.stdout) < 10 << 30
    [versioned] = (tmp_path / "sv3d_jax").iterdir()
    import jaxlib

    assert versioned.name.endswith(jaxlib.__version__) and any(versioned.iterdir())


# Doctor


def test_doctor_reports_versions_devices_and_problems(capsys):
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (
        report["packages"]["jax"]
        and report["devices"]
        and report["ok"] == (code == 0) == (not report["problems"])
    )


def test_doctor_lists_the_ways_to_cut_out_an_object(capsys):
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["pictures"] == cutout.ways()


def test_doctor_fails_without_weights(tmp_path, monkeypatch, capsys):
    import sv3d_jax.weights

    monkeypatch.setattr(sv3d_jax.weights, "__file__", str(tmp_path / "__init__.py"))
    assert main(["doctor"]) == 1
    assert "the shipped weights are missing" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["logs", "logs/proc0.log"])
def test_the_log_of_another_process_does_not_go_through_a_link(tmp_path, place):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere" / ("proc0.log" if "/" in place else ""))
    with pytest.raises(OutputError, match="is a link"):
        cli._progress(argparse.Namespace(output=tmp_path / "out"), lead=False)
    assert not [*(tmp_path / "elsewhere").iterdir()]
