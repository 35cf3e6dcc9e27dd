"""`regard app`: the page."""

from typing import Annotated

import typer


def app(
    host: Annotated[
        str, typer.Option(help="Where it is served: this machine alone, unless told otherwise.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free one.", show_default="7860")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A folder or a name of the hub to choose from; can be given again.",
            show_default=False,
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Open a page in which to see where tokens go: heat maps, reasons, answers, with a picture of your own."""
    from regard.app import serve

    serve(host, port, model or [])
