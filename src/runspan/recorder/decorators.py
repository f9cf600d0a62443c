"""Functions recorded call by call: plain, coroutine, generator and asynchronous generator functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class Recording(Protocol):
    """A run or a step."""

    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None: ...
    def start(self) -> Any: ...
    def active(self) -> AbstractContextManager[Any]: ...
    def set_input(self, value: object) -> Any: ...
    def returned(self, value: object) -> None: ...


def record_calls(function: F, make: Callable[[], Recording], takes_input: bool, takes_output: bool) -> F:
    """The function, each call of it a recording of its own. make: the recording of one call."""
    calls = _CallWrappers(function, make, takes_input, takes_output)
    if inspect.isasyncgenfunction(function):
        return cast("F", calls.async_generator())
    if inspect.isgeneratorfunction(function):
        return cast("F", calls.generator())
    if inspect.iscoroutinefunction(function):
        return cast("F", calls.coroutine())
    return cast("F", calls.plain())


class _CallWrappers:
    """Wrappers of a function, one for each kind."""

    def __init__(
        self, function: Callable[..., Any], make: Callable[[], Recording], takes_input: bool, takes_output: bool
    ) -> None:
        self.function = function
        self.make = make
        self.arguments = _arguments(function) if takes_input else None
        self.takes_output = takes_output

    def begun(self, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = None if self.arguments is None else self.arguments(args, kwargs)
        if given is not None:
            recording.set_input(given)

    def returned(self, recording: Recording, result: object) -> None:
        if self.takes_output and result is not None:
            recording.returned(result)

    def plain(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.make() as recording:
                self.begun(recording, args, kwargs)
                result = self.function(*args, **kwargs)
                self.returned(recording, result)
                return result

        return wrapper

    def coroutine(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.make() as recording:
                self.begun(recording, args, kwargs)
                result = await self.function(*args, **kwargs)
                self.returned(recording, result)
                return result

        return wrapper

    def generator(self) -> Callable[..., Any]:
        @functools.wraps(self.function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _lasting(self.make()) as recording:
                self.begun(recording, args, kwargs)
                inner = self.function(*args, **kwargs)
                send: Any = functools.partial(next, inner)
                while True:
                    try:
                        with recording.active():
                            item = send()
                    except StopIteration as stop:
                        self.returned(recording, stop.value)
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
            with _lasting(self.make()) as recording:
                self.begun(recording, args, kwargs)
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
def _lasting(recording: Recording) -> Iterator[Recording]:
    """Begun and ended with the block, and current nowhere in it."""
    recording.start()
    with ExitStack() as stack:
        stack.push(recording.__exit__)
        yield recording


def _arguments(
    function: Callable[..., Any],
) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any] | None] | None:
    """What gives a call's arguments by their names, without ``self`` and ``cls``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    bound = next(iter(signature.parameters), "") in ("self", "cls")

    def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        try:
            found = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError:
            return None  # the call itself will say so
        if bound:
            found.pop(next(iter(found), ""), None)
        return found

    return named
