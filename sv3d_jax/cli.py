"""The `sv3d` command: verbs, flags and exit codes. The modules of a verb are imported only when that verb runs."""

import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from sv3d_jax.config import nearest, to_plain
from sv3d_jax.errors import Cancelled, InputError, OutOfMemory, OutputError, SV3DError, is_out_of_memory
from sv3d_jax.flags import read_flags
from sv3d_jax.io.names import printable
from sv3d_jax.names_of_flags import speaking_of_flags


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: its settings, its function, and the input paths that must exist.

    `config` and `run` name objects as "module:name" inside the package.
    """

    help: str
    config: str
    run: str
    inputs: Mapping[str, str] = field(default_factory=dict)  # settings, and a kind of `io/folders.py`
    uses_jax: bool = True  # from its first line on; others import it themselves when their inputs are checked
    prints: bool = False  # prints its result itself, except with --json
    processes: bool = False  # may run as several processes, of which the first prints
    waits: bool = False  # waits for each program of the device before it starts the next


VERBS = {
    "generate": Verb(
        "pictures to orbits and meshes",
        "infer.config:GenerateConfig",
        "infer.generate:run_generate",
        inputs={"images": "pictures", "mask": "masks"},
        uses_jax=False,
    ),
    "orbit": Verb(
        "pictures to orbits: frames, cameras and a video",
        "infer.config:OrbitConfig",
        "infer.generate:run_orbit",
        inputs={"images": "pictures", "mask": "masks"},
        uses_jax=False,
    ),
    "bench": Verb(
        "measure how fast a model samples on this device", "infer.config:BenchConfig", "infer.bench:run_bench"
    ),
    "reconstruct": Verb(
        "an orbit to a mesh",
        "recon.config:ReconstructVerbConfig",
        "recon.reconstruct:run_reconstruct",
        inputs={"orbit_dir": "orbits"},
    ),
    "cameras": Verb(
        "print, plot or write a camera path",
        "cameras.config:CamerasConfig",
        "cameras.config:run_cameras",
        uses_jax=False,
        prints=True,
    ),
    "convert": Verb(
        "weights and training runs to safetensors or Orbax",
        "weights.config:ConvertConfig",
        "train.convert:run_convert",
    ),
    "train": Verb(
        "train a part of a model",
        "train.config:TrainConfig",
        "train.loop:run_train",
        processes=True,
        waits=True,
    ),
    "data objects": Verb(
        "make procedural objects, one GLB each",
        "train.data.config:ObjectsConfig",
        "train.data.objects:run_objects",
        uses_jax=False,
    ),
    "data render": Verb(
        "meshes to rendered orbits",
        "train.data.config:RenderConfig",
        "train.data.render:run_render",
        inputs={"meshes": "meshes", "hdr": "environment maps"},
    ),
    "data import": Verb(
        "scenes of Blender, nerfstudio, instant-ngp or COLMAP to orbit folders",
        "train.data.config:ImportConfig",
        "train.data.scenes:run_import",
        inputs={"orbits": "scenes"},
        uses_jax=False,
    ),
    "data pack": Verb(
        "orbit folders to record shards for training",
        "train.data.config:PackConfig",
        "train.data.pack:run_pack",
        inputs={"orbits": "orbit folders", "validation": "orbit folders"},
    ),
    "data check": Verb(
        "find the defects of shards and orbit folders",
        "train.data.config:CheckConfig",
        "train.data.check:run_check",
        inputs={"folder": "shards and orbits"},
        uses_jax=False,
    ),
    "eval orbit": Verb(
        "compare two orbits: PSNR, SSIM, LPIPS",
        "metrics.config:EvalOrbitConfig",
        "metrics.images:run_eval_orbit",
    ),
    "eval mesh": Verb(
        "compare two meshes: distance, F-score, IoU",
        "metrics.config:EvalMeshConfig",
        "metrics.geometry:run_eval_mesh",
        uses_jax=False,
    ),
    "doctor": Verb(
        "report what works on this machine: versions, devices, video encoder, disk, weights",
        "doctor:DoctorConfig",
        "doctor:run_doctor",
        uses_jax=False,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one `sv3d` command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # prints file names that are not UTF-8 unchanged
    with speaking_of_flags():
        return _run_and_report(words, verbose="-v" in words or "--verbose" in words)


def _run_and_report(words: list[str], verbose: bool) -> int:
    """The exit code of a run, whose errors are printed."""
    try:
        return _run(words)
    except SystemExit as stop:  # from the parser, which has printed the reason
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return _report(Cancelled("stopped; finished files are kept"), verbose)
    except BrokenPipeError:  # the program that reads our output has ended
        # Python flushes stdout once more at exit, which would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SV3DError as error:
        return _report(error, verbose)
    except Exception as error:
        return _report(_explained(error), verbose)


def _run(words: list[str]) -> int:
    name, rest = _split_verb(words)
    verb = VERBS[name]
    config = parse(name, rest)
    _check_inputs(verb, config)

    lead = True
    if verb.processes:
        from sv3d_jax.parallel.devices import start_processes

        lead = start_processes()
    with warnings.catch_warnings(), _progress(config, lead) as progress, ExitStack() as stack:
        said = set()

        def say_once(message, *_) -> None:
            if str(message) not in said:
                said.add(str(message))
                progress.note(f"warning: {message}")

        warnings.showwarning = say_once
        if hasattr(config, "camera_path"):
            config.camera_path()
        if verb.uses_jax:
            from sv3d_jax.devices import enable_compile_cache, open_device, run_in_calling_thread

            # Worker processes open the device themselves; opening it here too would only take memory from them.
            if not getattr(config, "workers", 0):
                if verb.waits:
                    run_in_calling_thread()
                open_device(config.device, config.compile_cache)
                from sv3d_jax.programs import loading_ahead

                stack.enter_context(loading_ahead((name, config.without_inputs())))
            elif config.compile_cache:
                enable_compile_cache()  # says once, and not in each worker, if its folder cannot be used
        result = _named(verb.run)(config, progress)
    if lead and (config.json or not verb.prints):
        _print_result(result, config.json)
    return 0 if result.get("ok", True) else 1


def _progress(config: Any, lead: bool) -> Any:
    """Progress on stderr for the first process; the others write to logs/procN.log in the output folder."""
    from sv3d_jax.progress import NullProgress, Progress

    if lead:
        return NullProgress() if config.quiet else Progress()
    import jax

    from sv3d_jax.io.outputs import open_log

    return Progress(stream=open_log(config.output, f"proc{jax.process_index()}.log"))


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The settings of the verb `name`: defaults, then the file of --config, then flags."""
    return read_flags(_named(VERBS[name].config), name, arguments)


