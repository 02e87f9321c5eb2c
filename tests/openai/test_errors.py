"""Refusals: the exception, `param`, `code`, and a message that a person can act on."""

import openai
import pytest

USER = [{"role": "user", "content": "Hi"}]
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
OTHER = {"type": "function", "function": {"name": "g"}}


def schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


INVALID, NOT_BUILT, TOO_LONG = "invalid_value", "unsupported_parameter", "context_length_exceeded"

# What is wrong, the fields, `param`, `code`.
REFUSED = [
    ("unknown field", {"tempreature": 1}, "tempreature", INVALID),
    ("wrong type", {"temperature": "hot"}, "temperature", INVALID),
    ("out of range", {"temperature": 2.5}, "temperature", INVALID),
    ("negative", {"max_completion_tokens": -1}, "max_completion_tokens", INVALID),
    ("no tokens", {"max_completion_tokens": 0}, "max_completion_tokens", INVALID),
    ("two limits", {"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", INVALID),
    ("top_p", {"top_p": 0}, "top_p", INVALID),
    ("top_k", {"top_k": -2}, "top_k", INVALID),
    ("min_p", {"min_p": 2}, "min_p", INVALID),
    ("penalty", {"presence_penalty": 3}, "presence_penalty", INVALID),
    ("no choices", {"n": 0}, "n", INVALID),
    ("too many choices", {"n": 129}, "n", INVALID),
    ("bias of no token", {"logit_bias": {"river": 1}}, "logit_bias.river", INVALID),
    ("bias too strong", {"logit_bias": {"5": 101}}, "logit_bias", INVALID),
    ("bias out of vocabulary", {"logit_bias": {"99999999": 1}}, "logit_bias", INVALID),
    ("empty stop", {"stop": [""]}, "stop[0]", INVALID),
    ("too many stops", {"stop": ["a"] * 17}, "stop", INVALID),
    ("alternatives alone", {"top_logprobs": 2}, "top_logprobs", INVALID),
    ("too many alternatives", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", INVALID),
    ("options of no stream", {"stream_options": {"include_usage": True}}, "stream_options", INVALID),
    ("no messages", {"messages": []}, "messages", INVALID),
    ("messages missing", {"messages": None}, "messages", INVALID),
    ("model missing", {"model": None}, "model", INVALID),
    ("role", {"messages": [*USER, {"role": "wizard", "content": "x"}]}, "messages[1].role", INVALID),
    ("content", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", INVALID),
    ("image", {"messages": [IMAGE]}, "messages[0].content[0].type", NOT_BUILT),
    ("format", {"response_format": {"type": "yaml"}}, "response_format.type", INVALID),
    ("schema missing", {"response_format": {"type": "json_schema"}}, "response_format.json_schema", INVALID),
    ("schema", {"response_format": schema({"type": "wizard"})}, "response_format.json_schema.schema", INVALID),
    ("regex", {"structured_outputs": {"regex": "("}}, "structured_outputs.regex", INVALID),
    ("two forms", {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", INVALID),
    ("tool type", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", NOT_BUILT),
    ("tool twice", {"tools": [TOOL, TOOL]}, "tools[1].function.name", INVALID),
    ("tool unknown", {"tools": [TOOL], "tool_choice": OTHER}, "tool_choice.function.name", INVALID),
    ("required without tools", {"tool_choice": "required"}, "tool_choice", INVALID),
    ("deprecated functions", {"functions": [{"name": "f"}]}, "functions", NOT_BUILT),
    ("audio", {"modalities": ["audio"]}, "modalities", NOT_BUILT),
    ("quality", {"quality": "lossless"}, "quality", INVALID),
    ("strategy", {"speculation": {"strategy": "magic"}}, "speculation.strategy", INVALID),
    ("k missing", {"speculation": {"strategy": "lockstep"}}, "speculation.k", INVALID),
    ("answer too long", {"max_completion_tokens": 10_000_000}, "max_completion_tokens", TOO_LONG),
    ("answer too long by the older name", {"max_tokens": 10_000_000}, "max_tokens", TOO_LONG),
    ("prompt too long", {"messages": [{"role": "user", "content": "river " * 40_000}]}, "messages", TOO_LONG),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("fields", "param", "code"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_request_names_its_field(client, model, fields, param, code, stream):
    if stream and "stream_options" in fields:
        return
    body = {"model": model, "messages": USER, "stream": stream} | fields
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=USER, extra_body=body)
    error = refused.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error"), error.message
    assert param.split("[")[0].split(".")[0] in error.message
    assert error.request_id


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", None), (b"{", None), (b"[]", None), (b"\xff{}", None), (b"null", None), (b"{}", "text/plain")],
    ids=["empty", "half", "list", "no utf-8", "null", "no json"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"])
def test_a_body_that_is_none(http, path, body, content_type):
    response = http.post(path, content=body, headers={"content-type": content_type or "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (INVALID, None) and error["message"]


def test_deep_nesting_is_refused_and_breaks_nothing(http, chat):
    response = http.post(
        "/v1/chat/completions", content=b"[" * 200_000, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert chat(max_completion_tokens=1).usage.completion_tokens == 1


def test_too_long_a_body(client, model):
    # More than the usual 4 MiB. Often, because the connection must not be used again while the body is on it.
    messages = [{"role": "user", "content": "x" * (5 << 20)}]
    for _ in range(5):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model=model, messages=messages)
        assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
        assert "max_body_bytes" in refused.value.message
        client.models.retrieve(model)


def test_a_model_that_is_not_served(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-none", messages=USER)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-none")


def test_a_path_that_is_not_served(http, client):
    response = http.get("/v1/nothing")
    assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_url"
    response = http.get("/v1/chat/completions")
    assert response.status_code == 405 and response.json()["error"]["code"] == "method_not_allowed"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_none")


NOT_SERVED = {
    "embeddings": lambda c: c.embeddings.create(model="m", input="x"),
    "moderations": lambda c: c.moderations.create(input="x"),
    "images": lambda c: c.images.generate(prompt="x"),
    "files": lambda c: c.files.list(),
    "batches": lambda c: c.batches.list(),
    "fine-tuning": lambda c: c.fine_tuning.jobs.list(),
}


@pytest.mark.parametrize("call", NOT_SERVED.values(), ids=NOT_SERVED)
def test_what_is_not_built_says_so(client, call):
    with pytest.raises(openai.APIStatusError) as refused:
        call(client)
    assert (refused.value.status_code, refused.value.code) == (501, "not_implemented")
    assert "not built" in refused.value.message
