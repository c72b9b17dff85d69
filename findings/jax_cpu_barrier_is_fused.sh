#!/bin/sh
# On a CPU, jax 0.10.2 computes across `jax.lax.optimization_barrier`: 1,000 sines before it become 10,000 behind it.
#
# The compiler for CPUs removes the barrier before it fuses. Here two values of an array are looked up in each of 5,000
# places; the compiled function has the sine in the same loop as the lookups, with the barrier as without it, so each is
# computed anew for each lookup. Seen with Python 3.11 on Linux. Exits with 0 while this is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp


def looked_up(values, places):
    sines = jax.lax.optimization_barrier(jnp.sin(values))
    return sines[places[:, 0]] * sines[places[:, 1]]


lowered = jax.jit(looked_up).lower(jnp.ones(1000), jnp.zeros((5000, 2), jnp.int32))
compiled = lowered.compile().as_text()
together = [
    body for body in re.split(r"\n}\n", compiled) if re.search(r" sine\(", body) and re.search(r" gather\(", body)
]
print("barrier in the program that is handed to the compiler:", "optimization_barrier" in lowered.as_text())
print("barrier in the compiled program:", "opt-barrier" in compiled)
print("computations with both the sine and a lookup:", len(together))
sys.exit(not together)
PYTHON
