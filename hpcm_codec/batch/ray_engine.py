"""The tasks of a batch on many machines, by Ray Data: `hpcm encode --engine ray`.

Every worker is an actor with a model of its own. If one ends, Ray starts another one with the tasks that have no result yet. `Performer`
recognises an output that the first one had written (it did not exist when the batch began, and is complete) and keeps it.
Results are returned to one process, which writes the manifest: every input has one row.

All machines must see inputs and outputs under the same paths. Ray finds its cluster as usual (RAY_ADDRESS); without one, it starts one on
this machine for the time of the batch.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Generator, Iterable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from hpcm_codec.batch.jobs import Job
from hpcm_codec.batch.stopping import BatchStopped
from hpcm_codec.batch.tasks import Performer, Result, Task
from hpcm_codec.errors import HpcmError, UnsupportedError
from hpcm_codec.system.workers import divided_threads

MOST_BLOCKS = 20_000  # if a worker ends, its block is repeated: so one task each, unless there are too many


def refuse_missing_ray() -> None:
    """Raise UnsupportedError where Ray Data is not installed."""
    if any(find_spec(name) is None for name in ("ray", "pyarrow")):
        raise UnsupportedError(
            "--engine ray needs Ray Data, which is not installed", advice="pip install 'hpcm-codec[ray]'"
        )


class OnRay:
    """`jobs` workers (None: one for every two processors of the cluster). threads: of torch in each, None for the processors it gets."""

    def __init__(self, jobs: int | None = None, threads: int | None = None) -> None:
        refuse_missing_ray()
        self._jobs, self._threads = jobs, threads

    def __call__(self, perform: Performer, tasks: Iterable[Task]) -> Generator[Result, None, None]:
        listed = list(tasks)
        if not listed:
            return
        # Ray sends usage statistics to its makers unless this is set
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # we report workers that end ourselves
        ray = _imported()
        started_here = not ray.is_initialized()
        try:
            if started_here:
                _start_ray()
            yield from self._results(perform, listed)
        except ray.exceptions.RayError as error:
            raise HpcmError(f"Ray has given up: {_in_short(error)}", advice="see `ray status`") from error
        finally:
            if started_here:
                ray.shutdown()

    def _results(self, perform: Performer, tasks: list[Task]) -> Generator[Result, None, None]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        processors = int(ray.cluster_resources().get("CPU", 1))
        workers = self._jobs or max(1, processors // 2)
        rows = [{"task": pickle.dumps(_seen_from_anywhere(task)), "place": place} for place, task in enumerate(tasks)]
        size = max(perform.work.lookahead, -(-len(rows) // MOST_BLOCKS))
        results = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size)).map_batches(
            _Worker,
            fn_constructor_args=(pickle.dumps(perform), self._threads or divided_threads(processors, workers)),
            batch_size=size,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=processors // workers or processors / workers,
            num_gpus=1 if perform.work.machine.on_gpu else None,
        )
        for row in results.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, BatchStopped):
                raise result
            yield _under_the_names_of(tasks[int(row["place"])].job, result)


class _Worker:
    """The actor: loads its model with the first picture and keeps it."""

    def __init__(self, perform: bytes, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._perform: Performer = pickle.loads(perform)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        tasks = [pickle.loads(task) for task in batch["task"]]
        results = []
        try:
            if len(tasks) > 1:
                self._perform.prepare(tasks)
            results += [pickle.dumps(self._perform(task)) for task in tasks]
        except BatchStopped as stopped:  # returned, since Ray would wrap a raised exception in its own
            results = [pickle.dumps(stopped)] * len(tasks)
        return {"place": batch["place"], "result": results}


def _seen_from_anywhere(task: Task) -> Task:
    """The task with absolute paths: workers run in other directories."""
    job = task.job
    return replace(task, job=replace(job, source=os.path.abspath(job.source), target=os.path.abspath(job.target)))


def _under_the_names_of(job: Job, result: Result) -> Result:
    """The result with the paths as they were given."""
    row = None if result.row is None else {**result.row, "path": job.source, "output": job.target}
    return replace(result, job=job, row=row)


def _imported() -> Any:
    """Ray with Ray Data. Raises UnsupportedError where it is installed but does not work."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        advice = "pip install -c constraints.txt 'hpcm-codec[ray]', which names versions that work together"
        raise UnsupportedError(f"Ray Data cannot be loaded: {_in_short(error)}", advice=advice) from error
    warnings.filterwarnings("ignore", message=r"`use_\w+` is deprecated")  # Ray, about settings of its own
    return ray


def _start_ray() -> None:
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        advice = "check RAY_ADDRESS, or leave it unset to use this machine alone"
        raise HpcmError(f"Ray cannot be started or reached: {_in_short(error)}", advice=advice) from error


def _in_short(error: Exception) -> str:
    """The last line: in a traceback of another process, it names the error."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
