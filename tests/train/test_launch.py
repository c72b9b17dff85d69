"""The launch files are what their tools accept, and every command in them is one that `sv3d` understands."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate as validator
import pytest
import yaml

from sv3d_jax.cli import VERBS, parse
from sv3d_jax.train.plan import asked_mesh

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "train" / "launch"


def readme_lines() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (LAUNCH / "README.md").read_text(), flags=re.M | re.S)
    return "".join(blocks).splitlines()


def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def pod_job() -> dict:
    [job] = jobset()["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def sv3d_commands() -> list[list[str]]:
    """What follows `sv3d` wherever the launch files run it."""
    commands = [pod_job()["template"]["spec"]["containers"][0]["args"]]
    for line in readme_lines():
        words = shlex.split(line)
        if words[0] == "sv3d":
            commands.append(words[1:])
        elif "train/launch/slurm.sbatch" in words:
            commands.append(["train", *words[words.index("train/launch/slurm.sbatch") + 1 :]])
    return commands


@pytest.mark.parametrize("words", sv3d_commands(), ids=" ".join)
def test_every_command_has_verbs_and_flags_that_exist(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    verb = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
    parse(verb, words[len(verb.split()) :])


def test_readme_shows_the_whole_way():
    text = "\n".join(readme_lines())
    steps = [
        "data render",
        "data pack",
        "data check",
        "--plan",
        "slurm.sbatch",
        "kubectl",
        "--export",
        "convert",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


def test_every_file_of_the_folder_is_in_the_readme():
    linked = set(re.findall(r"\]\((?!\.\.)(\S+?)\)", (LAUNCH / "README.md").read_text()))
    assert linked | {"README.md"} == {file.name for file in LAUNCH.iterdir()}


def run_slurm(tmp_path, code, restarts=0):
    """The script with an `srun` that ends with a code; returns its own code, and what was asked of SLURM."""
    calls = tmp_path / "calls"
    for name, end in (("srun", code), ("scontrol", 0)):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/bash\necho {name} "$@" >> {shlex.quote(str(calls))}\nexit {end}\n')
        tool.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "17",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "--config", "a b.toml"], env=environment, capture_output=True
    )
    return done.returncode, calls.read_text().splitlines()


def test_the_slurm_script_is_bash_with_options_that_slurm_reads():
    script = LAUNCH / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # SLURM reads none after a command
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", "\n".join(lines), flags=re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # jax gives each process of a node one GPU
    assert "requeue" in options and options["signal"].startswith("TERM@")


@pytest.mark.parametrize(("code", "restarts", "again"), [(75, 50, True), (134, 0, True), (134, 10, False)])
def test_slurm_runs_again_what_was_saved_or_has_died(tmp_path, code, restarts, again):
    ended, calls = run_slurm(tmp_path, code, restarts)
    assert ended == code and calls[0] == "srun --kill-on-bad-exit=1 sv3d train --config a b.toml"
    assert calls[1:] == (["scontrol requeue 17"] if again else [])


@pytest.mark.parametrize("code", [0, 1, 2, 5])
def test_slurm_leaves_a_run_that_is_done_or_wrong(tmp_path, code):
    assert run_slurm(tmp_path, code)[1:] == (["srun --kill-on-bad-exit=1 sv3d train --config a b.toml"],)


# Fields of jobset.x-k8s.io/v1alpha2 by type, from the API reference of the project.
JOBSET = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend"),
        *("coordinator", "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies"),
    },
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "rule": {"name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"},
    "replicatedJob": {"name", "template", "replicas", "groupName", "dependsOn"},
}
ACTIONS = {
    *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    *("RestartJob", "RestartJobAndIgnoreMaxRestarts"),
}
REASONS = {
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"),
    "PodFailurePolicy",
}


def test_the_jobset_has_the_fields_of_its_api():
    given = jobset()
    assert (given["apiVersion"], given["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = given["spec"]["failurePolicy"]
    assert set(given) <= JOBSET[""] and set(given["spec"]) <= JOBSET["spec"]
    assert set(policy) <= JOBSET["failurePolicy"]
    for rule in policy["rules"]:
        assert set(rule) <= JOBSET["rule"] and rule["action"] in ACTIONS
        assert set(rule["onJobFailureReasons"]) <= REASONS
    for job in given["spec"]["replicatedJobs"]:
        assert set(job) <= JOBSET["replicatedJob"]


def test_the_job_of_the_jobset_passes_the_schema_of_kubernetes():
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sv3d"}, "spec": pod_job()}
    validator.validate(job, validator.latest_version(), strict=True)


def test_a_pod_failure_is_told_apart_by_the_exit_code():
    job = pod_job()
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # what a pod failure policy asks for
    codes = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == [{"containerName": pod["containers"][0]["name"], "operator": "In", "values": [75]}]


def test_pods_chips_and_mesh_of_the_slice_agree():
    job = pod_job()
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert (
        job["parallelism"]
        == job["completions"]
        == chips // container["resources"]["limits"]["google.com/tpu"]
    )
    config = parse("train", container["args"][1:])
    sizes = asked_mesh(config.mesh)
    assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == chips
    assert config.batch_size % (sizes["data"] * sizes["fsdp"]) == 0


def instructions() -> list[tuple[str, str]]:
    text = (LAUNCH / "Dockerfile").read_text()
    return [
        (line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line and line[0] != "#"
    ]


def test_the_dockerfile_copies_what_the_package_is_built_of():
    copied = [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    needed = {
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "sv3d_jax",
        "infer",
        "recon",
        "train",
        "configs",
    }
    assert set(copied) == needed


def test_the_dockerfile_is_in_order_and_installs_extras_that_exist():
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert names.index("FROM") < names.index("WORKDIR") < names.index("COPY") < names.index("RUN")
    values = dict(instructions())
    assert json.loads(values["ENTRYPOINT"]) == [
        "sv3d"
    ]  # not through a shell, which would keep the signal to itself
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"\[\$\{EXTRA\},([\w,]+)\]", values["RUN"])[1].split(",")
    assert {"cuda", "tpu", *extras} <= set(project["optional-dependencies"])


@pytest.mark.parametrize(("tool", "file"), [("hadolint", "Dockerfile"), ("shellcheck", "slurm.sbatch")])
def test_a_linter_has_nothing_to_say(tool, file):
    program = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    assert program, f"{tool} is in the `test` extra"
    done = subprocess.run([program, LAUNCH / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
