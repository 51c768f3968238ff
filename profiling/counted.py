"""Counts what Triton kernels ask of HBM, lane by lane, while the interpreter runs them: no GPU, no formula.

Every access of the interpreter (plain, block-pointer, descriptor, gather and scatter) passes through two
builder methods, atomics through methods of their own; those are wrapped for the length of a ``with`` block.
What is counted is what the kernel requests: a real device moves at least the distinct 32-byte sectors (the
rest hit in a cache) and at most the requested bytes, rounded up to sectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from lit_eff.errors import UserError
from lit_eff.profiling.counter import Counter, KernelCount

DEPENDENT_LAUNCH = ("gdc_wait", "gdc_launch_dependents")


@contextmanager
def count_traffic() -> Iterator[list[KernelCount]]:
    """Count the HBM requests of every interpreted Triton kernel launched inside the ``with`` block.

    Yields a list that holds one :class:`KernelCount` a launch, in order, as they finish.

    Raises: UserError: on leaving, if no interpreted kernel was launched; ``TRITON_INTERPRET=1`` must be set
        before the kernel's module is imported.
    """
    from triton.language.extra import cuda
    from triton.runtime import interpreter

    counter = Counter()
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    run, host_arguments = executor.__call__, executor._init_args_hst

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        counter.running = KernelCount(self.fn.__name__)
        try:
            result = run(self, *args, **kwargs)
            counter.launches.append(counter.running)
        finally:
            counter.running = None
        return result

    def placed_arguments(self: Any, args: Any, kwargs: Any) -> Any:
        # The interpreter copies device tensors to the host: only here are the addresses it will use known.
        args_host, kwargs_host = host_arguments(self, args, kwargs)
        counter.place({**dict(zip(self.arg_names, args_host, strict=False)), **kwargs_host})
        return args_host, kwargs_host

    patches = [
        mock.patch.object(executor, "__call__", counted_run),
        mock.patch.object(executor, "_init_args_hst", placed_arguments),
    ]
    patches += [
        mock.patch.object(builder, name, wrap(counter, getattr(builder, name)))
        for name, wrap in WRAPPERS.items()
        if hasattr(builder, name)  # Triton 3.9 adds atomic loads, stores and polls
    ]
    # Of dependent launches, which the interpreter lacks: it runs them one after the other anyway.
    patches += [mock.patch.object(cuda, name, mock.Mock(return_value=None)) for name in DEPENDENT_LAUNCH]
    for patch in patches:
        patch.start()
    try:
        yield counter.launches
    finally:
        for patch in reversed(patches):
            patch.stop()
    if not counter.launches:
        raise UserError(
            "no interpreted Triton kernel was launched, so nothing was counted; set TRITON_INTERPRET=1 "
            "before the kernel's module is imported"
        )


Method = Callable[..., Any]


def _wrap_load(counter: Counter, method: Method) -> Method:
    def create_masked_load(self: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        counter.access("atomics" if counter.in_atomic else "loads", pointers, mask)
        return method(self, pointers, mask, *args, **kwargs)

    return create_masked_load


def _wrap_store(counter: Counter, method: Method) -> Method:
    def create_masked_store(
        self: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        counter.access("atomics" if counter.in_atomic else "stores", pointers, mask)
        return method(self, pointers, value, mask, *args, **kwargs)

    return create_masked_store


def _wrap_read_modify_write(counter: Counter, method: Method) -> Method:
    def create_atomic_rmw(
        self: Any, op: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        counter.access("atomics", pointers, mask)
        return method(self, op, pointers, value, mask, *args, **kwargs)

    return create_atomic_rmw


def _wrap_compare_and_swap(counter: Counter, method: Method) -> Method:
    def create_atomic_cas(self: Any, pointers: Any, *args: Any, **kwargs: Any) -> Any:
        counter.access("atomics", pointers, None)
        return method(self, pointers, *args, **kwargs)

    return create_atomic_cas


def _wrap_plain_atomic(counter: Counter, method: Method) -> Method:
    """Atomic loads, stores and polls go through the plain methods: count those as atomics meanwhile."""

    def create_atomic(self: Any, *args: Any, **kwargs: Any) -> Any:
        counter.in_atomic = True
        try:
            return method(self, *args, **kwargs)
        finally:
            counter.in_atomic = False

    return create_atomic


WRAPPERS: dict[str, Callable[[Counter, Method], Method]] = {
    "create_masked_load": _wrap_load,
    "create_masked_store": _wrap_store,
    "create_atomic_rmw": _wrap_read_modify_write,
    "create_atomic_cas": _wrap_compare_and_swap,
    "create_atomic_load": _wrap_plain_atomic,
    "create_atomic_store": _wrap_plain_atomic,
    "create_atomic_poll": _wrap_plain_atomic,
}
