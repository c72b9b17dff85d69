"""The methods of reconstruction by name. Nothing here imports jax.

A method from outside the package is a list of functions:

    def hull(context: Context, state: State) -> State:
        return replace(state, mesh=...)

    register_method(Method("hull", (Stage("hull", hull),)))
    reconstruct(orbit, ReconstructConfig(method="hull"))

or, without a name in the table, `reconstruct(orbit, method=Method("hull", ...))`. A method with settings of its own has
a dataclass for them, `Method.recipe`, and with presets it has to be registered:

    ReconstructConfig(method="hull", recipe={"hull": {"resolution": 64}})
"""

from sv3d_jax.config import nearest
from sv3d_jax.errors import InputError
from sv3d_jax.recon.stages import Method
from sv3d_jax.recon.sv3d import SV3D

METHODS: dict[str, Method] = {SV3D.name: SV3D}


def register_method(method: Method) -> None:
    """Make a method known to `--method` and `ReconstructConfig`. Raises ValueError where its name is taken."""
    if METHODS.get(method.name, method) is not method:
        raise ValueError(f"there is a reconstruction method {method.name} already")
    METHODS[method.name] = method


def find_method(method: str | Method) -> Method:
    """The method of a name, or a method as it is. Raises InputError for an unknown name."""
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise InputError(f"--method {method}: there is no such method", hint=nearest(method, list(METHODS)))
    return METHODS[method]