def _split_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb, which is one word or two, and the arguments after it. Prints the help or version if asked."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview(VERBS), file=sys.stdout if words else sys.stderr)
        raise SystemExit(0 if words else 2)
    if words[0] in ("-V", "--version", "version"):
        from sv3d_jax import __version__

        print(f"sv3d {__version__}")
        raise SystemExit(0)
    for length in (2, 1):
        if (name := " ".join(words[:length])) in VERBS:
            return name, words[length:]
    group = {name: verb for name, verb in VERBS.items() if name.startswith(words[0] + " ")}
    if not group:
        raise InputError(f"there is no verb {words[0]}", hint=nearest(words[0], [*VERBS, "help", "version"]))
    if len(words) == 1 or words[1] in ("-h", "--help"):
        print(_overview(group), file=sys.stdout if len(words) > 1 else sys.stderr)
        raise SystemExit(0 if len(words) > 1 else 2)
    wrong = " ".join(words[:2])
    raise InputError(f"there is no verb {wrong}", hint=nearest(wrong, list(group)))


def _overview(verbs: Mapping[str, Verb]) -> str:
    lines = [f"  sv3d {name:<13} {verb.help}" for name, verb in verbs.items()]
    return "\n".join(
        ["usage: sv3d VERB [OPTIONS], and sv3d help VERB for its options", "", *lines, "", EXIT_CODES]
    )


EXIT_CODES = (
    "exit codes: 0 done, 1 unexpected or defects found, 2 usage or bad input, 3 weights missing or wrong,\n"
    "4 out of memory, 5 disk full, output not writable or in use by another run,\n"
    "75 stopped by SIGTERM (run again), 130 Ctrl-C"
)


def _named(place: str) -> Any:
    """The object at `module:name` inside the package."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"sv3d_jax.{module}"), name)


def _check_inputs(verb: Verb, config: Any) -> None:
    """Raise an SV3DError for files that are absent or cannot be what they should, before anything slow starts."""
    for name, kind in verb.inputs.items():
        value = getattr(config, name)
        for path in value if isinstance(value, tuple) else (value,):
            if not path.exists():
                raise _named("io.folders:absent")(path, kind)
    config.check_inputs()


def _explained(error: Exception) -> SV3DError:
    """An unexpected error of Python, jax or the system as an `SV3DError` with its exit code."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    is_of_jax = isinstance(error, RuntimeError) and "jax" in sys.modules
    if is_out_of_memory(error):
        explained: SV3DError = OutOfMemory(
            f"out of memory: {text}",
            hint="smaller --size or fewer --frames, --dtype bfloat16, --decode-chunk 1, or a larger device",
        )
    elif isinstance(error, OSError):
        explained = OutputError(f"{error.filename or ''}: {error.strerror or text}".removeprefix(": "))
    elif is_of_jax and (failure := _named("devices:device_failure")()):
        explained = failure
    else:
        explained = SV3DError(f"{type(error).__name__}: {text}", hint="-v shows the traceback")
    explained.__cause__ = error
    return explained


def _report(error: SV3DError, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(error)
    with suppress(OSError, ValueError):  # stderr is closed or full; the exit code tells
        print(printable(f"sv3d: {error.message}"), file=sys.stderr)
        if error.hint:
            print(printable(f"hint: {error.hint}"), file=sys.stderr)
    return error.exit_code


def _print_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the result as JSON, or as one line of `name: value` for each entry."""
    plain = to_plain(result)
    print(json.dumps(plain, indent=1) if as_json else "\n".join(_lines(plain)))


def _lines(value: Any, name: str = "") -> list[str]:
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _lines(item, f"{name}.{key}".lstrip("."))]
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return [line for index, item in enumerate(value) for line in _lines(item, f"{name}.{index}")]
    if isinstance(value, float):
        value = f"{value:.5g}"
    return [f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"]
