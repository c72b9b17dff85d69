"""The processes of a run and the mesh of all their devices."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sv3d_jax.errors import InputError, SV3DError
from sv3d_jax.parallel.rules import AXES, batch_sharding

START_TIMEOUT_S = 300


def start_processes() -> bool:
    """Connect to the other processes of this run, if any; true for the lead process, which writes and prints.

    Call it before any computation. SLURM (`srun`, one process per task), Kubernetes and Cloud TPU pods are detected;
    elsewhere set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Raises SV3DError if the
    processes do not find each other, InputError for a variable that is not a number.
    """
    environment = os.environ
    if not jax.distributed.is_initialized() and _has_peers(environment):
        given = {}
        if address := environment.get("JAX_COORDINATOR_ADDRESS"):
            given["coordinator_address"] = address
            for name, variable in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
                if variable in environment:
                    given[name] = _whole_number(variable, environment[variable])
        try:
            jax.distributed.initialize(**given, initialization_timeout=START_TIMEOUT_S)
        except (RuntimeError, ValueError) as error:
            raise SV3DError(
                f"the processes of this run did not find each other: {str(error).splitlines()[0]}",
                hint="start the same command on every host; if they are not detected, set JAX_COORDINATOR_ADDRESS, "
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID",
            ) from error
    # Asking jax for the index of a single process would open its devices before --device is applied.
    return not jax.distributed.is_initialized() or is_lead()


def is_lead() -> bool:
    """Whether this is the lead process, which writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until every process has reached this call; `what` names the place."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def same_for_all(value: bool) -> bool:
    """The value of the lead process, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def mesh_shape(text: str, devices: int) -> dict[str, int]:
    """Sizes of the mesh axes from text such as "data=2,fsdp=4". Without data, it takes the remaining devices.

    Raises InputError for an unknown axis, or if the product of the sizes is not the number of devices.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES or not re.fullmatch("[1-9][0-9]{0,5}", size) or name in sizes:
            raise InputError(
                f"--mesh {text}: {part} is not an axis with its size", hint="--mesh data=2,fsdp=4,tensor=1"
            )
        sizes[name] = int(size)
    others = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    sizes.setdefault("data", max(1, devices // others))
    if sizes["data"] * others != devices:
        raise InputError(f"--mesh {text}: {sizes['data'] * others} devices are needed, there are {devices}")
    return {axis: sizes.get(axis, 1) for axis in AXES}


def device_mesh(text: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """The given devices (default: all of all processes) as a mesh of the shape that `mesh_shape` reads from `text`."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(text, len(devices))
    return Mesh(np.array(devices).reshape(tuple(shape.values())), AXES)


class LocalRows(NamedTuple):
    """The rows of a global batch that one process holds: of `parts` equal parts those from `first` to `last - 1`."""

    first: int
    last: int
    parts: int

    def __call__(self, rows: int) -> slice:
        """The slice of a batch of `rows`; all of it if `rows` is not divisible by `parts`."""
        if rows % self.parts:
            return slice(0, rows)
        return slice(self.first * rows // self.parts, self.last * rows // self.parts)


def local_rows(mesh: Mesh) -> LocalRows:
    """The rows that this process loads, as plain numbers that can be sent to data-loading processes."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    places = batch_sharding(mesh, parts).addressable_devices_indices_map((parts,)).values()
    held = sorted({place[0].indices(parts)[0] for place in places}) if parts > 1 else [0]
    if held != list(range(held[0], held[-1] + 1)):
        raise SV3DError("the devices of a process hold rows of the batch that are not contiguous")
    return LocalRows(held[0], held[-1] + 1, parts)


def global_batch(batch: Any, mesh: Mesh, rows: int) -> Any:
    """One global batch of `rows` rows, split over the mesh, from the rows that each process has loaded."""
    sharding = batch_sharding(mesh, rows)

    def place(leaf):
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), (rows, *np.shape(leaf)[1:]))

    return jax.tree.map(place, batch)


def place_tree(tree: Any, shardings: Any) -> Any:
    """Split arrays, of which every process has a full copy, by the shardings."""

    def place(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree, shardings)


def whole_on_host(tree: Any) -> Any:
    """Full copies of sharded arrays as numpy arrays, on every process."""

    def fetch(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)


def _has_peers(environment: Mapping[str, str]) -> bool:
    """Whether the environment variables describe a run of several processes."""
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return (
        "JAX_COORDINATOR_ADDRESS" in environment
        or ("SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1)
        or ("KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment)
        or len(hosts.split(",")) > 1
    )


def _whole_number(name: str, text: str) -> int:
    if not text.isdigit():
        raise InputError(f"{name} is {text!r}: expected a whole number")
    return int(text)
