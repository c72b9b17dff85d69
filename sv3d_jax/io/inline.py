"""Pictures and animations that notebooks show for a value: HTML that needs nothing else."""

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from sv3d_jax.io.video import encode_video
from sv3d_jax.progress import in_notebook


def picture_html(pixels: np.ndarray, caption: str) -> str:
    """A picture (h, w, 3), uint8, above its caption."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _figure("image/png", buffer.getvalue(), caption)


def animation_html(frames: np.ndarray, caption: str, fps: float = 14) -> str:
    """Frames (f, h, w, 3), uint8, that play without end, above their caption."""
    return _figure("image/webp", encode_video(frames, fps, "webp"), caption)


def show(value: Any, picture: np.ndarray) -> None:
    """Show a value in a notebook as its HTML; elsewhere its picture (h, w, 3), uint8, by the system's viewer."""
    if in_notebook():
        from IPython.display import display

        display(value)
    else:
        Image.fromarray(picture).show()


def _figure(kind: str, content: bytes, caption: str) -> str:
    data, text = base64.b64encode(content).decode("ascii"), html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:{kind};base64,{data}"><figcaption>{text}</figcaption></figure>'
    )
