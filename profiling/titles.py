"""Names for records: the kernel's, and of its shape what tells it from the others of that name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lit_eff.profiling.traffic import KernelTraffic, Shape


def titles(records: Sequence[KernelTraffic]) -> list[str]:
    """One each, as ``flash: forward (length 1024)``; records that are alike in all get ``#2``, ``#3``."""
    shapes = defaultdict(list)
    for record in records:
        shapes[record.kernel].append(record.shape)
    telling = {kernel: _telling(each) for kernel, each in shapes.items()}
    seen: dict[str, int] = defaultdict(int)
    found = []
    for record in records:
        shown = {name: record.shape[name] for name in telling[record.kernel] if name in record.shape}
        title = f"{record.kernel} ({shape_text(shown)})" if shown else record.kernel
        seen[title] += 1
        found.append(title if seen[title] == 1 else f"{title} #{seen[title]}")
    return found


def shape_text(shape: Shape) -> str:
    """As in ``batch 4, length 1024, causal True``. Long lists, such as packed lengths, are cut."""
    return ", ".join(f"{name} {_value(value)}" for name, value in shape.items())


def _value(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _telling(shapes: Sequence[Shape]) -> list[str]:
    names = dict.fromkeys(name for shape in shapes for name in shape)
    return [name for name in names if len({repr(shape.get(name)) for shape in shapes}) > 1]
