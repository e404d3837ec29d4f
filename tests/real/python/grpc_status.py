"""Prints how one call ends: grpc_status.py HOST:PORT METHOD."""

import sys

import grpc

call = grpc.insecure_channel(sys.argv[1]).unary_unary(sys.argv[2])
try:
    call(b"", timeout=20)
    print("OK")
except grpc.RpcError as error:
    print(error.code().name, error.details())
