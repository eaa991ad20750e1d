"""The bodies of our own routes, as OpenAPI shows them, with examples that the tests send."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qalign_fast.pixels.limits import MAX_FPS

# 8 x 8 pixels of a PNG, so that an example of the document can be sent as it stands
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR42mNkYGBg4RHBggQ4WFiwokEpAQAWAgTurmiZSQAAAABJRU5ErkJggg=="
)


class ErrorAnswer(BaseModel):
    """Every answer that is an error."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "...", "error_type": "Validation"}]})
    error: str = Field(description="What was found, what was expected, what would work; one line.")
    error_type: Literal["Validation", "Empty", "Overloaded", "Backend", "Unhealthy"]


class Row(BaseModel):
    """One picture or clip in one task, as the command line prints it."""

    source: str
    task: str
    score: float | None = Field(description="1 (bad) to 5 (excellent); null where there is an error.")
    level: str | None
    probabilities: dict[str, float] | None = Field(description="Of each level, excellent first.")
    error: str | None
    error_type: str | None = Field(None, description="Only beside an error: the class of it, such as ImageError.")
    frames: int | None = Field(None, description="Only of clips: how many frames were scored.")
    warnings: list[str] | None = Field(None, description="Only where there are any.")
    logits: list[float] | None = Field(None, description="Only where they were asked for: float32, exact.")


class Scores(BaseModel):
    """The rows of a request: picture by picture, its tasks in the order asked."""

    model: str
    rows: list[Row]


class Unscored(ErrorAnswer):
    """The answer where nothing could be scored; `rows` has the error of each picture, where there are pictures."""

    model: str | None = None
    rows: list[Row] | None = None


class Moment(BaseModel):
    """A sampled frame of a clip, scored as a picture."""

    index: int = Field(description="Its number in the clip.")
    time: float | None = Field(description="The second where it is shown; null where frames were sent.")
    task: str
    score: float


class ClipScores(Scores):
    """A clip's rows, one for each task."""

    timeline: list[Moment] | None = Field(None, description="Only where it was asked for.")


class Comparison(BaseModel):
    """Picture A beside picture B in one task."""

    task: str
    difference: float = Field(description="A's score minus B's, on 1..5.")
    better: Literal["A", "B"] | None
    probability_a_better: float = Field(
        description="That A's level is above B's, half of a tie included, if the two distributions are independent."
    )


class Comparisons(Scores):
    """Two pictures' rows and how they compare."""

    comparisons: list[Comparison]


class Live(BaseModel):
    """The process answers."""

    live: Literal[True]


class Health(Live):
    """Every model is loaded and warm, and the server is not about to stop."""

    ready: Literal[True]


class Models(BaseModel):
    """What the server has loaded."""

    object: Literal["list"]
    data: list[dict[str, Any]]


_IMAGE: dict[str, Any] = {
    "description": "base64, a data: URI, or an object with `b64` or (where the server allows its host) `url`.",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"b64": {"type": "string"}, "url": {"type": "string"}, "source": {"type": "string"}},
        },
    ],
}
_TASK: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_COMMON: dict[str, Any] = {"task": _TASK, "model": {"type": ["string", "null"]}, "logits": {"type": "boolean"}}
_FILES: dict[str, Any] = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        **_COMMON,
        "model": {"type": "string"},
    },
    "required": ["files"],
}
_RAW: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


_QUERY = [
    _query(
        "task",
        {"type": "array", "items": {"type": "string"}},
        "quality, aesthetics, any other the model has, several, or `all`. Default: quality.",
    ),
    _query("model", {"type": "string"}, "A name of /v1/models. Default: the first."),
    _query("logits", {"type": "boolean", "default": False}, "Rows also have the five logits."),
]
_SOURCE = _query("source", {"type": "string"}, "What a raw body is called in its rows.")
_CLIP_QUERY = [
    _query("fps", {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_FPS, "default": 1}, "Frames a second."),
    _query("max_frames", {"type": "integer", "minimum": 1}, "At most. Default: the family's number."),
    _query("sampling", {"enum": ["index", "time"], "default": "index"}, "Frames by index, or by time."),
    _query("timeline", {"type": "boolean", "default": False}, "Each frame is also scored as a picture."),
]


def _body(json_schema: dict[str, Any], example: dict[str, Any], *raw: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "application/json": {"schema": json_schema, "example": example},
        "multipart/form-data": {"schema": _FILES},
    }
    return {
        "parameters": [*_QUERY, *([_SOURCE] if raw else [])],
        "requestBody": {"required": True, "content": content | dict.fromkeys(raw, _RAW)},
    }


SCORE_BODY = _body(
    {
        "type": "object",
        "properties": {"images": {"type": "array", "items": _IMAGE, "minItems": 1}, "image": _IMAGE, **_COMMON},
        "oneOf": [{"required": ["images"]}, {"required": ["image"]}],
    },
    {"images": [{"b64": PICTURE, "source": "small.png"}], "task": "quality"},
    "image/*",
    "application/octet-stream",
)
CLIP_BODY = _body(
    {
        "type": "object",
        "properties": {
            "video": _IMAGE,
            "frames": {"type": "array", "items": _IMAGE, "minItems": 1},
            "fps": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_FPS},
            "max_frames": {"type": ["integer", "null"], "minimum": 1},
            "sampling": {"enum": ["index", "time"]},
            "timeline": {"type": "boolean"},
            **_COMMON,
        },
        "oneOf": [{"required": ["video"]}, {"required": ["frames"]}],
    },
    {"frames": [PICTURE, PICTURE], "task": "quality", "timeline": True},
    "video/*",
    "image/*",
    "application/octet-stream",
)
CLIP_BODY["parameters"] += _CLIP_QUERY
COMPARE_BODY = _body(
    {
        "type": "object",
        "properties": {"images": {"type": "array", "items": _IMAGE, "minItems": 2, "maxItems": 2}, **_COMMON},
        "required": ["images"],
    },
    {"images": [{"b64": PICTURE, "source": "a.png"}, {"b64": PICTURE, "source": "b.png"}]},
)


def problems(*statuses: int, other: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """The errors that a route documents; `other` is the body of 422."""
    text = {
        400: "The body cannot be read.",
        401: "The key is missing or wrong.",
        404: "No such model.",
        408: "The body comes too slowly.",
        413: "Over a limit of size.",
        415: "A content type that the route does not take.",
        422: "Not what the route takes, or nothing in it can be scored.",
        429: "The queue is full; Retry-After says when to come again.",
        500: "A fault of the server.",
        503: "Loading, stopping, or the deadline passed in the queue; Retry-After says when to come again.",
    }
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"model": other if status == 422 else ErrorAnswer, "description": text[status]}
        if status in (429, 503):
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


ALL_PROBLEMS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
