"""``biaswise ui``: the pages of MLflow on this machine."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from experiments.cli.options import Command, OptionError
from pipeline.tracking.mlflow_server import PORT

if TYPE_CHECKING:
    from experiments.terminal import Terminal


class ServeUi(Command):
    """Serve the MLflow UI until interrupted."""

    name = "ui"
    help = "start the MLflow UI on 127.0.0.1"
    example = "ui --port 5000"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--port", type=int, default=PORT, help="(%(default)s)")
        parser.add_argument(
            "--host", default="127.0.0.1", help="address to listen on (%(default)s: only this machine)"
        )

    def run(self, arguments: Namespace) -> int:
        """Return the exit code of the server."""
        from experiments.terminal import Terminal
        from pipeline.tracking.mlflow_server import refuse_port, served_uri, start_ui

        console, host = Terminal(), arguments.host
        if not 0 < arguments.port < 65536:
            raise OptionError(f"--port {arguments.port}: expected 1 to 65535")
        if host not in ("127.0.0.1", "localhost", "::1"):
            console.print(
                f"warning: --host {host} lets everybody who reaches this machine read and change the runs; "
                "there is no password",
                style="yellow",
                soft_wrap=True,
            )
        refuse_port(host, arguments.port)
        uri = served_uri()
        pages = f"http://{f'[{host}]' if ':' in host else host}:{arguments.port}"
        _show_links(uri, pages, console)
        console.print(f"MLflow on {pages}, Ctrl-C ends it", highlight=False)
        return start_ui(host, arguments.port, uri)


def _show_links(uri: str, pages: str, console: "Terminal") -> None:
    """Print where the trials of the latest studies are seen; MLflow's own first page shows none of them."""
    from pipeline.tracking.mlflow_store import STORE_ERRORS, open_store, short_reason
    from pipeline.tracking.saved_view import latest_views

    try:
        with open_store(uri) as client:
            views = latest_views(client, pages)
    except STORE_ERRORS as error:
        text = f"warning: the studies in MLflow cannot be listed ({short_reason(error)})"
        console.print(text, style="yellow", soft_wrap=True)
        return
    console.print(
        "Studies as tables of their trials, the latest first:" if views else "There is no study yet."
    )
    for name, link in views.items():
        console.print(f"  {name}: {link}", highlight=False, soft_wrap=True)
