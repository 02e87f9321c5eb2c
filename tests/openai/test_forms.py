"""Answers held to a form: JSON, JSON Schema, and vLLM's other forms."""

import json
import re
from typing import Literal

import jsonschema
import pydantic
import pytest
from conftest import text_of

# Finite, so that any model comes to its end.
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "people": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 2}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "people", "tags"],
    "additionalProperties": False,
}


def of_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.mark.parametrize("seed", range(2))
def test_a_schema_is_kept(chat, seed):
    # Hot, so that the model alone would never write this.
    choice = chat(seed=seed, temperature=1.5, response_format=of_schema(SCHEMA), max_completion_tokens=200).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_streamed_the_same(chat, chunks):
    fields = {"response_format": of_schema(SCHEMA), "max_completion_tokens": 200, "temperature": 1.5}
    whole = chat(**fields).choices[0].message.content
    assert text_of(chunks(**fields)) == whole


def test_every_choice_keeps_the_schema(chat):
    answer = chat(n=2, temperature=1.5, response_format=of_schema(SCHEMA), max_completion_tokens=200)
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


class Place(pydantic.BaseModel):
    city: Literal["Paris", "Rome"]
    people: int = pydantic.Field(ge=1, le=99)


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    start: Place
    by: Literal["boat", "train"]


def test_parse_reads_a_pydantic_model(client, asked):
    answer = client.chat.completions.parse(**asked(max_completion_tokens=200), response_format=Trip)
    assert isinstance(answer.choices[0].message.parsed, Trip)


def test_the_stream_of_a_pydantic_model(client, asked):
    with client.chat.completions.stream(**asked(max_completion_tokens=200), response_format=Trip) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert isinstance(completion.choices[0].message.parsed, Trip)


def test_a_json_object(chat):
    question = [{"role": "user", "content": 'Answer in JSON, such as {"river": "Rhine"}. Name a river.'}]
    form = {"type": "json_object"}
    choice = chat(messages=question, response_format=form, max_completion_tokens=40).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:  # Cut: still the beginning of an object.
        assert choice.message.content.lstrip().startswith("{")


def test_text_is_no_form(chat):
    assert chat(response_format={"type": "text"}).choices[0].message.content == chat().choices[0].message.content


@pytest.mark.paceline
@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"choice": ["Rhine", "Rhône", "Danube (Donau)"]}, r"Rhine|Rhône|Danube \(Donau\)"),
        ({"regex": r"[A-Z]{2}-[0-9]{4}"}, r"[A-Z]{2}-[0-9]{4}"),
        ({"grammar": 'start: ("ab" | "cd"){2,3} "."'}, r"(ab|cd){2,3}\."),
        ({"json": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}}, r"(?s)\[.*\]"),
    ],
    ids=["choice", "regex", "grammar", "json"],
)
def test_structured_outputs(chat, form, pattern):
    answer = chat(temperature=1.5, max_completion_tokens=64, extra_body={"structured_outputs": form}).choices[0]
    assert answer.finish_reason == "stop" and re.fullmatch(pattern, answer.message.content), answer.message.content


@pytest.mark.paceline
@pytest.mark.drafts
def test_drafts_change_nothing_under_a_form(chat):
    def answer(strategy):
        answer = chat(
            response_format=of_schema(SCHEMA), max_completion_tokens=200, extra_body={"speculation": strategy}
        )
        return answer.choices[0].message.content

    assert answer({"strategy": "lockstep", "k": 4}) == answer({"strategy": "none"})
