"""The server as LangChain sees it. Run by run.sh."""

from typing import Literal

import pytest
from conftest import API_KEY, BASE_URL
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict


@tool
def clock(zone: Literal["KST", "UTC"]) -> str:
    """시간"""
    return f"12:00 {zone}"


class Mood(BaseModel):
    """기분"""

    model_config = ConfigDict(extra="forbid")
    mood: Literal["좋음 🙂", "나쁨"]
    sure: bool


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def llm(request, model):
    options = {"base_url": BASE_URL, "api_key": API_KEY, "max_retries": 0, "temperature": 0}
    return ChatOpenAI(model=model, max_tokens=80, use_responses_api=request.param, **options)


def test_invoke_and_stream(llm):
    messages = [SystemMessage("짧게."), HumanMessage("안녕하세요")]
    whole = llm.invoke(messages)
    assert whole.text and whole.usage_metadata["total_tokens"] > 0
    pieces = list(llm.stream(messages))
    assert len(pieces) > 1 and "".join(piece.text for piece in pieces) == whole.text


def test_tools(llm):
    question = HumanMessage("몇 시?")
    with_tools = llm.bind_tools([clock], tool_choice="any", strict=True, parallel_tool_calls=False)
    call = with_tools.invoke([question])
    assert [called["name"] for called in call.tool_calls] == ["clock"]
    result = clock.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage) and result.content.startswith("12:00")
    assert llm.invoke([question, call, result]).text
    streamed = None
    for chunk in with_tools.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert [called["args"] for called in streamed.tool_calls] == [called["args"] for called in call.tool_calls]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(llm, method):
    assert isinstance(llm.with_structured_output(Mood, method=method).invoke("기분은?"), Mood)


def test_embeddings(model):
    # Without the check LangChain sends texts; with it, ids of a tokenizer of OpenAI's.
    options = {"base_url": BASE_URL, "api_key": API_KEY, "check_embedding_ctx_length": False}
    embeddings = OpenAIEmbeddings(model=model, **options)
    first, second = embeddings.embed_documents(["고양이", "강아지"])
    assert len(first) == len(second) and embeddings.embed_query("고양이") == pytest.approx(first, abs=1e-6)
