"""The way to Ray: found, started or refused in one line, and told in one line when it is gone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoprune.errors import UserError

KNOCK = 5.0  # seconds that a host may take to accept a connection


def target(address: str | None) -> str:
    """The address that None stands for."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def connect(address: str | None) -> bool:
    """Connect to Ray or start it; whether that was needed."""
    import ray

    if ray.is_initialized():
        return False
    place = target(address)
    _check_address(place)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if place == "local":
        options |= {"include_dashboard": False, "num_cpus": _cores()}
    try:
        ray.init(address=place, **options)
    except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
        # The proxy refuses who has no token, and all that comes of it here is a connection that times out.
        ask = "; if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here as there"
        hint = ask if place.startswith("ray://") else ""
        raise UserError(f"Ray at {place} cannot be used: {first_line(error)}{hint}") from error
    mute(True)
    return True


def _check_address(target: str) -> None:
    """Refuse an address where nobody answers; Ray itself would try for minutes."""
    if target == "local":
        return
    scheme, _, place = (_latest() if target == "auto" else target).rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdigit():
        raise UserError(f"Ray address {target!r} cannot be read: write auto, local, host:port or ray://host:port")
    if not answers(host.strip("[]"), int(port)):
        name = f"auto, which is {place}, the last cluster known here" if target == "auto" else target
        raise UserError(
            f"Ray address {name}: nobody answered within {KNOCK:g} s; start it there with `ray start --head`, or "
            "check the address and the firewall"
        )


def _latest() -> str:
    """The cluster that Ray takes for ``auto``: one that runs on this machine, else the last one it was part of."""
    from ray._private import services  # Ray has no public name for it

    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise UserError(
            "Ray address auto: no cluster runs on this machine, nor was it part of one; start one with "
            "`ray start --head`, or give host:port"
        ) from None


def answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), KNOCK).close()
    except OSError:
        return False
    return True


def head() -> tuple[str, int] | None:
    """Where Ray's head listens; None where only a proxy (ray://) is in sight, which reports a loss itself."""
    import ray
    from ray.util.client import ray as client

    if client.is_connected():
        return None
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _cores() -> int | None:
    """The cores this process may use, where those are fewer than the machine's; else Ray counts them itself."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return allowed if allowed != os.cpu_count() else None


def mute(quiet: bool) -> None:
    """Keep Ray's news of lost workers off standard output; the log has ours, in one line."""
    from ray._private import worker

    worker._worker_logs_enabled = not quiet  # noqa: SLF001 - Ray has no public switch


@contextmanager
def told_in_one_line(address: str | None) -> Iterator[None]:
    """What Ray raises when it is gone, as a :class:`UserError`."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise
    except (RayError, ConnectionError) as error:
        raise UserError(gone(address, f"{type(error).__name__}: {first_line(error)}")) from error


def gone(address: str | None, reason: str) -> str:
    """What is said when Ray is gone."""
    return (
        f"Ray ({target(address)}) is gone: {reason}; everything measured is in the ledger, and with Ray running "
        "again the same command continues"
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line of it, cut to 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
