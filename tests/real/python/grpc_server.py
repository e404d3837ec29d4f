"""A gRPC server with every kind of call. Messages are bytes: no generated code is needed."""

import time
from concurrent import futures

import grpc


def unary(request, context):
    sent = dict(context.invocation_metadata())
    if "x-wanted" in sent:
        context.send_initial_metadata((("x-initial", sent["x-wanted"]),))
        context.set_trailing_metadata((("x-trailing-bin", sent.get("x-raw-bin", b"")),))
    return request


def remaining(request, context):
    """Seconds until the deadline, as the server sees it."""
    left = context.time_remaining()
    return b"none" if left is None else repr(left).encode()


def slow(request, context):
    time.sleep(float(request))
    return b"late"


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "ausverkauft: 100 % weg")


def server_stream(request, context):
    for n in range(int(request)):
        yield b"%d" % n


def client_stream(requests, context):
    return b"+".join(requests)


def bidi(requests, context):
    for request in requests:
        yield b"you said " + request
    context.set_trailing_metadata((("x-end", "reached"),))


def half(request, context):
    """Two messages, then an error in the trailers."""
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "no more")


kinds = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Half": grpc.unary_stream_rpc_method_handler(half),
}
server = grpc.server(
    futures.ThreadPoolExecutor(8),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", kinds),))
print(f"port={server.add_insecure_port('127.0.0.1:0')}")
server.start()
server.wait_for_termination()
