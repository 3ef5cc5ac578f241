"""``biaswise study submit`` and ``biaswise cluster``: Ray jobs, cluster files, spot notices."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from experiments.cli.options import Command
from experiments.cli.study.chosen import add_study, chosen_study
from experiments.cli.study.run_options import add_run_options, run_words
from pipeline.printable import say
from pipeline.storage.paths import RUNTIME_ENV


class SubmitStudy(Command):
    """Send a study to a cluster, show its log, return whether it succeeded."""

    name = "submit"
    help = "run a study on a Ray cluster as a job; exit code 0 if it succeeded, 130 if it was stopped"
    example = "study submit demo --address http://127.0.0.1:8265"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        add_study(parser)
        add_run_options(parser)
        parser.add_argument(
            "--address", help="job server (RAY_API_SERVER_ADDRESS, or port 8265 of this machine)"
        )
        parser.add_argument("--home", default="", help="BIASWISE_HOME of the job (as the cluster has it)")
        parser.add_argument("--no-wait", action="store_true", help="do not wait for its end")

    def run(self, arguments: Namespace) -> int:
        """Return 0 if the job succeeded or was not waited for, 130 if it was stopped, else 1."""
        chosen = chosen_study(arguments)  # refuses what is wrong before Ray is imported
        from experiments.cluster.job_submission import default_address, follow, send, upload

        words = ["study", "run", Path(chosen.word).name, *run_words(arguments)]
        address = arguments.address or default_address()
        with upload(chosen, arguments.home) as environment:
            job = send(words, address, environment)
        _write(f"job {job.name} at {address}: `ray job logs -f {job.name}`, `ray job stop {job.name}`\n")
        if arguments.no_wait:
            return 0
        try:
            return follow(job, _write)
        except KeyboardInterrupt:
            _write(f"\nno longer watching; job {job.name} goes on until `ray job stop {job.name}`\n")
            return 0


class CheckCluster(Command):
    """Check cluster files without a cloud."""

    name = "check"
    help = "check cluster.yaml and ray-job.yaml without a cloud"
    example = "cluster check cluster.yaml"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("file", nargs="*", help="files (cluster.yaml and ray-job.yaml)")

    def run(self, arguments: Namespace) -> int:
        """Return 1 if a file has faults."""
        from experiments.cluster.check import check_cluster

        number = 0
        for name in arguments.file or ("cluster.yaml", "ray-job.yaml"):
            faults = check_cluster(Path(name))
            number += len(faults)
            for sentence in faults or ["nothing wrong"]:
                say(f"{name}: {sentence}")
        return 1 if number else 0


class ShowRuntimeEnv(Command):
    """Print where the runtime environment of a Ray job is."""

    name = "runtime-env"
    help = "print the path of runtime_env.yaml, which every Ray job of this project gets"
    example = "cluster runtime-env"

    def run(self, arguments: Namespace) -> int:
        """Return 0."""
        say(str(RUNTIME_ENV))
        return 0


class WatchCluster(Command):
    """Wait for the cloud's notice and drain this machine."""

    name = "watch"
    help = "drain this machine's Ray node when the cloud gives notice; ends at once on other machines"
    example = "cluster watch --address 10.0.0.5:6379"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--address", required=True, help="host:port of the cluster")
        parser.add_argument("--node-id", default="", help="Ray's id of the node (the one on this machine)")

    def run(self, arguments: Namespace) -> int:
        """Return when the node is drained, or at once if this is no spot machine."""
        from experiments.cluster.preemption_watch import watch

        return watch(arguments.address, arguments.node_id, say)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
