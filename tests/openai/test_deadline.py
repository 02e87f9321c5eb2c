"""The server's own limit of time, `request_timeout`: a status before the first token, one event after it."""

import os
import time

import openai
import pytest
from conftest import text_of

pytestmark = [pytest.mark.paceline, pytest.mark.deadline]

LONG = {"max_completion_tokens": 4000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module", autouse=True)
def seconds():
    """The limit, spelled as the server's variable of that name: `2s`."""
    limit = os.environ.get("PACELINE_REQUEST_TIMEOUT")
    if not limit:
        pytest.skip("PACELINE_REQUEST_TIMEOUT does not say the server's request_timeout")
    return float(limit.removesuffix("s"))


def test_a_whole_answer_that_takes_too_long(client, asked, idle, seconds):
    begun = time.monotonic()
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(**asked(**LONG))
    assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
    assert seconds * 0.9 < time.monotonic() - begun < seconds + 3
    idle()


def test_a_stream_that_takes_too_long_ends_with_one_error(client, asked, idle, chat):
    read = []
    with pytest.raises(openai.APIError) as broken:
        for chunk in client.chat.completions.create(**asked(**LONG), stream=True):
            read.append(chunk)
    assert broken.value.code == "deadline_exceeded"
    # What had come is right.
    assert text_of(read).startswith(chat(max_completion_tokens=8).choices[0].message.content)
    idle()


def test_the_raw_events_of_such_a_stream(events, asked):
    fields = asked(**LONG, stream=True)
    fields |= fields.pop("extra_body")
    read = [data for _, data in events("/v1/chat/completions", fields)]
    errors = [i for i, data in enumerate(read) if data.startswith('{"error"')]
    assert errors == [len(read) - 1] and "[DONE]" not in read


def test_the_next_request_is_served(chat):
    assert chat(max_completion_tokens=4).usage.completion_tokens == 4
