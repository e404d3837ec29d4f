"""An authorization server on Envoy's own messages. Prints each question as a line of JSON and decides by path."""

import json
from concurrent import futures

import grpc
from envoy.config.core.v3 import base_pb2 as base
from envoy.service.auth.v3 import external_auth_pb2 as auth
from envoy.service.auth.v3 import external_auth_pb2_grpc as service
from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2


def option(key, value, **how):
    return base.HeaderValueOption(header=base.HeaderValue(key=key, value=value), **how)


def decide(http):
    path = http.path.split("?")[0]
    if path == "/in":
        answer = auth.CheckResponse(status=status_pb2.Status(code=code_pb2.OK))
        answer.ok_response.headers.extend([
            option("x-user", "ann"),
            option("x-list", "b", append_action=base.HeaderValueOption.ADD_IF_ABSENT),
        ])
        answer.ok_response.headers[0].append.value = False
        answer.ok_response.headers_to_remove.append("x-gone")
        answer.ok_response.response_headers_to_add.append(option("x-seen", "yes"))
        answer.ok_response.query_parameters_to_set.append(base.QueryParameter(key="k", value="v%20w"))
        answer.ok_response.query_parameters_to_remove.append("token")
        return answer
    if path == "/pay":
        answer = auth.CheckResponse(status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED))
        answer.denied_response.status.code = 402
        answer.denied_response.headers.append(option("x-price", "5"))
        answer.denied_response.body = "pay first"
        return answer
    if path == "/login":
        answer = auth.CheckResponse(status=status_pb2.Status(code=code_pb2.UNAUTHENTICATED))
        answer.denied_response.status.code = 302
        answer.denied_response.headers.append(option("location", "https://id.example/"))
        return answer
    return auth.CheckResponse(status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED))


class Authorization(service.AuthorizationServicer):
    def Check(self, request, context):
        http = request.attributes.request.http
        print(json.dumps(json_format.MessageToDict(request, preserving_proto_field_name=True)), flush=True)
        if http.path == "/broken":
            context.abort(grpc.StatusCode.INTERNAL, "no database")
        return decide(http)


server = grpc.server(futures.ThreadPoolExecutor(8))
service.add_AuthorizationServicer_to_server(Authorization(), server)
print(f"port={server.add_insecure_port('127.0.0.1:0')}", flush=True)
server.start()
server.wait_for_termination()
