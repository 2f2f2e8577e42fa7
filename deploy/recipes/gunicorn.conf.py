"""gunicorn, with workers that are forked: `opentelemetry-instrument gunicorn --config gunicorn.conf.py app:app`.

Nothing of this is otel-llm's: a worker that is forked gets a journal of its own, with `preload_app` or without. What matters is
that a worker is given the time to end by itself.
"""

import os

workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
# A model call takes its time: a worker that is killed in the middle of one leaves it `interrupted`.
timeout = 120
# SIGTERM: how long requests under way may take, before exporters are given their last seconds. Less than the
# terminationGracePeriodSeconds of the pod.
graceful_timeout = 45
# A worker that is renewed ends properly; a leak has no time to grow.
max_requests = 10_000
max_requests_jitter = 1_000
