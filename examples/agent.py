"""A LangChain agent with a tool: one tree of spans, each model call in its place and counted once.

opentelemetry-instrument python examples/agent.py
"""

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from otel_llm import llm_context


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is 21 °C and sunny in {city}."


def main() -> None:
    agent = create_agent(ChatOpenAI(model="gpt-4o-mini"), tools=[weather], name="weather-agent")
    with llm_context("travel", user_id="dora", conversation_id="trip-7"):
        answer = agent.invoke({"messages": [("user", "How is the weather in Lisbon?")]})
    for message in answer["messages"]:
        print(f"{message.type}:", message.text or [call["name"] for call in message.tool_calls])


if __name__ == "__main__":
    main()
