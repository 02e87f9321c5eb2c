"""Tools: forced calls for any model, calls of its own accord for models that were taught them."""

import json

import jsonschema
import pytest

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TIME = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["CET", "UTC"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "get_time": TIME}


def tool(name, description, strict):
    function = {"name": name, "description": description, "parameters": SCHEMAS[name]}
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


def tools(strict=False):
    return [
        tool("get_weather", "The weather of a city now", strict),
        tool("get_time", "The time of day in a time zone", strict),
    ]


QUESTION = [{"role": "user", "content": "What is the weather in Paris now, in celsius?"}]
BOTH = [{"role": "user", "content": "What is the weather in Oslo in celsius, and what time is it in UTC?"}]
# One call is quickly written; a small model that may write more writes many.
ROOM = {"max_completion_tokens": 120, "messages": QUESTION, "parallel_tool_calls": False}


def checked(choice):
    """The calls of a choice, each kept to its schema."""
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    calls = choice.message.tool_calls
    assert len({call.id for call in calls}) == len(calls) and all(call.id for call in calls)
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return calls


@pytest.mark.parametrize("parallel", [False, True], ids=["one", "several"])
def test_required_calls_something(chat, parallel):
    fields = ROOM | {"parallel_tool_calls": parallel}
    calls = checked(chat(**fields, tools=tools(), tool_choice="required").choices[0])
    assert parallel or len(calls) == 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_tool_is_called(chat, name):
    choice = chat(**ROOM, tools=tools(), tool_choice={"type": "function", "function": {"name": name}}).choices[0]
    assert {call.function.name for call in checked(choice)} == {name}


def test_one_call_at_most(chat):
    answer = chat(**ROOM, n=3, temperature=1.5, tools=tools(), tool_choice="required")
    for choice in answer.choices:
        assert len(checked(choice)) == 1


def test_none_calls_nothing(chat):
    fields = ROOM | {"max_completion_tokens": 16}
    choice = chat(**fields, tools=tools(), tool_choice="none").choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason != "tool_calls"
    assert choice.message.content == chat(**fields).choices[0].message.content


def assembled(streamed):
    """Calls out of deltas, as every client does it: an id and a name once, arguments in parts."""
    calls = {}
    for chunk in streamed:
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(delta.index, {"id": None, "name": None, "arguments": "", "parts": 0})
                if delta.id is not None:
                    assert call["id"] is None and delta.type == "function"
                    call["id"], call["name"] = delta.id, delta.function.name
                call["arguments"] += delta.function.arguments or ""
                call["parts"] += bool(delta.function.arguments)
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())


def test_a_streamed_call_is_the_whole_ones(chat, chunks):
    fields = ROOM | {"tools": tools(), "tool_choice": "required"}
    whole = checked(chat(**fields).choices[0])
    streamed = assembled(chunks(**fields))
    assert [(c["name"], c["arguments"]) for c in streamed] == [
        (c.function.name, c.function.arguments) for c in whole
    ]
    assert max(c["parts"] for c in streamed) > 1, "arguments come as they are written"


def test_the_clients_own_reader_sees_calls(client, asked):
    # The client wants every tool strict here; the answer's calls are parsed for it.
    fields = asked(**ROOM, tools=tools(strict=True), tool_choice="required")
    with client.chat.completions.stream(**fields) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        completion = stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert [event.name for event in done] == [call.function.name for call in calls]
    for call in calls:
        jsonschema.validate(call.function.parsed_arguments, SCHEMAS[call.function.name])


def test_a_call_and_its_result_go_back_into_the_conversation(chat):
    call = checked(chat(**ROOM, tools=tools(), tool_choice="required").choices[0])[0]
    messages = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21, "sky": "clear"}'},
    ]
    answer = chat(messages=messages, tools=tools())
    without = chat(messages=messages[:1], tools=tools(), max_completion_tokens=1)
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def called(number, name, **arguments):
    """A call of an earlier turn."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function}


def returned(call, **result):
    return {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)}


# Earlier turns show a small model what is wanted of it.
ROME, CET = called(1, "get_weather", city="Rome", unit="celsius"), called(2, "get_time", zone="CET")
ONE_BEFORE = [
    {"role": "user", "content": "What is the weather in Rome now, in celsius?"},
    {"role": "assistant", "tool_calls": [ROME]},
    returned(ROME, degrees=18, sky="cloudy"),
    {"role": "assistant", "content": "It is 18 degrees and cloudy in Rome."},
]
BOTH_BEFORE = [
    {"role": "user", "content": "What is the weather in Rome in celsius, and what time is it in CET?"},
    {"role": "assistant", "tool_calls": [ROME, CET]},
    returned(ROME, degrees=18, sky="cloudy"),
    returned(CET, time="12:05"),
    {"role": "assistant", "content": "It is 18 degrees and cloudy in Rome, and 12:05 CET."},
]


@pytest.fixture(scope="module")
def inclined(http, model):
    """Makes the token that opens a call likelier: small models know its use and seldom begin with it."""
    tokens = http.post("/tokenize", json={"model": model, "prompt": "<tool_call>"}).json()["tokens"]
    return {"logit_bias": {str(tokens[0]): 17}} if len(tokens) == 1 else {}


@pytest.mark.calls
@pytest.mark.parametrize("strict", [False, True], ids=["lax", "strict"])
def test_auto_calls_where_it_helps(chat, chunks, inclined, strict):
    fields = ROOM | inclined | {"temperature": 0, "tools": tools(strict)}
    (call,) = checked(chat(**fields).choices[0])
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] == "Paris"
    (streamed,) = assembled(chunks(**fields))
    assert (streamed["name"], streamed["arguments"]) == (call.function.name, call.function.arguments)


@pytest.mark.calls
def test_auto_answers_where_no_tool_helps(chat, inclined):
    question = [{"role": "user", "content": "Say hello in one word."}]
    choice = chat(messages=question, temperature=0, tools=tools(), **inclined).choices[0]
    assert choice.message.tool_calls is None and choice.message.content


@pytest.mark.calls
def test_parallel_calls(chat, chunks):
    fields = {"messages": BOTH_BEFORE + BOTH, "temperature": 0, "tools": tools(), "tool_choice": "required"}
    fields |= {"max_completion_tokens": 120}
    calls = checked(chat(**fields).choices[0])
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    streamed = assembled(chunks(**fields))
    assert [(c["name"], c["arguments"]) for c in streamed] == [(c.function.name, c.function.arguments) for c in calls]
    assert len({c["id"] for c in streamed}) == 2
    one = chat(**fields, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in checked(one)] == ["get_weather"]


@pytest.mark.calls
def test_a_result_is_used(chat):
    call = called(3, "get_weather", city="Paris", unit="celsius")
    turn = [{"role": "assistant", "tool_calls": [call]}, returned(call, degrees=21, sky="clear")]
    messages = [*ONE_BEFORE, *QUESTION, *turn]
    answer = chat(messages=messages, tools=tools(), temperature=0, max_completion_tokens=40).choices[0]
    assert answer.finish_reason == "stop" and "21" in answer.message.content and "Paris" in answer.message.content
