"""OTLP over gRPC. Messages come as bytes and are read here, so that what is malformed gets an answer that says so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would tell stderr what is told in an answer, or in one line
import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from otel_llm.fleet.serve.admission import Address, Admission, NotAllowed
from otel_llm.fleet.serve.counters import Counters
from otel_llm.fleet.serve.intake import MAX_AT_ONCE, Intake, Refused
from otel_llm.fleet.serve.signal_kinds import SIGNALS, SignalKind

_METADATA_SLACK: Final = 2**16


class GrpcSide:
    """Listens at `address` from its construction on; raises NotAllowed where it cannot."""

    def __init__(
        self, address: Address, admission: Admission, intake: Intake, counters: Counters, *, max_request: int
    ) -> None:
        self._admission = admission
        self._intake = intake
        self._counters = counters
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="otel-llm-grpc"),
            handlers=[_Methods({signal.method: self._answer(signal) for signal in SIGNALS})],
            options=[
                ("grpc.so_reuseport", 0),  # a second server would get half of the senders
                ("grpc.max_receive_message_length", max_request),  # of what was compressed, when it is unpacked
                ("grpc.max_metadata_size", _METADATA_SLACK),
            ],
        )
        try:
            if admission.tls is None:
                self.port = self._server.add_insecure_port(str(address))
            else:
                self.port = self._server.add_secure_port(str(address), _credentials(admission))
        except (RuntimeError, ValueError, OSError) as error:
            raise NotAllowed(f"cannot listen at {address}: {_why(error)}") from error
        if not self.port:
            raise NotAllowed(f"cannot listen at {address}: is it in use?")

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Takes no more requests; those at work have `grace` seconds for their answer."""
        self._server.stop(grace).wait()

    def _answer(self, signal: SignalKind) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
            began = time.monotonic()
            code = grpc.StatusCode.INTERNAL

            def refuse(with_code: grpc.StatusCode, message: str, retry_after: int | None = None) -> NoReturn:
                nonlocal code
                code = with_code
                if retry_after is not None:
                    context.set_trailing_metadata((("grpc-status-details-bin", _details(code, message, retry_after)),))
                context.abort(code, message)
                raise AssertionError("unreachable")

            try:
                metadata = dict(context.invocation_metadata())
                if not self._admission.admits(_text(metadata.get("authorization"))):
                    refuse(grpc.StatusCode.UNAUTHENTICATED, "it needs the header authorization: Bearer TOKEN")
                try:
                    with self._intake.place():
                        request = signal.request()
                        request.ParseFromString(body)
                        response: Any = signal.response(signal.take(self._intake, request))
                except DecodeError as error:
                    refuse(grpc.StatusCode.INVALID_ARGUMENT, f"it is no {type(signal.request()).__name__}: {error}")
                except Refused as error:
                    busy = grpc.StatusCode.RESOURCE_EXHAUSTED if error.busy else grpc.StatusCode.UNAVAILABLE
                    refuse(busy, str(error), error.retry_after)
                code = grpc.StatusCode.OK
                answered: bytes = response.SerializeToString()
                return answered
            finally:
                self._counters.request("grpc", signal.name, code.name, len(body), time.monotonic() - began)

        return answer


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method; None, as for metrics, is answered with UNIMPLEMENTED."""

    def __init__(self, answers: dict[str, Callable[[bytes, grpc.ServicerContext], bytes]]) -> None:
        self._handlers = {
            method: grpc.unary_unary_rpc_method_handler(answer, None, None) for method, answer in answers.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


def _details(code: grpc.StatusCode, message: str, retry_after: int) -> bytes:
    """The status with when to come again: without that, a sender gives up what is refused for want of room."""
    status = Status(code=code.value[0], message=message)
    retry = RetryInfo()
    retry.retry_delay.FromSeconds(retry_after)
    status.details.add().Pack(retry)
    packed: bytes = status.SerializeToString()
    return packed


def _credentials(admission: Admission) -> Any:
    tls = admission.tls
    assert tls is not None
    ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _why(error: Exception) -> str:
    said = str(error)
    return "it is in use" if "in use" in said.lower() or "Failed to bind" in said else said
