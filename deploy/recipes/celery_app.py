"""Celery: `opentelemetry-instrument celery --app celery_app worker`. The prefork pool forks its workers, which get a journal each.

A task begins with no context: what is accounted to goes with it as an argument, and is opened in it.
"""

import os

from celery import Celery
from openai import OpenAI

import otel_llm

app = Celery("summaries", broker=os.environ.get("BROKER_URL", "amqp://localhost"))
app.conf.worker_max_tasks_per_child = 1000  # a worker that is renewed ends properly
app.conf.task_acks_late = True


@app.task
def summarize(text: str, *, user: str) -> str:
    with otel_llm.llm_context("summaries", user_id=user):
        answer = OpenAI().chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": f"Summarize: {text}"}]
        )
    return answer.choices[0].message.content or ""
