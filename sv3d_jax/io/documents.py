"""Reading JSON files that users provide."""

import json
from pathlib import Path
from typing import Any

from sv3d_jax.errors import InputError


def read_json(path: Path, absent_hint: str | None = None) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Raises InputError, which names the file, if it does not exist (with `absent_hint`), cannot be opened, is not JSON,
    or is nested too deeply or has too long integers for the parser.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", hint=absent_hint) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON that can be read", hint=f"look at line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON that can be read") from None


def read_frames(path: Path, absent_hint: str | None = None) -> dict[str, Any]:
    """The content of a JSON file that must be an object with a list "frames" of at least one view.

    Nothing else is checked. Raises InputError, which names the file.
    """
    document = read_json(path, absent_hint)
    frames = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f'{path} needs a list "frames" of at least one view')
    return document
