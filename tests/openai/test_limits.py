"""Timeouts, cancellation and overload: what a client gives up costs the server nothing any more."""

import asyncio
import os
import threading
import time

import openai
import pytest

# Far longer than any test waits.
LONG = {"max_completion_tokens": 2000, "extra_body": {"ignore_eos": True}}

# Such an answer of every path.
PATHS = {
    "chat": lambda client, asked, **more: client.chat.completions.create(**asked(**LONG), **more),
    "completions": lambda client, asked, **more: client.completions.create(
        model=asked()["model"], prompt="a", max_tokens=2000, extra_body={"ignore_eos": True}, **more
    ),
    "responses": lambda client, asked, **more: client.responses.create(
        model=asked()["model"], input="Count to a thousand.", max_output_tokens=2000, **more
    ),
}

pytestmark = [pytest.mark.paceline, pytest.mark.drafts]


@pytest.fixture(autouse=True)
def nothing_else(idle):
    """What earlier tests left has ended."""
    idle()


def test_the_clients_timeout_ends_the_request(client, asked, idle):
    begun = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.7).chat.completions.create(**asked(**LONG))
    assert time.monotonic() - begun < 5
    idle()


def test_leaving_a_stream_ends_the_request(client, asked, idle):
    stream = client.chat.completions.create(**asked(**LONG), stream=True)
    for i, _ in enumerate(stream):
        if i == 3:
            assert idle.count()["paceline_requests_in_flight"] == 1
            break
    stream.close()
    idle()


def test_leaving_a_with_block_ends_all_choices(client, asked, idle):
    with client.chat.completions.create(**asked(**LONG, n=4), stream=True) as stream:
        next(iter(stream))
    idle()


def test_a_cancelled_task_ends_the_request(async_client, asked, idle):
    async def cancelled():
        async with async_client() as client:
            task = asyncio.create_task(client.chat.completions.create(**asked(**LONG)))
            await asyncio.sleep(0.5)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    idle()


def test_leaving_an_async_stream_ends_the_request(async_client, asked, idle):
    async def left():
        async with async_client() as client:
            async with await client.chat.completions.create(**asked(**LONG), stream=True) as stream:
                async for _ in stream:
                    break

    asyncio.run(left())
    idle()


@pytest.mark.parametrize("path", ["completions", "responses"])
def test_leaving_the_other_streams(client, asked, idle, path):
    with PATHS[path](client, asked, stream=True) as stream:
        next(iter(stream))
    idle()


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_a_limit_of_time_in_a_header_is_the_servers(client, asked, idle, path):
    begun = time.monotonic()
    with pytest.raises(openai.InternalServerError) as refused:
        PATHS[path](client, asked, extra_headers={"x-request-timeout-ms": "500"})
    assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
    assert time.monotonic() - begun < 5
    idle()


def test_a_stream_beyond_its_limit_of_time_ends_with_an_error(client, asked, idle):
    read = []
    with pytest.raises(openai.APIError) as broken:
        for chunk in PATHS["chat"](client, asked, stream=True, extra_headers={"x-request-timeout-ms": "1500"}):
            read.append(chunk)
    assert broken.value.code == "deadline_exceeded" and read
    idle()


@pytest.mark.parametrize("path", PATHS)
def test_a_limit_of_time_that_is_none(client, asked, path):
    with pytest.raises(openai.BadRequestError) as refused:
        PATHS[path](client, asked, extra_headers={"x-request-timeout-ms": "soon"})
    assert refused.value.param == "x-request-timeout-ms"


@pytest.fixture
def most():
    """How many choices the server takes at once."""
    most = os.environ.get("PACELINE_MAX_IN_FLIGHT")
    if not most:
        pytest.skip("PACELINE_MAX_IN_FLIGHT does not say how many choices the server takes at once")
    return int(most)


def test_overload_is_told_at_once(client, asked, most, idle):
    with client.chat.completions.create(**asked(**LONG, n=most), stream=True) as stream:
        next(iter(stream))
        begun = time.monotonic()
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**asked())
        assert time.monotonic() - begun < 2
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**asked(), stream=True)
    idle()


def test_a_client_that_retries_is_served_after_the_overload(client, asked, chat, most, idle):
    plain = chat().choices[0].message.content
    stream = client.chat.completions.create(**asked(**LONG, n=most), stream=True)
    next(iter(stream))
    leaving = threading.Timer(0.5, stream.close)
    leaving.start()
    try:
        answer = client.with_options(max_retries=5).chat.completions.create(**asked())
    finally:
        leaving.join()
    assert answer.choices[0].message.content == plain


def test_more_choices_than_ever_fit(client, asked, most):
    if most < 128:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**asked(n=most + 1))
        assert refused.value.param == "n"


def test_many_that_leave_at_different_times(async_client, asked, idle, most):
    """Many leave at different times; the server is as free as before."""

    async def leave(client, i):
        async with await client.chat.completions.create(**asked(**LONG, seed=i), stream=True) as stream:
            left = i
            async for _ in stream:
                left -= 1
                if left < 0:
                    break

    async def all_leave():
        async with async_client() as client:
            await asyncio.gather(*(leave(client, i) for i in range(min(most, 6))))

    asyncio.run(all_leave())
    idle()
