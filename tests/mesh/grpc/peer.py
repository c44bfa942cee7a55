"""A service and a caller of gRPC without generated code: messages are bytes. The mesh tests start it on both sides."""

import sys
import threading
import time
from concurrent import futures

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Handler(grpc.GenericRpcHandler):
    stepping = threading.Semaphore(0)

    def service(self, details):
        kind = details.method.rsplit("/", 1)[1]
        return {
            "Unary": lambda: grpc.unary_unary_rpc_method_handler(self.unary),
            "ServerStream": lambda: grpc.unary_stream_rpc_method_handler(self.server_stream),
            "ClientStream": lambda: grpc.stream_unary_rpc_method_handler(self.client_stream),
            "Bidi": lambda: grpc.stream_stream_rpc_method_handler(self.bidi),
            "Fails": lambda: grpc.unary_unary_rpc_method_handler(self.fails),
            "Held": lambda: grpc.unary_unary_rpc_method_handler(self.held),
            "Metadata": lambda: grpc.unary_unary_rpc_method_handler(self.metadata),
            "Steps": lambda: grpc.unary_stream_rpc_method_handler(self.steps),
            "Step": lambda: grpc.unary_unary_rpc_method_handler(self.step),
        }.get(kind, lambda: None)()

    def unary(self, request, context):
        return request

    def server_stream(self, request, context):
        for number in range(100):
            yield request + b"%d" % number

    def client_stream(self, requests, context):
        return b"%d" % sum(len(request) for request in requests)

    def bidi(self, requests, context):
        for request in requests:
            yield request

    def fails(self, request, context):
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so: \u00fc, 100 %")

    def held(self, request, context):
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(60)
        print("cancelled", flush=True)
        return b""

    def metadata(self, request, context):
        asked = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-initial-bin", asked["x-asked-bin"]),))
        context.set_trailing_metadata((("x-trailing", asked["x-asked"]),))
        remaining = context.time_remaining()
        return b"%d" % (-1 if remaining is None or remaining > 1e6 else remaining * 1000)

    # Each message but the first waits for a call of `step`.
    def steps(self, request, context):
        for _ in range(5):
            yield request
            assert self.stepping.acquire(timeout=20)

    def step(self, request, context):
        self.stepping.release()
        return b""


def serve(health=None):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=50), options=OPTIONS)
    server.add_generic_rpc_handlers((Handler(),))
    if health:
        health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    for line in sys.stdin:
        health.set(*line.split())
    server.stop(None)


class Health:
    """What it says of itself, which lines of the input change: a service, and the word for it."""

    def __init__(self):
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        self.words = health_pb2.HealthCheckResponse
        self.add = health_pb2_grpc.add_HealthServicer_to_server
        self.servicer = health.HealthServicer()
        self.set("shop.Cart", "SERVING")
        self.set("", "SERVING")

    def add_to(self, server):
        self.add(self.servicer, server)

    def set(self, service, word):
        self.servicer.set(service, self.words.ServingStatus.Value(word))


def call(address, host):
    channel = grpc.insecure_channel(address, options=OPTIONS + [("grpc.default_authority", host)])
    unary = channel.unary_unary("/svc/Unary")
    for size in (0, 1, 100_000, 4 * 1024 * 1024):
        message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert unary(message, timeout=20) == message, size
    stream = channel.unary_stream("/svc/ServerStream")
    assert list(stream(b"n", timeout=20)) == [b"n%d" % number for number in range(100)]
    parts = channel.stream_unary("/svc/ClientStream")
    assert parts((b"x" * 1000 for _ in range(100)), timeout=20) == b"100000"
    both = channel.stream_stream("/svc/Bidi")
    assert list(both((b"%d" % number for number in range(100)), timeout=20)) == [b"%d" % n for n in range(100)]
    # A message is answered before the next one is sent.
    said = []

    def talk():
        for number in range(10):
            said.append(number)
            yield b"%d" % number
            while len(heard) <= number:
                time.sleep(0.001)

    heard = []
    for answer in both(talk(), timeout=20):
        heard.append(answer)
    assert len(heard) == 10

    try:
        channel.unary_unary("/svc/Fails")(b"", timeout=20)
        raise SystemExit("it must fail")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "not so: \u00fc, 100 %", error
        assert dict(error.trailing_metadata())["x-why"] == "because", error
    try:
        channel.unary_unary("/svc/Unknown")(b"", timeout=20)
        raise SystemExit("it must fail")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

    held = channel.unary_unary("/svc/Held")
    begun = time.monotonic()
    try:
        held(b"", timeout=0.5)
        raise SystemExit("it must fail")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - begun < 10
    waiting = held.future(b"", timeout=20)
    time.sleep(0.2)
    waiting.cancel()
    assert waiting.cancelled()

    answer, ended = channel.unary_unary("/svc/Metadata").with_call(
        b"", timeout=5, metadata=(("x-asked", "a b"), ("x-asked-bin", b"\0\1\xff"))
    )
    assert dict(ended.initial_metadata())["x-initial-bin"] == b"\0\1\xff"
    assert dict(ended.trailing_metadata())["x-trailing"] == "a b"
    # grpcio rounds timeouts up a little.
    assert 0 < int(answer) <= 5500, answer

    many = [unary.future(b"%d" % number, timeout=20) for number in range(300)]
    assert [one.result() for one in many] == [b"%d" % number for number in range(300)]

    elsewhere = grpc.insecure_channel(address, options=[("grpc.default_authority", "nobody")])
    try:
        elsewhere.unary_unary("/svc/Unary")(b"", timeout=20)
        raise SystemExit("it must fail")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
        assert "no_route" in error.details(), error
    print("all well", flush=True)


if sys.argv[1] == "serve":
    serve()
elif sys.argv[1] == "serve-with-health":
    serve(Health())
else:
    call(*sys.argv[2:4])
