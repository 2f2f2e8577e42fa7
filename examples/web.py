"""A FastAPI app whose middleware says, for each request, who is asking.

opentelemetry-instrument python examples/web.py       # then: curl 'localhost:8000/ask?user=alice&q=Hello'
"""

import os

import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from otel_llm.middleware import LLMContextMiddleware

app = FastAPI()
app.add_middleware(LLMContextMiddleware, module="web", user_id=lambda request: request.query.get("user"))
client = AsyncOpenAI()


@app.get("/ask")
async def ask(user: str, q: str) -> dict[str, str | None]:
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": q}])
    return {"user": user, "answer": answer.choices[0].message.content}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
