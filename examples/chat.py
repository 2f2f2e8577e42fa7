"""Plain OpenAI calls for two users, from two modules of an app.

opentelemetry-instrument python examples/chat.py
"""

from openai import OpenAI

from otel_llm import llm_context

client = OpenAI()  # OPENAI_API_KEY, OPENAI_BASE_URL


def support(question: str) -> str | None:
    answer = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[
            {"role": "system", "content": "You are a helpful assistant of a bicycle shop."},
            {"role": "user", "content": question},
        ],
    )
    return answer.choices[0].message.content


def search(words: str) -> str:
    vector = client.embeddings.create(model="text-embedding-3-small", input=words).data[0].embedding
    summary = client.responses.create(model="gpt-5-mini", input=f"Sum up what we know about {words}.")
    return f"{len(vector)} dimensions; {summary.output_text}"


def main() -> None:
    with llm_context("support", user_id="alice", conversation_id="c-1"):
        print("support:", support("Which tyres fit a 28 inch wheel?"))
        print("support:", support("And in winter?"))
    with llm_context("search", user_id="bob", team="catalogue"):
        print("search: ", search("studded tyres"))


if __name__ == "__main__":
    main()
