"""What every file here uses: clients of the server under test, raw requests, the server's own counts.

The server is OPENAI_BASE_URL's; README.md lists the other variables.
"""

import json
import os
import time
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

# Longest wait for one answer: only a hang reaches it.
HANG = 60.0

# Any model has at least some dozen tokens to say.
QUESTION = [{"role": "user", "content": "Tell me about rivers."}]


def pytest_terminal_summary(terminalreporter):
    """For whoever runs the suite in CI: what was proved, in one line that a program can read."""
    counts = {key: len(terminalreporter.stats.get(key, [])) for key in ("passed", "failed", "error", "skipped")}
    terminalreporter.write_line("contract: " + " ".join(f"{key}={n}" for key, n in counts.items()))


@pytest.fixture(scope="session")
def base_url():
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        pytest.exit("set OPENAI_BASE_URL, for example to http://127.0.0.1:8080/v1", returncode=2)
    return url.rstrip("/")


@pytest.fixture(scope="session")
def client(base_url):
    """The official client. It does not retry, so that a test sees the first answer."""
    key = os.environ.get("OPENAI_API_KEY", "none")
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=HANG) as client:
        yield client


@pytest.fixture
def async_client(base_url):
    """Makes asynchronous clients: one belongs to the event loop of its test."""
    key = os.environ.get("OPENAI_API_KEY", "none")
    return lambda: openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=HANG)


@pytest.fixture(scope="session")
def model(client):
    return os.environ.get("OPENAI_MODEL") or client.models.list().data[0].id


@pytest.fixture(scope="session")
def asked(model):
    """A request's fields: small, sampled, repeatable. What a test gives goes first."""

    def asked(**fields):
        usual = {"model": model, "messages": QUESTION, "max_completion_tokens": 16, "temperature": 0.8, "seed": 7}
        return usual | fields

    return asked


@pytest.fixture(scope="session")
def chat(client, asked):
    """A whole answer."""
    return lambda **fields: client.chat.completions.create(**asked(**fields))


@pytest.fixture(scope="session")
def chunks(client, asked):
    """The chunks of a streamed answer."""
    return lambda **fields: list(client.chat.completions.create(**asked(**fields), stream=True))


@pytest.fixture(scope="session")
def http(base_url):
    """Requests that the client would not make; paths count from the server's root or from /v1."""
    headers = {"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    root = "{0.scheme}://{0.netloc}".format(urlsplit(base_url))
    with httpx2.Client(base_url=root, headers=headers, timeout=HANG, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def events(http):
    """The events of a raw stream as (id, data), `[DONE]` included. Stops behind `most` of them."""

    def events(path, body, headers=None, most=None):
        read, event_id, data = [], None, []
        with http.stream("POST", path, json=body, headers=headers or {}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                if not line:
                    if data:
                        read.append((event_id, "\n".join(data)))
                    if len(read) == most:
                        break
                    event_id, data = None, []
                elif name == "id":
                    event_id = value.strip()
                elif name == "data":
                    data.append(value.removeprefix(" "))
                # A line that begins with a colon is a comment: it keeps the connection open.
        return read

    return events


@pytest.fixture(scope="session")
def tokens_of(http, model):
    """A text's token ids, by the server's own tokenizer."""

    def tokens_of(text):
        response = http.post("/tokenize", json={"model": model, "prompt": text, "add_special_tokens": False})
        assert response.status_code == 200, response.text
        return response.json()["tokens"]

    return tokens_of


@pytest.fixture
def idle(http):
    """Waits until no request is under way at any process of the server."""
    pages = os.environ.get("PACELINE_METRICS", "").split()
    if not pages:
        pytest.skip("PACELINE_METRICS names no /metrics of the server")
    # Gauges; a sum over their labels.
    names = ("paceline_requests_in_flight", "paceline_num_requests_running", "paceline_num_requests_waiting")

    def count():
        lines = [line for page in pages for line in http.get(page).text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        values = [(line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])) for line in lines]
        found = {name: [value for of, value in values if of == name] for name in names}
        # A gauge appears with its first value; a wrong name here would count nothing for ever.
        assert found["paceline_requests_in_flight"], "the server has no paceline_requests_in_flight"
        return {name: sum(values) for name, values in found.items()}

    def idle(within=5.0):
        deadline = time.monotonic() + within
        while any((now := count()).values()):
            assert time.monotonic() < deadline, f"{within} s later the server still works: {now}"
            time.sleep(0.05)

    idle.count = count
    return idle


def text_of(chunks, choice=0):
    """The text of one choice, joined."""
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == choice)


def last(chunks, choice=0):
    """The reason why a choice ended; it is said once."""
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.index == choice and c.finish_reason]
    assert len(reasons) == 1, reasons
    return reasons[0]


def forced(text):
    """Fields that make any model write `text`: what a test knows beforehand it can cut anywhere."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}, "max_completion_tokens": 4 * len(text)}


def joined(events):
    """The chunks of raw events, without `[DONE]`, which must be the last."""
    assert events[-1][1] == "[DONE]" and sum(data == "[DONE]" for _, data in events) == 1
    return [json.loads(data) for _, data in events[:-1]]
