"""The responses API, stateless."""

import json
from typing import Literal

import openai
import pydantic
import pytest

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city now",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def fields(model):
    def fields(**more):
        usual = {"model": model, "input": "Tell me about rivers.", "max_output_tokens": 16, "temperature": 0.8}
        return usual | {"extra_body": {"seed": 7}} | more

    return fields


def test_an_answer_is_the_chats(client, fields, chat):
    response = client.responses.create(**fields())
    assert response.object == "response" and response.id.startswith("resp_")
    whole = chat(max_completion_tokens=16)
    assert response.output_text == whole.choices[0].message.content
    assert response.usage.input_tokens == whole.usage.prompt_tokens
    assert response.usage.output_tokens == whole.usage.completion_tokens
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    (message,) = response.output
    assert (message.type, message.role) == ("message", "assistant")
    # Cut at its limit.
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"


def test_instructions_and_items(client, fields, chat):
    items = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
    ]
    messages = [{"role": "system", "content": "Be terse."}, *items[:2], {"role": "user", "content": "What is my name?"}]
    response = client.responses.create(**fields(input=items, instructions="Be terse."))
    assert response.output_text == chat(messages=messages, max_completion_tokens=16).choices[0].message.content


def test_its_own_output_goes_back_as_input(client, fields):
    first = client.responses.create(**fields())
    items = [{"role": "user", "content": "Tell me about rivers."}, *first.output, {"role": "user", "content": "Go on."}]
    second = client.responses.create(**fields(input=items))
    assert second.output_text and second.usage.input_tokens > first.usage.total_tokens


def test_the_events_of_a_stream(client, fields):
    whole = client.responses.create(**fields())
    events = list(client.responses.create(**fields(), stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events if e.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert next(e.text for e in events if e.type == "response.output_text.done") == text
    assert events[-1].response.usage == whole.usage.model_copy(
        update={"input_tokens_details": events[-1].response.usage.input_tokens_details}
    )


def test_the_clients_own_reader_of_streams(client, fields):
    with client.responses.stream(**fields()) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert text == client.responses.create(**fields()).output_text


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    start: Literal["Paris", "Rome"]
    by: Literal["boat", "train"]


def test_a_pydantic_model(client, fields):
    response = client.responses.parse(**fields(max_output_tokens=100), text_format=Trip)
    assert isinstance(response.output_parsed, Trip) and response.status == "completed"


def test_a_call_and_its_result(client, fields):
    more = {"tools": [WEATHER], "max_output_tokens": 60, "parallel_tool_calls": False}
    response = client.responses.create(**fields(**more, tool_choice="required"))
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert call.name == "get_weather" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
    events = list(client.responses.create(**fields(**more, tool_choice="required"), stream=True))
    written = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert written == call.arguments
    items = [
        {"role": "user", "content": "Tell me about rivers."},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"},
    ]
    after = client.responses.create(**fields(input=items, **more))
    assert after.usage.input_tokens > response.usage.input_tokens


def test_logprobs(client, fields):
    response = client.responses.create(**fields(include=["message.output_text.logprobs"], top_logprobs=2))
    logprobs = response.output[0].content[0].logprobs
    assert "".join(t.token for t in logprobs) == response.output_text
    assert all(len(t.top_logprobs) == 2 for t in logprobs)


REFUSED = {
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "background": True,
    "nonsense": 1,
    "temperature": 3,
    "input": None,
}


@pytest.mark.parametrize("field", REFUSED)
def test_refusals(client, fields, field):
    body = fields() | {"extra_body": {field: REFUSED[field]}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**body)
    assert refused.value.param == field


def test_nothing_is_stored(client, fields):
    response = client.responses.create(**fields(), store=True)
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(response.id)
