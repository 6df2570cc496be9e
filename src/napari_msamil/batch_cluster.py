"""Many slides on a Dask cluster: one task per slide; Dask moves the task of a lost worker to another one."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from napari_msamil.batch_job import SlideRow, run_job
from napari_msamil.batch_pool import ATTEMPTS, deaf_children, lost_row
from napari_msamil.device import cores
from napari_msamil.errors import ConfigError, ExtraMissingError
from napari_msamil.folders import sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_msamil.batch_inputs import SlideJob
    from napari_msamil.batch_job import BatchOptions

_POLL_S = 0.1
_GRACE_S = 0.4


def run_on_cluster(
    jobs: list[SlideJob], options: BatchOptions
) -> Iterator[SlideRow | None]:
    """Classify slides on a cluster; slides, masks, model and output folder must be visible to the workers.

    Args:
        jobs: The slides.
        options: `cluster` is the scheduler's address, or `local:N` for N processes here.

    Yields:
        A row for each slide as it finishes, and None every moment in between, so that the caller can stop.

    Raises:
        ExtraMissingError: Dask's scheduler is not installed.
        ConfigError: The address is wrong, or nothing answers there.
    """
    try:
        import distributed
    except ImportError as error:
        raise ExtraMissingError("A Dask cluster", "scale") from error
    with deaf_children():
        client, local = _connect(distributed, options.cluster or "")
    threads = 0 if local is None else max(1, cores() // len(local.workers))
    pending: dict[Any, SlideJob] = {}
    try:
        run = uuid.uuid4().hex[:8]
        for i, job in enumerate(jobs):
            key = f"msamil-{run}-{i}-{job.name}"
            future = client.submit(_run_job, job, options, threads, key=key, pure=False)
            pending[future] = job
        while pending:
            for future in [f for f in pending if f.done()]:
                yield _row(distributed, future, pending.pop(future))
            yield None
            time.sleep(_POLL_S)
        # Workers go idle before they are told to leave, or they would be reported as lost.
    finally:
        client.cancel(list(pending))
        if local is not None and pending:
            local.sync(_stop_now, local)
        client.close()
        if local is not None:
            with suppress(TimeoutError):
                local.close()
        for job in pending.values():
            sweep(options.output / job.name)


def _run_job(job: SlideJob, options: BatchOptions, threads: int) -> SlideRow:
    """On a worker; Dask gives each process one thread, which is too few where fewer processes than cores were asked for."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    return run_job(job, options)


async def _stop_now(local: Any) -> None:
    """End the processes of a local cluster although they are at work; Dask itself would wait for seconds."""
    workers = local.workers.values()
    # on a loaded machine a worker may need longer to go; it is killed already, and its lateness is no error
    await asyncio.gather(
        *(worker.close(timeout=_GRACE_S) for worker in workers), return_exceptions=True
    )


def _connect(distributed: Any, address: str) -> tuple[Any, Any]:
    import dask

    kind, _, rest = address.partition(":")
    try:
        # A slide that kills its worker is given up after as many tries as in the pool.
        dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1})
        if kind == "local":
            # What happens to workers is told in rows, not in Dask's words.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            cluster = distributed.LocalCluster(
                n_workers=int(rest),
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            return distributed.Client(cluster), cluster
        return distributed.Client(address, timeout="10s"), None
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"There is no Dask cluster at {address!r} ({error}). Use tcp://host:port or local:N."
        ) from error


def _row(distributed: Any, future: Any, job: SlideJob) -> SlideRow:
    try:
        row: SlideRow = future.result()
    except distributed.scheduler.KilledWorker as error:
        return lost_row(job, str(error.last_worker))
    return row
