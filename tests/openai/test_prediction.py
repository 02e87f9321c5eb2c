"""`prediction`: drafts that the caller guesses. They cost nothing when wrong and never change the text."""

import pytest

pytestmark = pytest.mark.drafts


@pytest.fixture(scope="module")
def plain(chat):
    return chat(max_completion_tokens=24)


def predicted(content):
    return {"prediction": {"type": "content", "content": content}, "max_completion_tokens": 24}


def test_a_right_guess_is_accepted(chat, plain):
    text = plain.choices[0].message.content
    for content in (text, [{"type": "text", "text": text}]):
        answer = chat(**predicted(content))
        assert answer.choices[0].message.content == text
        details = answer.usage.completion_tokens_details
        assert details.accepted_prediction_tokens > plain.usage.completion_tokens // 2
        assert answer.usage.completion_tokens == plain.usage.completion_tokens


def test_a_guess_that_is_right_for_a_while(chat, plain):
    text = plain.choices[0].message.content
    answer = chat(**predicted(text[: len(text) // 2] + " zzz qqq xxx" * 4))
    assert answer.choices[0].message.content == text
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0 and details.rejected_prediction_tokens > 0


def test_a_wrong_guess(chat, plain):
    answer = chat(**predicted("4 8 15 16 23 42 " * 3))
    assert answer.choices[0].message.content == plain.choices[0].message.content
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens <= 1


def test_streamed(chunks, plain):
    text = plain.choices[0].message.content
    streamed = chunks(**predicted(text), stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == text
    assert streamed[-1].usage.completion_tokens_details.accepted_prediction_tokens > 0
