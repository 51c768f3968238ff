"""An ONNX graph under construction, and the one file that holds the weights of all graphs of a bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 11
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
INLINE_BYTES = 1024  # smaller tensors stay inside the graph
ALIGNMENT = 4096  # ONNX Runtime maps external tensors into memory page by page

Array = NDArray[np.float32]


class WeightFile:
    """Appends tensors to one file, each content once: tied and shared matrices cost no second copy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, tuple[int, int]] = {}
        path.write_bytes(b"")

    def add(self, array: Array) -> tuple[int, int]:
        """Offset and length in bytes of the array's content."""
        content = np.ascontiguousarray(array, dtype="<f4").tobytes()
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            with open(self.path, "ab") as file:
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                self._places[key] = (file.tell(), len(content))
                file.write(content)
        return self._places[key]


class Graph:
    """Nodes, inputs, outputs and weights; every value is its name."""

    def __init__(self, weights: WeightFile) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def input(self, name: str, kind: type, shape: list[str | int]) -> str:
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, value: str, name: str, shape: list[str | int]) -> None:
        """Publish a float32 value as ``name``, which may be what it is called already."""
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        return self.nodes(operator, inputs, [self._fresh()], domain=domain, **attributes)[0]

    def nodes(
        self,
        operator: str,
        inputs: tuple[str, ...],
        outputs: list[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node with the outputs named. An empty input name is an input left out."""
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, domain=domain, **attributes))
        return outputs

    def split(self, value: str, sizes: list[int]) -> list[str]:
        """Cut the last axis into pieces of the given sizes."""
        outputs = [self._fresh(f"piece{i}") for i in range(len(sizes))]
        return self.nodes("Split", (value, self.integers(sizes)), outputs, axis=-1)

    def integers(self, values: list[int]) -> str:
        name = self._fresh("shape")
        self._initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def weight(self, array: Array) -> str:
        """A constant float32 tensor; large ones go to the weight file."""
        name = self._fresh("weight")
        array = np.asarray(array, np.float32)
        if array.nbytes < INLINE_BYTES:
            self._initializers.append(numpy_helper.from_array(array, name))
            return name
        offset, length = self._weights.add(array)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self._weights.path.name, "offset": offset, "length": length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._initializers.append(tensor)
        return name

    def save(self, path: Path) -> None:
        """Write the graph beside the weight file it points into."""
        graph = helper.make_graph(self._nodes, path.stem, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lit_eff")
        path.write_bytes(model.SerializeToString())

    def _fresh(self, kind: str = "value") -> str:
        return f"{kind}_{len(self._nodes)}_{len(self._initializers)}"
