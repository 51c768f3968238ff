"""The OpenAI completions protocol: what clients send, and what they get back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from lit_eff.errors import nearest
from lit_eff.runtime.decode import Mode
from lit_eff.runtime.sampling import SamplingParams
from lit_eff.runtime.text import TextRequest

Tokens = Annotated[list[StrictInt], Field(min_length=1)]


class ApiError(Exception):
    """An answer other than success, in OpenAI's error format."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False


class CompletionRequest(BaseModel):
    """The body of ``POST /v1/completions``; a field that is ``null`` counts as left out.

    Defaults are OpenAI's. Beyond OpenAI: ``mode`` (and ``draft_exit``, ``draft_length`` for ``lossless``),
    where the bundle decides what is left out, and ``top_k``, ``min_p``, ``repetition_penalty``.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: StrictStr | None = None
    prompt: StrictStr | Tokens | Annotated[list[StrictStr] | list[Tokens], Field(min_length=1)]
    max_tokens: StrictInt = 16
    temperature: float = 1.0
    top_p: float = 1.0
    n: StrictInt = 1
    best_of: StrictInt = 1
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    stop: StrictStr | list[StrictStr] = []
    seed: StrictInt | None = None
    echo: StrictBool = False
    logprobs: StrictInt | None = None
    suffix: StrictStr | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    user: StrictStr | None = None

    mode: Mode | None = None
    draft_exit: StrictInt | Literal["auto"] | None = None
    draft_length: StrictInt | None = None
    top_k: StrictInt | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    @classmethod
    def parse(cls, body: bytes) -> CompletionRequest:
        """Raises ApiError for a body that is no JSON object, a wrong field, or something not supported."""
        try:
            content = json.loads(body)
        except ValueError as error:
            raise ApiError(f"the body is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ApiError(f"the body is a JSON {type(content).__name__}; expected an object")
        try:
            request = cls.model_validate({name: v for name, v in content.items() if v is not None})
        except ValidationError as error:
            raise _field_error(error) from None
        refused = (
            ("n", request.n != 1, "one completion is written for each prompt"),
            ("best_of", request.best_of != 1, "one completion is written for each prompt"),
            ("logprobs", request.logprobs is not None, "token probabilities are not returned"),
            ("suffix", request.suffix is not None, "text is only continued, never filled in"),
        )
        for name, given, reason in refused:
            if given:
                raise ApiError(f"{name} is not supported: {reason}", param=name)
        return request

    def text_requests(self, default_mode: Mode) -> list[TextRequest]:
        """One request per prompt.

        Raises:
            UserError: for sampling parameters out of range.
        """
        sampling = SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
        )
        return [
            TextRequest(
                prompt=prompt if isinstance(prompt, str) else tuple(prompt),
                max_tokens=self.max_tokens,
                mode=self.mode or default_mode,
                sampling=sampling,
                stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
                draft_exit=self.draft_exit,
                draft_length=self.draft_length,
            )
            for prompt in self._prompts()
        ]

    def _prompts(self) -> Sequence[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


def _field_error(error: ValidationError) -> ApiError:
    """The first problem in one line."""
    problems = error.errors(include_url=False)
    first = problems[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if name == "prompt":
        message = (
            "prompt must be a string, an array of strings, an array of tokens or an array of such arrays"
        )
        return ApiError(f"{message}, and not empty", param=name)
    if first["type"] == "missing":
        return ApiError(f"{name} is missing", param=name)
    if first["type"] == "extra_forbidden":
        field = str(first["loc"][-1])
        known = StreamOptions.model_fields if len(first["loc"]) > 1 else CompletionRequest.model_fields
        return ApiError(f"unknown field {field!r}{nearest(field, known)}", param=field)
    return ApiError(f"{name} is {first['input']!r}: {first['msg']}", param=name)


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
