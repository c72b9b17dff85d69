"""Messages speak of flags; in Python code the same settings are arguments."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

ARGUMENTS = {"frames": "num_frames", "elevation": "elevations_deg", "azimuths": "azimuths_deg"}
"""Arguments of Python that have another name than the flag."""
SAME_NAMES = (
    "num-steps guidance cfg-min cfg-max guidance-interval cache-interval solver churn size background frame-ratio mask"
    " box decode-chunk seed dtype low-memory quantize cameras variant method preset lpips sds stage"
).split()
"""Flags that are arguments of `Pipeline`, `reconstruct` or one of their options, with the same name."""
_WORDS = "auto|alpha|remove|keep|euler|dpmpp_2m|float32|bfloat16|preview|fast|quality|coarse|fine|bake|sv3d|hull|nerf"
_NUMBER = r"-?\d[\d.e+-]*(?=[\s:,;)]|$)"
_FILE = r"[\w/-]+\.[a-z]\w*"
_VALUE = rf"{_NUMBER}(?: {_NUMBER})*|[A-Z]\w*(?: [A-Z]\w*)*|{_FILE}|(?:{_WORDS})\b"
_FLAG = re.compile(rf"--(?P<name>[a-z][a-z-]*)(?![\w.-])(?: (?P<value>{_VALUE}))?")
_in_command = False


@contextmanager
def speaking_of_flags() -> Iterator[None]:
    """Inside it, in the `sv3d` command, messages stay as they are."""
    global _in_command
    before, _in_command = _in_command, True
    try:
        yield
    finally:
        _in_command = before


def for_reader(text: str) -> str:
    """A message about settings for whoever gave them: as it is in the `sv3d` command, else with Python's arguments.

    "--cfg-max 200: must lie" becomes "cfg_max=200: must lie", "--background keep" background="keep".
    """
    return text if _in_command else _FLAG.sub(_as_argument, text)


def _as_argument(match: re.Match) -> str:
    flag, value = match["name"], match["value"]
    if flag not in ARGUMENTS and flag not in SAME_NAMES:
        return match[0]
    name = ARGUMENTS.get(flag, flag.replace("-", "_"))
    if value is None:
        return name
    if re.fullmatch(f"{_WORDS}|{_FILE}", value):
        return f'{name}="{value}"'
    return f"{name}=({value.replace(' ', ', ')})" if " " in value else f"{name}={value}"
