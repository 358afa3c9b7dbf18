"""What the tests share: a server that run.sh started, found by KANANA_BASE_URL and KANANA_API_KEY."""

import json
import os
import time
import urllib.request

import pytest
from openai import OpenAI

BASE_URL = os.environ.get("KANANA_BASE_URL", "http://127.0.0.1:8000/v1")
API_KEY = os.environ.get("KANANA_API_KEY", "none")


@pytest.fixture(scope="session")
def client():
    """The client as people make it, but for tries again: an error must show at once."""
    return OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def model(client):
    """The server's default model."""
    return client.models.list().data[0].id


def check_type(answer):
    """Fails where an answer is not wholly of the client's type, which the client itself does not look at."""
    type(answer).model_validate(answer.to_dict(mode="json"))


def fetch(path, body=None):
    """The answer of a path that OpenAI's client does not know, as text."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE_URL.removesuffix("/v1") + path, data=data)
    request.add_header("Authorization", f"Bearer {API_KEY}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def tokenize(text):
    """Token ids of a text, the beginning token included."""
    return json.loads(fetch("/tokenize", {"prompt": text}))["tokens"]


def metric(name):
    """The sum of a metric over its labels; 0 before it has any."""
    lines = [line for line in fetch("/metrics").splitlines() if line.startswith(name + "{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait_for(condition, seconds=10):
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()
