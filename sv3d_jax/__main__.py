"""The `sv3d` command, also as `python -m sv3d_jax`."""

import sys

from sv3d_jax import signals


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    signals.install()  # before the slower imports
    from sv3d_jax.cli import main as run

    signals.end_with(code := run())
    return code


if __name__ == "__main__":
    sys.exit(main())
