"""A stream that broke is taken up with `Last-Event-ID`: both parts joined are the whole answer."""

import json

import pytest
from conftest import joined

pytestmark = [pytest.mark.paceline, pytest.mark.drafts]


def told(objects, legacy=False):
    """What a client knows when it has read these: text and end of each choice, usage."""
    texts, ends, usage = {}, {}, []
    for o in objects:
        usage += [o["usage"]["completion_tokens"]] if o.get("usage") else []
        for c in o["choices"]:
            said = c["text"] if legacy else c["delta"].get("content") or ""
            calls = [] if legacy else c["delta"].get("tool_calls") or []
            said += "".join((call["function"].get("name") or "") + call["function"]["arguments"] for call in calls)
            texts[c["index"]] = texts.get(c["index"], "") + said
            if c["finish_reason"]:
                ends.setdefault(c["index"], []).append(c["finish_reason"])
    return texts, ends, usage


def check(events, path, body, legacy=False, cuts=(1, 0.5, -3, -2)):
    whole = events(path, body)
    assert all(event_id for event_id, _ in whole), "every event has an id"
    objects = joined(whole)
    for cut in cuts:
        at = int(len(whole) * cut) if isinstance(cut, float) else cut % len(whole)
        # Without a seed a second attempt would be another answer: then the whole one is cut.
        before = events(path, body, most=at) if "seed" in body else whole[:at]
        after = events(path, body, headers={"last-event-id": before[-1][0]})
        # Chunks are cut elsewhere each time, so the first part can be the whole.
        parts = [json.loads(data) for _, data in before if data != "[DONE]"] + joined(after)
        assert told(parts, legacy) == told(objects, legacy), f"cut behind event {at} of {len(whole)}"
        assert len({(o["id"], o["created"]) for o in parts}) == 1, "the rest goes on under the first part's name"


def test_a_sampled_answer_with_usage(events, asked):
    check(events, "/v1/chat/completions", asked(stream=True, stream_options={"include_usage": True}))


def test_an_answer_of_a_drawn_seed(events, asked):
    body = asked(stream=True, temperature=1)
    del body["seed"]
    check(events, "/v1/chat/completions", body)


def test_several_choices_and_a_stop_string(events, asked, chat):
    free = chat(n=2, temperature=1).choices[0].message.content
    check(events, "/v1/chat/completions", asked(stream=True, n=2, temperature=1, stop=free[40:46]), cuts=(2, 0.5, -2))


def test_a_call(events, asked):
    parameters = {"type": "object", "properties": {"a": {"enum": ["left", "right"]}}}
    parameters |= {"required": ["a"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "turn", "parameters": parameters}}]
    body = asked(stream=True, tools=tools, tool_choice="required", parallel_tool_calls=False, max_completion_tokens=60)
    check(events, "/v1/chat/completions", body, cuts=(2, -3))


def test_several_prompts(events, model):
    body = {"model": model, "prompt": ["The Rhine", "The Danube"], "max_tokens": 12, "seed": 3, "stream": True}
    check(events, "/v1/completions", body, legacy=True, cuts=(1, 0.5, -2))


def test_behind_the_last_event_there_is_only_done(events, asked):
    body = asked(stream=True)
    whole = events("/v1/chat/completions", body)
    rest = events("/v1/chat/completions", body, headers={"last-event-id": whole[-2][0]})
    assert [data for _, data in rest] == ["[DONE]"]


@pytest.mark.parametrize("case", ["another body", "no id", "no stream", "another seed"])
def test_refusals(events, http, asked, case):
    body = asked(stream=True, max_completion_tokens=4)
    event_id = events("/v1/chat/completions", body)[0][0]
    if case == "another body":
        body["messages"] = [{"role": "user", "content": "Something else."}]
    if case == "no stream":
        del body["stream"]
    if case == "another seed":
        body["seed"] = 8
    header = "p1.nonsense" if case == "no id" else event_id
    response = http.post("/v1/chat/completions", json=body, headers={"last-event-id": header})
    assert response.status_code == 400 and response.json()["error"]["param"] == "Last-Event-ID", response.text
