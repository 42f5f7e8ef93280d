"""`doctor`: checks all hosts before a start, and prints for each problem a sentence and its fix.

hosts/probe.py collects the facts, hosts/links.py measures the links; hosts/host_checks.py, this_machine.py
and model_plan.py judge. Changes nothing without `--fix`, which copies our code and packages to the hosts and
closes private files: it touches nothing outside WORKER_DIR there, accepts no host key, copies no key, and
never uses sudo. Exit codes: 0 no finding failed, 1 some did.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.commands.doctor import this_machine as doctor_here
from cluster.commands.doctor.model_plan import check_plan
from cluster.errors import ClusterError
from cluster.findings import Finding, count_failed, show_findings
from cluster.hosts import host_checks
from cluster.hosts.host_keys import describe_key
from cluster.hosts.hosts import Cluster, Host, read_cluster
from cluster.hosts.links import Link, list_links, measure_link
from cluster.hosts.probe import HostFacts, NoPython, probe
from cluster.hosts.ssh import HostUnreachable, close_connections
from cluster.hosts.worker_setup import Worker, ensure_environment, list_workers, read_environment, sync_code
from cluster.supervisor.service import read_service
from cluster.terminal import Terminal
from config import Settings

UNKNOWN_KEY = "host key is not known"


@dataclass(frozen=True)
class Diagnosis:
    """The result: facts, links and findings."""

    cluster: Cluster
    facts: tuple[HostFacts | ClusterError, ...]  # by host
    links: tuple[Link, ...]
    findings: tuple[Finding, ...]

    @property
    def is_good(self) -> bool:
        """No finding failed."""
        return not count_failed(self.findings)

    def to_json(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "ok": self.is_good,
            "findings": [finding.to_json() for finding in self.findings],
            "hosts": [_facts_to_json(facts) for facts in self.facts if isinstance(facts, HostFacts)],
            "links": [
                {**asdict(link), "source": link.source.name, "target": link.target.name}
                for link in self.links
            ],
        }


def run_doctor(settings: Settings, terminal: Terminal, *, with_fix: bool, as_json: bool) -> int:
    """Check all hosts and print the findings; the exit code."""
    cluster = read_cluster(settings)
    found = asyncio.run(_examine_and_close(cluster, settings, terminal, with_fix=with_fix, is_quiet=as_json))
    if as_json:
        terminal.line(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return 0 if found.is_good else 1
    show_findings(found.findings, terminal)
    terminal.line()
    num_failed = count_failed(found.findings)
    if num_failed:
        terminal.line(terminal.colored(f"{num_failed} failed: fix them, then run doctor again", "red"))
    else:
        terminal.line(terminal.colored("ready for ./launch.sh start", "green"))
    return 0 if found.is_good else 1


async def _examine_and_close(
    cluster: Cluster, settings: Settings, terminal: Terminal, *, with_fix: bool, is_quiet: bool
) -> Diagnosis:
    def say(text: str) -> None:
        if not is_quiet:
            terminal.line(text)

    try:
        if with_fix:
            for changed in doctor_here.make_private(settings):
                say(f"fixed: {changed}")
            workers = list_workers(cluster, settings)
            await asyncio.gather(*(_fix_host(worker, settings, say) for worker in workers))
        if not is_quiet:
            terminal.live(f"checking {len(cluster.hosts)} hosts" if cluster.remote_hosts else "checking")
        return await examine(cluster, settings)
    finally:
        await close_connections(cluster.remote_hosts, how="stop")  # a running service may use them


async def _fix_host(worker: Worker, settings: Settings, say: Callable[[str], None]) -> None:
    """Update code and environment on a host; report what fails."""
    name = worker.host.name
    try:
        facts = await probe(worker.host, settings)
        if not facts.is_new_enough:
            return
        if changed := await sync_code(worker):
            say(f"fixed: {name}: {len(changed)} files of the code copied")
        if await ensure_environment(worker, lambda text: say(f"{name}: {text}")):
            say(f"fixed: {name}: the environment is made")
    except ClusterError as error:
        say(f"not fixed: {error}")


async def examine(cluster: Cluster, settings: Settings) -> Diagnosis:
    """Check all hosts at the same time, then measure the links one after the other."""
    facts = await asyncio.gather(*(ask(host, settings) for host in cluster.hosts))
    links = await measure_reached(cluster.hosts, facts, settings)
    service = read_service(settings)
    systems = {known.host.name: known.system for known in facts if isinstance(known, HostFacts)}
    findings = doctor_here.check_this_machine(settings, service)
    for host, known in zip(cluster.hosts, facts, strict=True):
        if isinstance(known, HostFacts):
            findings += await _judge_host(known, cluster, settings)
        else:
            findings.append(await _judge_unknown(host, known))
        findings += [host_checks.check_link(link, systems) for link in links if link.source is host]
    known_facts = [known for known in facts if isinstance(known, HostFacts)]
    if len(known_facts) == len(facts):
        findings += await check_plan(settings, cluster, known_facts, service)
    return Diagnosis(cluster, tuple(facts), tuple(links), tuple(findings))


async def ask(host: Host, settings: Settings) -> HostFacts | ClusterError:
    """A host's facts, or the error."""
    try:
        return await probe(host, settings)
    except ClusterError as error:
        return error


async def measure_reached(
    hosts: Sequence[Host], facts: Sequence[HostFacts | ClusterError], settings: Settings
) -> list[Link]:
    """The links between hosts that answered, one after the other, so that none disturbs another."""
    ports = {
        known.host.address: known.free_ports[0]
        for known in facts
        if isinstance(known, HostFacts) and known.free_ports
    }
    return [
        await measure_link(source, target, settings, ports[target.address])
        for source, target in list_links(hosts)
        if source.address in ports and target.address in ports
    ]


async def _judge_host(facts: HostFacts, cluster: Cluster, settings: Settings) -> list[Finding]:
    host = facts.host
    if host.is_local and host is not cluster.hosts[0]:
        return []  # this machine again, in its second place
    if host.is_local:
        findings = host_checks.check_first_host(facts, is_single=cluster.is_single)
        return [*findings, host_checks.describe_memory(facts)]
    worker = next(worker for worker in list_workers(cluster, settings) if worker.host.ssh == host.ssh)
    try:
        environment = await read_environment(worker)
    except HostUnreachable as error:  # it answered a moment ago
        return [await _judge_unknown(host, error)]
    findings = host_checks.check_host(facts, environment)
    reached = Finding(host.name, "ssh", "ok", f"reached as {host.ssh}: it is {facts.hostname}")
    return [reached, *findings, host_checks.describe_memory(facts)]


async def _judge_unknown(host: Host, error: ClusterError) -> Finding:
    if isinstance(error, HostUnreachable):
        reason = error.reason
        if UNKNOWN_KEY in reason:
            reason += await describe_key(host)
        return Finding(host.name, "ssh", "failed", f"{host.name} cannot be reached: {reason}", error.fix)
    if isinstance(error, NoPython):
        text = "no Python was found; 3.11 or newer is needed"
        return Finding(host.name, "python", "failed", text, host_checks.install_python(host.name))
    return Finding(host.name, "python", "failed", str(error), f"ssh {host.ssh} python3 --version")


def _facts_to_json(facts: HostFacts) -> dict[str, Any]:
    values = asdict(facts)
    del values["free_ports"], values["model_files"]
    return values
