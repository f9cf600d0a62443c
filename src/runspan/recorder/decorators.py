"""Record each call of a function: of a plain, coroutine, generator or asynchronous generator function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from runspan.recorder.recording import RunRecording, StepRecording

    Recording: TypeAlias = RunRecording | StepRecording

F = TypeVar("F", bound=Callable[..., Any])


def record_calls(function: F, make: Callable[[], Recording], capture_input: bool, capture_output: bool) -> F:
    """Return a wrapper of the function that records each call.

    make: makes the recording of one call.
    capture_input, capture_output: whether to record the arguments and the result.
    """
    wrappers = _CallWrappers(function, make, capture_input, capture_output)
    if inspect.isasyncgenfunction(function):
        return cast("F", wrappers.async_generator())
    if inspect.isgeneratorfunction(function):
        return cast("F", wrappers.generator())
    if inspect.iscoroutinefunction(function):
        return cast("F", wrappers.coroutine())
    return cast("F", wrappers.plain())


class _CallWrappers:
    """Makes the wrapper of a function, for each kind of function."""

    def __init__(
        self, function: Callable[..., Any], make: Callable[[], Recording], capture_input: bool, capture_output: bool
    ) -> None:
        self.function = function
        self.make = make
        self.signature: inspect.Signature | None = None
        if capture_input:
            with suppress(TypeError, ValueError):  # the function has no signature
                self.signature = inspect.signature(function)
        self.capture_output = capture_output

    def set_input(self, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the arguments by their names, without ``self`` and ``cls``."""
        if self.signature is None:
            return
        try:
            arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError:
            return  # the call itself raises the same error
        if next(iter(self.signature.parameters), "") in ("self", "cls"):
            arguments.pop(next(iter(arguments), ""), None)
        recording.set_input(arguments)

    def set_result(self, recording: Recording, result: object) -> None:
        if self.capture_output and result is not None:
            recording.set_result(result)

    def plain(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.make() as recording:
                self.set_input(recording, args, kwargs)
                result = self.function(*args, **kwargs)
                self.set_result(recording, result)
                return result

        return wrapper

    def coroutine(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.make() as recording:
                self.set_input(recording, args, kwargs)
                result = await self.function(*args, **kwargs)
                self.set_result(recording, result)
                return result

        return wrapper

    def generator(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _started(self.make()) as recording:
                self.set_input(recording, args, kwargs)
                inner = self.function(*args, **kwargs)
                send: Any = functools.partial(next, inner)
                while True:
                    try:
                        with recording.active():
                            item = send()
                    except StopIteration as stop:
                        self.set_result(recording, stop.value)
                        return stop.value
                    try:
                        sent = yield item
                    except GeneratorExit:
                        with recording.active():
                            inner.close()
                        raise
                    except BaseException as error:
                        send = functools.partial(inner.throw, error)
                    else:
                        send = functools.partial(inner.send, sent)

        return wrapper

    def async_generator(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _started(self.make()) as recording:
                self.set_input(recording, args, kwargs)
                inner = self.function(*args, **kwargs)
                send: Any = inner.__anext__
                while True:
                    try:
                        with recording.active():
                            item = await send()
                    except StopAsyncIteration:
                        return
                    try:
                        sent = yield item
                    except GeneratorExit:
                        with recording.active():
                            await inner.aclose()
                        raise
                    except BaseException as error:
                        send = functools.partial(inner.athrow, error)
                    else:
                        send = functools.partial(inner.asend, sent)

        return wrapper


@contextmanager
def _started(recording: Recording) -> Iterator[Recording]:
    """Begin and end a recording with the block, without making it current."""
    recording.start()
    with ExitStack() as stack:
        stack.push(recording.__exit__)
        yield recording
