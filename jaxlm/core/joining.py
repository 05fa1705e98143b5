"""How a process comes to the others of its run, and how it leaves them.

Cloud TPU, Slurm, Open MPI and Kubernetes say by themselves which process this is, as
jax reads them; else flags or the environment do (``jaxlm.core.cluster``).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax

from jaxlm.core.cluster import Place
from jaxlm.core.errors import Lost, UserError
from jaxlm.core.hosts import Group, Hosts, dissolve, form, here


@contextmanager
def joined(place: Place) -> Iterator[Hosts]:
    """Among the others, where there are any, until all end; one that fails tells them.

    Raises:
      UserError: what the cluster says cannot be used.
      Lost: another process ended.
    """
    join(place)
    hosts = here()
    if not isinstance(hosts, Group):
        yield hosts
        return
    try:
        with terminable():  # or the others would hear of it by silence alone
            yield hosts
    except BaseException as problem:
        ended = hosts.cause(problem)
        if hosts.stopping and isinstance(problem, SystemExit | KeyboardInterrupt):
            hosts.part()
            raise
        hosts.fail(ended)
        if ended is problem:
            raise
        raise ended from problem
    else:
        hosts.part()
    finally:
        dissolve()


def join(place: Place) -> None:
    """Initialize ``jax.distributed`` where there are several processes.

    Before anything asks jax for its devices. A process that is not joined by all others
    in time ends with a line that says so.
    """
    if jax.distributed.is_initialized():
        return
    place = detected(place)
    if place.processes is None or place.processes == 1:
        return
    if place.process == 0:
        check_port(place.coordinator)
    config: Any = jax.config
    config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would take SIGTERM, which then ended nothing while we compile.
    config.update("jax_enable_preemption_service", False)
    late = threading.Timer(place.join_seconds, give_up, [place])
    late.daemon = True
    late.start()
    try:
        with interruptible():
            jax.distributed.initialize(
                place.coordinator,
                place.processes,
                place.process,
                list(place.local_devices) if place.local_devices else None,
                cluster_detection_method="deactivate",
                # Ours come first: when it is late, jax aborts the process.
                initialization_timeout=place.join_seconds + 60,
                heartbeat_timeout_seconds=place.lost_seconds + 60,
            )
    finally:
        late.cancel()
    form(place.lost_seconds)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is an exception, as Ctrl-C is one, so that what is open is put away.

    Where Python handles no signals, or somebody else handles this one, nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the process at once, while jax waits and lets Python handle none."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check_port(address: str) -> None:
    """Refuse a port that is taken, at which jax would abort the process."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as problem:
            raise UserError(
                f"port {port} of {address}: {problem.strerror}; is a run of several"
                " processes still going on here? Name another by --coordinator"
            ) from problem


def give_up(place: Place) -> None:
    """End this process, which waits for others in vain; from a thread, as jax waits."""
    host, _, port = place.coordinator.rpartition(":")
    who = f"process {place.process} of {place.processes}"
    waited = f"after {place.join_seconds} s"
    missing = f"not all of the {place.processes} processes have come {waited}"
    try:
        if place.process:
            with socket.create_connection((host, int(port)), timeout=3):
                pass
        text = f"{who}: {missing} to {place.coordinator}"
    except OSError as problem:
        text = (
            f"{who}: --coordinator={place.coordinator} is not reached {waited}"
            f" ({problem.strerror or problem}); does process 0 run there?"
        )
    print(f"error: {text}; start all of them", file=sys.stderr, flush=True)
    os._exit(Lost("").code)


def detected(place: Place) -> Place:
    """The place that the cluster says, where none is given; see jax's ``clusters``.

    Raises:
      UserError: the cluster is one that jax knows, but does not say all of it.
    """
    if place.processes is not None:
        return place
    from jax._src.clusters import ClusterEnv  # jax has no public name for asking alone

    with warnings.catch_warnings():  # of a pod that is not one of a job's
        warnings.simplefilter("ignore")
        kinds = [
            each for each in ClusterEnv._cluster_types if not each.opt_in_only_method
        ]
        kind = next((each for each in kinds if each.is_env_present()), None)
    if kind is None:
        return place
    try:
        processes = kind.get_process_count()
        if processes == 1:
            return replace(place, processes=1)
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = place.coordinator or kind.get_coordinator_address(
            place.join_seconds, port
        )
        process = kind.get_process_id()
    except (KeyError, OSError, RuntimeError, ValueError) as problem:
        raise UserError(
            f"{kind.__name__}: what this cluster says of its processes cannot be used"
            f" ({type(problem).__name__}: {problem}); give --coordinator, --processes"
            " and --process, or --processes=1 to run alone"
        ) from problem
    own = local_devices(kind.get_local_process_id())
    return replace(
        place,
        coordinator=address,
        processes=processes,
        process=process,
        local_devices=own,
    )


def local_devices(local: int | None) -> tuple[int, ...] | None:
    """The devices of a process that is the ``local``-th of its machine; None: all.

    One each, as jax has it, unless it is the only one there, or Slurm has shared them
    out already.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")
    alone = {each.partition("(")[0] for each in tasks} == {"1"}
    alone = alone or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    if local is None or alone or (visible and "," not in visible):
        return None
    return (local,)
