"""The bodies of the Open Inference Protocol v2, as they are checked and as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qalign_fast.serve.protocols.foreign import Many, RequestBody
from qalign_fast.serve.schemas import PICTURE

_MOST_TENSORS = 16
_MOST = (1 << 31) - 1  # elements of a tensor, as in other servers


class InputTensor(RequestBody):
    """A tensor of a request."""

    name: str = Field(json_schema_extra={"enum": ["image", "task"]})
    shape: Many[Annotated[int, Field(ge=0, le=_MOST)]] = Field(max_length=8, description="How many elements.")
    datatype: str = Field(json_schema_extra={"enum": ["BYTES"]})
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size: bytes of it behind the JSON.")
    data: list[Any] | None = Field(
        None, description="Texts, flat or nested: base64, data: URIs or allowed addresses; absent where it is binary."
    )


class OutputWish(RequestBody):
    """A tensor that the reply is to have."""

    name: str = Field(json_schema_extra={"enum": ["score", "score01", "probabilities", "status"]})
    parameters: dict[str, Any] | None = Field(None, description="binary_data: whether it comes behind the JSON.")


class OutputTensor(BaseModel):
    """A tensor of a reply."""

    model_config = ConfigDict(extra="forbid")
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, int] | None = None
    data: list[float | str | None] | None = Field(None, description="Flat; null where a picture has no number.")


class InferRequest(RequestBody):
    """A request for scores."""

    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="task: a text; timeout: microseconds; binary_data_output: whether outputs are binary."
    )
    inputs: Many[InputTensor] = Field(max_length=_MOST_TENSORS)
    outputs: Annotated[Many[OutputWish], Field(max_length=_MOST_TENSORS)] | None = Field(
        None, description="All, where none is named."
    )


class InferAnswer(BaseModel):
    """The scores of a request."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class ServerFacts(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorFacts(BaseModel):
    """A tensor of a model; -1 is any number."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ModelFacts(BaseModel):
    """A model's inputs and outputs; the input `task` may be left out."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]


class ModelReady(BaseModel):
    """Whether a model answers."""

    name: str
    ready: bool


EXAMPLE = {
    "id": "42",
    "parameters": {"task": "quality"},
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [PICTURE]}],
    "outputs": [{"name": "score"}, {"name": "status"}],
}
