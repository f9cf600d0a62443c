"""A small workflow engine: a DAG of blocks, independent ones at once, with retries and conditions, under a Recorder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from runspan import Recorder
from runspan.recorder import RunRecording, StepRecording

Results = dict[str, Any]
"""The outputs of the blocks so far, by their ids; of a block that was skipped, None."""


@dataclass(frozen=True)
class Retry:
    """As the platform documents a retry policy."""

    maxAttempts: int = 3
    initialDelayMs: int = 100
    backoffMultiplier: float = 2.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after an attempt."""
        return float(self.initialDelayMs * self.backoffMultiplier ** (attempt - 1) / 1000)


@dataclass(frozen=True)
class Block:
    """One step of a workflow. work: gets the task, returns the output. needs: ids of blocks that must be done before.
    when: the block is skipped unless this is true of the results."""

    id: str
    name: str
    type: str
    work: Callable[[Task], Any]
    needs: tuple[str, ...] = ()
    when: Callable[[Results], bool] | None = None
    retry: Retry | None = None


@dataclass(frozen=True)
class Workflow:
    """Blocks that depend on each other. repeated: ids of steps that a loop executes, and which are not planned."""

    id: str
    blocks: tuple[Block, ...]
    output: Callable[[Results], Any] = field(default=lambda results: None)


@dataclass(frozen=True)
class Task:
    """What a block's work is given."""

    engine: Engine
    run: RunRecording
    step: StepRecording
    results: Results
    input: Any
    attempt: int

    def pause(self, seconds: float) -> None:
        """Stands for work that takes this long, at the engine's speed."""
        time.sleep(seconds * self.engine.slowness)

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[None]:
        """Stands for an instrumented client, which makes spans of its own through OpenTelemetry's API."""
        tracer = self.engine.recorder.tracer_provider.get_tracer("example.client")
        with tracer.start_as_current_span(name, attributes=attributes):
            yield


class Engine:
    """Executes workflows. slowness: a factor on all simulated work. told: called with a run and a step's id when the
    receiver has the step; asking for that makes the engine wait after each step."""

    def __init__(
        self, recorder: Recorder, *, slowness: float = 1.0, told: Callable[[str, str], None] | None = None
    ) -> None:
        self.recorder = recorder
        self.slowness = slowness
        self._told = told

    def execute(
        self,
        workflow: Workflow,
        input: Any,
        *,
        trigger: str = "manual",
        run_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        begun: Callable[[RunRecording], None] | None = None,
    ) -> Any:
        """Runs it to its end and returns its output. The exception of a block that failed for good comes out of it.

        headers: of the request that started it. begun: told of the run when it begins.
        """
        run = self.recorder.run(workflow.id, run_id=run_id, trigger=trigger, input=input, headers=headers)
        with run, ThreadPoolExecutor(8, thread_name_prefix=workflow.id) as pool:
            if begun is not None:
                begun(run)
            for block in workflow.blocks:
                run.plan(block.id, name=block.name, type=block.type)
            results = self._walk(run, workflow, input, pool)
            output = workflow.output(results)
            run.set_output(output)
            return output

    def _walk(self, run: RunRecording, workflow: Workflow, input: Any, pool: ThreadPoolExecutor) -> Results:
        """Starts each block when those it needs are done. After a failure no other block begins."""
        results: Results = {}
        waiting = list(workflow.blocks)
        under_way: dict[Future[Any], Block] = {}
        while waiting or under_way:
            for block in [block for block in waiting if all(need in results for need in block.needs)]:
                waiting.remove(block)
                if block.when is not None and not block.when(results):
                    run.skip(block.id)
                    results[block.id] = None
                else:
                    under_way[pool.submit(self._execute, run, block, dict(results), input)] = block
            done, _ = wait(under_way, return_when=FIRST_COMPLETED) if under_way else (set(), None)
            for future in done:
                results[under_way.pop(future).id] = future.result()
        return results

    def _execute(self, run: RunRecording, block: Block, results: Results, input: Any) -> Any:
        """One block in a thread of the pool: ``run.step`` gives its step the right parent there."""
        retry = None if block.retry is None else asdict(block.retry)
        with run.step(block.id, name=block.name, type=block.type, retry=retry) as step:
            output = self._try(run, step, block, results, input)
            if output is not None:
                step.set_output(output)
        self.acknowledge(run, block.id)
        return output

    def _try(self, run: RunRecording, step: StepRecording, block: Block, results: Results, input: Any) -> Any:
        if block.retry is None:
            return block.work(Task(self, run, step, results, input, 1))
        while True:
            try:
                with step.attempt() as attempt:
                    return block.work(Task(self, run, step, results, input, attempt))
            except Exception:
                if attempt >= block.retry.maxAttempts:
                    raise
                time.sleep(block.retry.delay(attempt) * self.slowness)

    def acknowledge(self, run: RunRecording, step_id: str) -> None:
        """Waits for the receiver when somebody asked for that."""
        if self._told is not None and run.flush(30):
            self._told(run.id, step_id)


class Approvals:
    """Where people answer: a person here is a timer."""

    def __init__(self) -> None:
        self._answered = threading.Event()

    def ask(self, seconds: float) -> dict[str, Any]:
        """Waits for the answer."""
        threading.Timer(seconds, self._answered.set).start()
        self._answered.wait()
        return {"approved": True, "approvedBy": "cfo@example.com", "comment": "go ahead"}
