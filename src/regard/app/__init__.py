"""`regard app`: a page to see where tokens go, in a browser, without any network (docs/app.md).

The extra `app` installs what it needs. Gradio is imported when a page is built, with its analytics off.
"""

import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from regard.app.service import Service
from regard.errors import DataError, ModelError

if TYPE_CHECKING:
    import gradio

HOST, FIRST_PORT, PORTS = "127.0.0.1", 7860, 100
LARGEST = 20_000_000  # bytes of a file
SESSIONS = 64  # whose pictures are kept
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build(models: Sequence[str] = (), *, free: bool = False, service: Service | None = None) -> "gradio.Blocks":
    """The page, to be launched with `settings()`.

    models: folders or hub names of Hugging Face models to choose from beside the pocket model. free: whether users may
    type others. service: by default one that loads when the page is first opened. Raises ModelError where Gradio is
    not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it asks its own servers then
    if find_spec("gradio") is None:
        raise ModelError("the app needs Gradio: pip install 'regard[app]'")
    from regard.app.page import page

    return page(tuple(models), free, service or Service())


def settings() -> dict[str, Any]:
    """What `launch` of the page is given beside a host and a port: its look, and its limits."""
    from regard.app.page import STYLE, theme

    return {
        "theme": theme(),
        "css_paths": [STYLE],
        "max_file_size": LARGEST,
        "state_session_capacity": SESSIONS,
        "footer_links": [],
        "quiet": True,
        "share": False,
        "ssr_mode": False,
    }


def serve(host: str = HOST, port: int | None = None, models: Sequence[str] = (), *, block: bool = True) -> str:
    """Serve the page and return its address; block: until the process is interrupted.

    port: by default the first free one from 7860. Users may name models of their own only on this machine. Raises
    DataError for an address that cannot be served, ModelError where Gradio is not installed.
    """
    place, service = _free_port(host, port), Service()
    page = build(models, free=host in _LOOPBACK, service=service)
    _, address, _ = page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=place,
        prevent_thread_lock=True,
        inbrowser=False,
        **settings(),
    )
    service.warm_up()
    if block:
        print(f"Open {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return address


def _free_port(host: str, port: int | None) -> int:
    """Raises DataError where there is none, or the host is not this machine."""
    family, reason = socket.AF_INET6 if ":" in host else socket.AF_INET, OSError()
    for place in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        try:
            with socket.create_server((host, place), family=family):
                return place
        except OSError as error:
            reason = error
    which = f"port {port} of {host}" if port is not None else f"any port of {host} from {FIRST_PORT}"
    raise DataError(f"cannot serve {which} ({reason.strerror}): give another --port or --host") from reason
