"""Rules for cluster.yaml that Ray's own validation lacks. Each rule yields one sentence per error."""

import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from experiments.cluster.file_rules import LOOPBACK, Config, run_rules, words, wrong_version
from pipeline.json_files import JsonError
from pipeline.yaml_files import parse_yaml

OPERATORS = ";&|\n"
"""Characters with which a shell ends a command."""

DROPPED = ("min_workers", "initial_workers", "autoscaling_mode", "target_utilization_fraction")
"""Top-level keys of old versions; Ray ignores some of them without an error."""

AWS_KEYS = words(
    "BlockDeviceMappings CapacityReservationSpecification CpuOptions CreditSpecification "
    "DisableApiTermination EbsOptimized EnclaveOptions HibernationOptions IamInstanceProfile ImageId "
    "InstanceInitiatedShutdownBehavior InstanceMarketOptions InstanceType KernelId KeyName LaunchTemplate "
    "LicenseSpecifications MaintenanceOptions MetadataOptions Monitoring NetworkInterfaces Placement "
    "PrivateDnsNameOptions PrivateIpAddress RamdiskId SecurityGroupIds SubnetId SubnetIds TagSpecifications "
    "UserData"
)
"""Parameters of EC2's RunInstances, and SubnetIds, which Ray adds."""

GCP_KEYS = words(
    "advancedMachineFeatures canIpForward confidentialInstanceConfig description disks displayDevice "
    "guestAccelerators labels machineType metadata minCpuPlatform networkInterfaces reservationAffinity "
    "resourcePolicies scheduling serviceAccounts shieldedInstanceConfig sourceInstanceTemplate "
    "sourceMachineImage tags"
)
"""Fields of Compute Engine's instances.insert."""

