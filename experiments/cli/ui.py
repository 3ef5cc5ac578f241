"""``biaswise ui``: the pages of MLflow on this machine."""

from argparse import ArgumentParser, Namespace

from experiments.cli.options import Command, OptionError


class ServeUi(Command):
    """Serve the MLflow UI until interrupted."""

    name = "ui"
    help = "start the MLflow UI on 127.0.0.1"
    example = "ui --port 5000"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--port", type=int, default=5000, help="(%(default)s)")
        parser.add_argument(
            "--host", default="127.0.0.1", help="address to listen on (%(default)s: only this machine)"
        )

    def run(self, arguments: Namespace) -> int:
        """Return the exit code of the server."""
        from experiments.terminal import Terminal
        from pipeline.tracking.mlflow_server import refuse_port, start_ui

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
        console.print(f"MLflow on http://{host}:{arguments.port}, Ctrl-C ends it", highlight=False)
        return start_ui(host, arguments.port)
