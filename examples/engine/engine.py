"""A small workflow engine that uses the Recorder: a DAG of blocks, run in parallel, with retries and conditions."""

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
"""The outputs of the blocks so far, by their ids; None for a block that was skipped."""


@dataclass(frozen=True)
class Retry:
    """A retry policy in the platform's form."""

    maxAttempts: int = 3
    initialDelayMs: int = 100
    backoffMultiplier: float = 2.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt."""
        return float(self.initialDelayMs * self.backoffMultiplier ** (attempt - 1) / 1000)


@dataclass(frozen=True)
class Block:
    """One step of a workflow."""

    id: str
    name: str
    type: str
    work: Callable[[Task], Any]
    """Does the work and returns the output."""
    needs: tuple[str, ...] = ()
    """Ids of the blocks that must end before this one begins."""
    when: Callable[[Results], bool] | None = None
    """The condition: the block is skipped if it returns False."""
    retry: Retry | None = None


@dataclass(frozen=True)
class Workflow:
    """Blocks that depend on each other."""

    id: str
    blocks: tuple[Block, ...]
    output: Callable[[Results], Any] = field(default=lambda results: None)


@dataclass(frozen=True)
class Task:
    """The arguments of a block's work."""

    engine: Engine
    run: RunRecording
    step: StepRecording
    results: Results
    input: Any
    attempt: int

    def pause(self, seconds: float) -> None:
        """Simulate work that takes this long."""
        time.sleep(seconds * self.engine.slowness)

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[None]:
        """Simulate an instrumented client, which makes spans of its own through OpenTelemetry's API."""
        tracer = self.engine.recorder.tracer_provider.get_tracer("example.client")
        with tracer.start_as_current_span(name, attributes=attributes):
            yield


class Engine:
    """Executes workflows."""

    def __init__(
        self, recorder: Recorder, *, slowness: float = 1.0, on_delivered: Callable[[str, str], None] | None = None
    ) -> None:
        """slowness: a factor on all simulated work.

        on_delivered: called with the ids of a run and a step when the receiver has the step. The engine then waits for
        the receiver after each step.
        """
        self.recorder = recorder
        self.slowness = slowness
        self._on_delivered = on_delivered

    def execute(
        self,
        workflow: Workflow,
        input: Any,
        *,
        trigger: str = "manual",
        run_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        on_start: Callable[[RunRecording], None] | None = None,
    ) -> Any:
        """Run a workflow to its end and return its output. The exception of a block that fails is raised.

        headers: of the request that started the run.
        on_start: called with the run when it begins.
        """
        run = self.recorder.run(workflow.id, run_id=run_id, trigger=trigger, input=input, headers=headers)
        with run, ThreadPoolExecutor(8, thread_name_prefix=workflow.id) as pool:
            if on_start is not None:
                on_start(run)
            for block in workflow.blocks:
                run.plan(block.id, name=block.name, type=block.type)
            results = self._walk(run, workflow, input, pool)
            output = workflow.output(results)
            run.set_output(output)
            return output

    def _walk(self, run: RunRecording, workflow: Workflow, input: Any, pool: ThreadPoolExecutor) -> Results:
        """Start each block when those it needs have ended. After a failure no other block begins."""
        results: Results = {}
        waiting = list(workflow.blocks)
        running: dict[Future[Any], Block] = {}
        while waiting or running:
            for block in [block for block in waiting if all(need in results for need in block.needs)]:
                waiting.remove(block)
                if block.when is not None and not block.when(results):
                    run.skip(block.id)
                    results[block.id] = None
                else:
                    running[pool.submit(self._execute, run, block, dict(results), input)] = block
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in done:
                results[running.pop(future).id] = future.result()
        return results

    def _execute(self, run: RunRecording, block: Block, results: Results, input: Any) -> Any:
        """Execute one block in a thread of the pool, where ``run.step`` makes its step a step of the run."""
        retry = None if block.retry is None else asdict(block.retry)
        with run.step(block.id, name=block.name, type=block.type, retry=retry) as step:
            output = self._try(run, step, block, results, input)
            if output is not None:
                step.set_output(output)
        self.wait_for_delivery(run, block.id)
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

    def wait_for_delivery(self, run: RunRecording, step_id: str) -> None:
        """Wait until the receiver has a step, if the engine has ``on_delivered``."""
        if self._on_delivered is not None and run.flush(30):
            self._on_delivered(run.id, step_id)


class Approvals:
    """Approvals by a person, which a timer simulates."""

    def __init__(self) -> None:
        self._approved = threading.Event()

    def ask(self, seconds: float) -> dict[str, Any]:
        """Wait for the approval and return it."""
        threading.Timer(seconds, self._approved.set).start()
        self._approved.wait()
        return {"approved": True, "approvedBy": "cfo@example.com", "comment": "go ahead"}
