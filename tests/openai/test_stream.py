"""Streams: they say what the whole answer says, in the client's and in the raw events' shapes."""

import json

import pytest
from conftest import forced, joined, last, text_of

pytestmark = pytest.mark.drafts


def test_joined_chunks_are_the_whole_answer(chat, chunks):
    whole = chat()
    streamed = chunks()
    assert text_of(streamed) == whole.choices[0].message.content
    assert last(streamed) == whole.choices[0].finish_reason
    assert {c.object for c in streamed} == {"chat.completion.chunk"}
    assert len({(c.id, c.created, c.model, c.system_fingerprint) for c in streamed}) == 1
    assert streamed[0].choices[0].delta.role == "assistant"
    assert all(c.usage is None for c in streamed), "usage was not asked for"
    assert len(streamed) > 4, "a stream that comes at once is none"


def test_usage_comes_in_a_chunk_of_its_own(chat, chunks):
    *before, end = chunks(stream_options={"include_usage": True})
    assert end.choices == [] and all(c.usage is None for c in before)
    whole = chat()
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert end.usage.total_tokens == end.usage.prompt_tokens + end.usage.completion_tokens


def test_the_clients_own_reader_of_streams(client, asked, chat):
    # The client refuses answers that were cut, so this one ends by itself.
    whole = chat()
    fields = {"stop": whole.choices[0].message.content[-8:]}
    whole = chat(**fields)
    with client.chat.completions.stream(**asked(**fields), stream_options={"include_usage": True}) as stream:
        said = [event.delta for event in stream if event.type == "content.delta"]
        completion = stream.get_final_completion()
    assert "".join(said) == completion.choices[0].message.content == whole.choices[0].message.content
    assert completion.usage.completion_tokens == whole.usage.completion_tokens
    assert completion.choices[0].finish_reason == whole.choices[0].finish_reason


def test_raw_events(events, asked, chat):
    read = events("/v1/chat/completions", asked(stream=True))
    objects = joined(read)
    text = "".join(o["choices"][0]["delta"].get("content") or "" for o in objects)
    assert text == chat().choices[0].message.content
    for o in objects:
        assert set(o) >= {"id", "object", "created", "model", "choices"}
        assert all(set(c) >= {"index", "delta", "finish_reason"} for c in o["choices"])


TEXTS = {
    "accents": "Grüße aus Köln, s'il vous plaît.",
    "wide": "你好，世界。今天天气很好。",
    "emoji": "A 🙂 family 👨‍👩‍👧 and a flag 🇳🇱 end",
    "escapes": 'say "hi"\\n\tand \\u0041 <|im_end|> </s>',
}


@pytest.mark.paceline
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_chunk_never_ends_within_a_character(events, asked, text):
    fields = asked(**forced(text), stream=True)
    fields |= fields.pop("extra_body")
    objects = joined(events("/v1/chat/completions", fields))
    parts = [c["delta"].get("content") or "" for o in objects for c in o["choices"]]
    assert "".join(parts) == text and not any("\ufffd" in p for p in parts)
    assert json.loads(json.dumps(parts)) == parts