_SIZES = {"xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "16xlarge": 64}
AWS_GPUS = {
    **{f"{family}.{size}": (cpus, 1) for family in ("g5", "g6", "g6e") for size, cpus in _SIZES.items()},
    **{f"{family}.12xlarge": (48, 4) for family in ("g5", "g6", "g6e")},
    **{f"{family}.24xlarge": (96, 4) for family in ("g5", "g6", "g6e")},
    **{f"{family}.48xlarge": (192, 8) for family in ("g5", "g6", "g6e", "p5", "p5e", "p5en", "p6-b200")},
    **{"p5.4xlarge": (16, 1), "p4d.24xlarge": (96, 8), "p4de.24xlarge": (96, 8)},
}
"""EC2 instance type -> vCPUs, GPUs (aws.amazon.com/ec2/instance-types)."""


def check_ray_up(config: Config, folder: Path) -> Iterator[str]:
    """Yield the errors of a file for ``ray up`` that has passed Ray's validation, one sentence each.

    Args:
        config: the file's content.
        folder: of the file; ``ray up`` is run there.
    """
    yield from run_rules(
        [
            ("provider or available_node_types", _keys(config)),
            ("max_workers, min_workers or idle_timeout_minutes", _limits(config)),
            ("available_node_types", _machines(config)),
            ("available_node_types", _market(config)),
            ("the head's type or head_start_ray_commands", _head(config)),
            ("worker_start_ray_commands", _workers(config)),
            ("one of the lists of commands", _servers(config)),
            ("provider.security_group", _network(config)),
            ("file_mounts or docker", _mounts(config, folder)),
        ]
    )


def _types(config: Config) -> dict[str, Config]:
    """Return the worker types."""
    types = config.get("available_node_types", {})
    return {name: kind for name, kind in types.items() if name != config.get("head_node_type")}


def _is_spot(kind: Config) -> bool:
    node = kind["node_config"]
    aws = (node.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
    scheduling = node.get("scheduling") or []
    gcp = any(s.get("provisioningModel") == "SPOT" or s.get("preemptible") for s in scheduling)
    return aws or gcp


def _keys(config: Config) -> Iterator[str]:
    for key in (key for key in DROPPED if key in config):
        yield f"{key}: not a key of this Ray version, which may ignore it; set it per node type"
    if "available_node_types" not in config:
        yield "available_node_types: missing; Ray would launch machines of its own choice"
    provider = config["provider"].get("type")
    known = {"aws": AWS_KEYS, "gcp": GCP_KEYS}.get(provider)
    if known is None:
        return
    for name, kind in config.get("available_node_types", {}).items():
        for key in kind["node_config"].keys() - known:
            close = get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"available_node_types.{name}.node_config.{key}: {provider} knows no such key{hint}"


def _limits(config: Config) -> Iterator[str]:
    limit = config.get("max_workers", 2)  # Ray's default
    for name, kind in _types(config).items():
        at = f"available_node_types.{name}"
        low, high = kind.get("min_workers", 0), kind.get("max_workers", limit)
        if low > high:
            yield f"{at}: min_workers {low} is above max_workers {high}"
        if high > limit:
            yield f"{at}.max_workers is {high}, the cluster's max_workers {limit}; the rest never start"
        if low > 0:
            yield f"{at}.min_workers is {low}; expected 0: these machines would be billed while no trial runs"
    idle = config.get("idle_timeout_minutes", 5)
    if not 1 <= idle <= 60:
        yield (
            f"idle_timeout_minutes is {idle}; expected 1 to 60: less loses the machine between two trials, "
            "more bills for nothing"
        )


def _machines(config: Config) -> Iterator[str]:
    """Compare the resources that a node type declares with those of its machine."""
    for name, kind in config.get("available_node_types", {}).items():
        at, has = f"available_node_types.{name}", kind["resources"]
        machine = kind["node_config"].get("InstanceType", "")
        cpus, gpus = AWS_GPUS.get(machine, (None, None))
        if gpus is not None and has.get("GPU", 0) != gpus:
            yield f"{at}.resources.GPU is {has.get('GPU', 0)}; {machine} has {gpus}"
        if cpus is not None and has.get("CPU", 0) > cpus:
            yield f"{at}.resources.CPU is {has['CPU']}; {machine} has {cpus}"
        if gpus is None and re.match(r"[cmrt]\d", machine) and has.get("GPU", 0):
            yield f"{at}.resources.GPU is {has['GPU']}; {machine} has none"
        if config["provider"].get("type") == "aws" and not re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", machine):
            yield f"{at}.node_config.InstanceType is {machine!r}; expected such as g6e.4xlarge"
        cards = kind["node_config"].get("guestAccelerators") or []
        counted = sum(card.get("acceleratorCount", 0) for card in cards)
        if cards and counted != has.get("GPU", 0):
            yield f"{at}.resources.GPU is {has.get('GPU', 0)}; its guestAccelerators are {counted}"
    if not any(kind["resources"].get("GPU") for kind in _types(config).values()):
        yield "available_node_types: no worker type has a GPU"


def _market(config: Config) -> Iterator[str]:
    """Check that spot machines are preferred, that there are others, and that notices are watched for."""
    gpus = {name: kind for name, kind in _types(config).items() if kind["resources"].get("GPU")}
    spot = {name: kind for name, kind in gpus.items() if _is_spot(kind)}
    on_demand = {name: kind for name, kind in gpus.items() if name not in spot}
    for name, kind in spot.items():
        for other, instead in on_demand.items():
            if kind.get("priority", 0) <= instead.get("priority", 0):
                yield (
                    f"available_node_types.{name}.priority is {kind.get('priority', 0)}, that of {other} "
                    f"{instead.get('priority', 0)}; spot is preferred only if its priority is higher"
                )
    if spot and not on_demand:
        yield "available_node_types: all GPU workers are spot; a study waits for ever when there are none"
    commands = " ; ".join(config.get("worker_start_ray_commands", []))
    if spot and "biaswise cluster watch" not in commands:
        yield (
            "worker_start_ray_commands: nothing watches for the spot notice, so a machine is lost in the "
            "middle of its work; start `biaswise cluster watch` in the background"
        )


def _start(commands: list[str], role: str) -> tuple[str, dict[str, str]]:
    """Return the command that starts Ray, and its options."""
    for command in commands:
        match = re.search(r"\bray start\b(.*)", command, re.DOTALL)
        if match:
            return command, _options(match[1])
    return "", {"missing": role}


def _options(text: str) -> dict[str, str]:
    """Return the options of a command up to the shell's next operator; a value follows "=" or a space."""
    lexer = shlex.shlex(text.replace("\\\n", ""), posix=True, punctuation_chars=OPERATORS)
    lexer.whitespace_split, lexer.whitespace, lexer.commenters = True, " \t\r", ""
    options, last = {}, ""
    for word in takewhile(lambda word: not word or word.strip(OPERATORS), lexer):
        if word.startswith("-"):
            last, _, options[last] = word.removeprefix("--").partition("=")
        elif last and not options[last]:
            options[last] = word
    return options


def _head(config: Config) -> Iterator[str]:
    head = config.get("available_node_types", {}).get(config.get("head_node_type"), {"resources": {}})
    at = f"available_node_types.{config.get('head_node_type')}.resources"
    command, options = _start(config.get("head_start_ray_commands", []), "head")
    if not command:
        yield "head_start_ray_commands: no `ray start --head`"
        return
    if head["resources"].get("CPU") != 0 or options.get("num-cpus") != "0":
        yield (
            f"the head would run trials: expected CPU: 0 in {at} and --num-cpus=0 where Ray is started, "
            f"got {head['resources'].get('CPU')} and {options.get('num-cpus')}"
        )
    promised = head["resources"].get("tune_driver", 0)
    try:
        given = parse_yaml(options.get("resources", "{}")).get("tune_driver", 0)
    except JsonError:
        given = 0
    if not promised or promised != given:
        yield (
            f"trial drivers need the resource tune_driver on the head: {at} says {promised}, --resources in "
            f"head_start_ray_commands {given}; expected the same number, at least 1, in both"
        )
    if options.get("dashboard-host", "127.0.0.1") not in LOOPBACK:
        yield (
            f"head_start_ray_commands: --dashboard-host={options['dashboard-host']} opens the job server to "
            "the network; expected 127.0.0.1, and `ray dashboard` leads to it"
        )
    if "autoscaling-config" not in options:
        yield "head_start_ray_commands: no --autoscaling-config=..., so no worker ever starts"
    yield from _environment(command, "head_start_ray_commands")


def _workers(config: Config) -> Iterator[str]:
    command, options = _start(config.get("worker_start_ray_commands", []), "worker")
    if not command:
        yield "worker_start_ray_commands: no `ray start`"
        return
    if not options.get("address", "").startswith("$RAY_HEAD_IP:"):
        yield (
            f"worker_start_ray_commands: --address={options.get('address', '')}; expected $RAY_HEAD_IP:6379, "
            "or the worker starts a cluster of its own"
        )
    yield from _environment(command, "worker_start_ray_commands")
    head, _ = _start(config.get("head_start_ray_commands", []), "head")
    homes = [re.search(r"BIASWISE_HOME=(\S+)", text) for text in (head, command)]
    if all(homes) and len({home[1].rstrip(";") for home in homes if home}) > 1:
        yield "BIASWISE_HOME differs between head and workers; trials would not find their study"


def _environment(command: str, at: str) -> Iterator[str]:
    if "RAY_AUTH_MODE=token" not in command:
        yield f"{at}: `ray start` without RAY_AUTH_MODE=token; whoever reaches a port could run code"
    if "BIASWISE_HOME=/" not in command:
        yield f"{at}: `ray start` without BIASWISE_HOME=/...; runs and data would lie on one machine only"


def _servers(config: Config) -> Iterator[str]:
    commands = [c for key, value in config.items() if key.endswith("_commands") for c in value]
    servers = [command for command in commands if "mlflow server" in command]
    for command in servers:
        host = re.search(r"--host[ =](\S+)", command)
        if host and host[1] not in LOOPBACK:
            yield f"MLflow listens on {host[1]}; expected 127.0.0.1, and `ray attach -p 5000` leads to it"
        store = re.search(r"--backend-store-uri[ =](\S+)", command)
        where = store[1] if store else ""
        if not where or re.match(r"sqlite:///(?!/)|sqlite:////tmp/|(?!\w+:)", where):
            yield f"MLflow's --backend-store-uri is {where or 'missing'}; expected one that lasts"
    if not servers:
        yield "head_start_ray_commands: no `mlflow server`, where people look at a study"
    installs = [command for command in commands if re.search(r"pip install.* -e ", command)]
    if not installs:
        yield "setup_commands: nothing installs Biaswise from the checkout"
    elif not any("-c constraints.txt" in command for command in installs):
        yield "setup_commands: Biaswise is installed without -c constraints.txt; versions would differ"


def _network(config: Config) -> Iterator[str]:
    group = config["provider"].get("security_group") or {}
    for rule in group.get("IpPermissions", []):
        world = any(r.get("CidrIp") == "0.0.0.0/0" for r in rule.get("IpRanges", []))
        world |= any(r.get("CidrIpv6") == "::/0" for r in rule.get("Ipv6Ranges", []))
        if world and (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            yield (
                f"provider.security_group: ports {rule.get('FromPort', 'all')} to {rule.get('ToPort')} are "
                "open to the world; expected SSH (22) at most"
            )


def _mounts(config: Config, folder: Path) -> Iterator[str]:
    mounts = config.get("file_mounts", {})
    for remote, local in mounts.items():
        if not str(local).startswith("~") and not (folder / local).exists():
            yield f"file_mounts.{remote}: there is no {folder / local}"
    if not any(str(remote).endswith(".ray/auth_token") for remote in mounts):
        yield "file_mounts: no ~/.ray/auth_token; with RAY_AUTH_MODE=token Ray does not start without it"
    image = (config.get("docker") or {}).get("image", "")
    yield from wrong_version("docker.image", image)
