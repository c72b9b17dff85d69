"""`python -m sv3d_jax` is the `sv3d` command."""

import sys

from sv3d_jax.cli import main

sys.exit(main())
