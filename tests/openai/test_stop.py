"""Stop strings and stop tokens: nothing of them is shown, wherever tokens and chunks are cut."""

import pytest
from conftest import forced, last, text_of

pytestmark = pytest.mark.drafts


@pytest.fixture(scope="module")
def answer(chat):
    """A long answer, and its text token by token."""
    choice = chat(max_completion_tokens=36, logprobs=True).choices[0]
    return choice.message.content, [t.token for t in choice.logprobs.content]


# Where a stop string begins and ends: tokens from the middle, and characters into the first and last.
PLACES = {
    "within one token": (0, 0, 1, None),
    "one whole token": (0, 0, 0, None),
    "over a border": (0, -1, 1, 1),
    "over two borders": (0, -1, 2, 2),
    "over five borders": (0, -2, 5, 1),
}


def stop_at(text, tokens, place):
    """A string out of the middle of the text that stands nowhere before."""
    _, begin, over, end = PLACES[place]
    for i in range(len(tokens) // 3, len(tokens) - over):
        run = tokens[i : i + over + 1]
        if over == 0 or end is None:
            candidate = "".join(run)[:end]
        else:
            candidate = run[0][begin:] + "".join(run[1:-1]) + run[-1][:end]
        at = sum(map(len, tokens[:i])) + (len(run[0][:begin]) if begin else 0)
        if candidate and text.find(candidate) == at and (over == 0 or len(candidate) > 1):
            return candidate
    pytest.fail(f"no string {place} in {tokens}")


@pytest.mark.parametrize("place", PLACES)
def test_an_answer_ends_before_a_stop_string(chat, chunks, answer, place):
    text, tokens = answer
    stop = stop_at(text, tokens, place)
    expected = text[: text.index(stop)]
    whole = chat(max_completion_tokens=36, stop=[stop]).choices[0]
    assert (whole.message.content, whole.finish_reason) == (expected, "stop"), stop
    streamed = chunks(max_completion_tokens=36, stop=stop)
    said = ""
    for chunk in streamed:
        said += chunk.choices[0].delta.content or ""
        assert expected.startswith(said), f"{stop!r} was shown partly: {said!r}"
    assert (said, last(streamed)) == (expected, "stop")


def test_the_first_of_several_stops(chat, answer):
    text, tokens = answer
    stops = [stop_at(text, tokens, place) for place in ("over a border", "over five borders")]
    # The first that is complete, although another may have begun before it.
    first = min(stops, key=lambda stop: text.index(stop) + len(stop))
    for order in (stops, stops[::-1]):
        choice = chat(max_completion_tokens=36, stop=["\u0001never", *order]).choices[0]
        assert choice.message.content == text[: text.index(first)]


def test_what_only_began_like_a_stop_string_is_shown(chat, chunks, answer):
    text, _ = answer
    # Both begin in the middle and at the very end of the text, and never come true.
    stops = [text[len(text) // 2 :] + "\u0001", text[-4:] + "\u0001"]
    assert chat(max_completion_tokens=36, stop=stops).choices[0].message.content == text
    streamed = chunks(max_completion_tokens=36, stop=stops)
    assert text_of(streamed) == text


@pytest.mark.paceline
def test_stop_strings_of_many_bytes(chat, chunks):
    text = "eins 🙂 zwei 你好 drei ß vier"
    for stop in ("🙂", "你", "好 d", "i ß", "zwei 你好 drei"):
        fields = forced(text) | {"stop": stop}
        expected = text[: text.index(stop)]
        assert chat(**fields).choices[0].message.content == expected, stop
        assert text_of(chunks(**fields)) == expected, stop


@pytest.mark.paceline
def test_the_stop_may_be_shown_and_is_named(chat, answer):
    text, tokens = answer
    stop = stop_at(text, tokens, "over a border")
    shown = chat(max_completion_tokens=36, stop=stop, extra_body={"include_stop_str_in_output": True}).choices[0]
    assert shown.message.content == text[: text.index(stop)] + stop and shown.stop_reason == stop
    assert chat(max_completion_tokens=4).choices[0].stop_reason is None


@pytest.mark.paceline
def test_stop_tokens(chat, answer, tokens_of):
    text, tokens = answer
    token = next(t for t in tokens[8:] if tokens.index(t) >= 8 and len(tokens_of(t)) == 1)
    (stop,) = tokens_of(token)
    choice = chat(max_completion_tokens=36, extra_body={"stop_token_ids": [stop]}).choices[0]
    assert choice.message.content == "".join(tokens[: tokens.index(token)])
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)


def test_each_choice_has_its_own_stop(chat):
    free = chat(n=3, temperature=1).choices
    stop = free[1].message.content[10:16]
    for was, now in zip(free, chat(n=3, temperature=1, stop=stop).choices):
        assert now.message.content == was.message.content.split(stop)[0]
