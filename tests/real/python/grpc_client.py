"""Calls every method of grpc_server.py through a proxy: grpc_client.py HOST:PORT [CA NAME]. Fails loudly."""

import os
import queue
import sys
import time

import grpc

options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as ca:
        credentials = grpc.ssl_channel_credentials(ca.read())
    options.append(("grpc.ssl_target_name_override", sys.argv[3]))
    channel = grpc.secure_channel(sys.argv[1], credentials, options)
else:
    channel = grpc.insecure_channel(sys.argv[1], options)


def fails(call, code):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError(f"{code} was expected")


unary = channel.unary_unary("/test.Echo/Unary")
assert unary(b"hello", timeout=20) == b"hello"
assert unary(b"", timeout=20) == b""
print("unary")

large = os.urandom(6 << 20)
assert unary(large, timeout=60) == large
print("large")

raw = bytes(range(256))
reply, call = unary.with_call(b"x", timeout=20, metadata=(("x-wanted", "yes"), ("x-raw-bin", raw)))
assert dict(call.initial_metadata())["x-initial"] == "yes"
assert dict(call.trailing_metadata())["x-trailing-bin"] == raw
print("metadata")

left = float(channel.unary_unary("/test.Echo/Remaining")(b"", timeout=7))
# gRPC rounds a deadline up when it writes it.
assert 5 < left < 7.1, left
print("deadline is passed on")

begin = time.monotonic()
fails(lambda: channel.unary_unary("/test.Echo/Slow")(b"5", timeout=0.5), grpc.StatusCode.DEADLINE_EXCEEDED)
assert time.monotonic() - begin < 3
print("deadline")

error = fails(lambda: channel.unary_unary("/test.Echo/Fail")(b"", timeout=20), grpc.StatusCode.FAILED_PRECONDITION)
assert error.details() == "ausverkauft: 100 % weg", error.details()
print("trailers only")

fails(lambda: channel.unary_unary("/test.Echo/Missing")(b"", timeout=20), grpc.StatusCode.UNIMPLEMENTED)
print("unknown method")

stream = channel.unary_stream("/test.Echo/ServerStream")
assert list(stream(b"200", timeout=20)) == [b"%d" % n for n in range(200)]
assert list(stream(b"0", timeout=20)) == []
print("server streaming")

join = channel.stream_unary("/test.Echo/ClientStream")
assert join(iter([b"a", b"b", b"c"]), timeout=20) == b"a+b+c"
print("client streaming")

# Each message waits for the answer to the one before: nothing on the way may hold one back.
sent = queue.Queue()
answers = channel.stream_stream("/test.Echo/Bidi")(iter(sent.get, None), timeout=20)
for n in range(50):
    sent.put(b"%d" % n)
    assert next(answers) == b"you said %d" % n
sent.put(None)
assert list(answers) == []
assert dict(answers.trailing_metadata())["x-end"] == "reached"
print("bidi")

got = []
half = channel.unary_stream("/test.Echo/Half")(b"", timeout=20)
error = fails(lambda: got.extend(half), grpc.StatusCode.DATA_LOSS)
assert error.details() == "no more"
print("error after messages")

stream = channel.stream_stream("/test.Echo/Bidi")(iter(sent.get, None))
sent.put(b"x")
next(stream)
stream.cancel()
sent.put(None)
assert unary(b"still here", timeout=20) == b"still here"
print("cancelled")
print("all")
