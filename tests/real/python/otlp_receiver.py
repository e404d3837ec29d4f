"""An OTLP collector over gRPC that prints each span as a line of JSON."""

import json
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.trace.v1 import trace_pb2


def text(value):
    return str(getattr(value, value.WhichOneof("value")))


class Collector(service.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            shared = {pair.key: text(pair.value) for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    line = {
                        "resource": shared,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "kind": trace_pb2.Span.SpanKind.Name(span.kind),
                        "name": span.name,
                        "error": span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                        "ordered": span.start_time_unix_nano <= span.end_time_unix_nano,
                        "attributes": {pair.key: text(pair.value) for pair in span.attributes if pair.value.WhichOneof("value") != "array_value"},
                    }
                    print(json.dumps(line), flush=True)
        return messages.ExportTraceServiceResponse()


server = grpc.server(futures.ThreadPoolExecutor(2))
service.add_TraceServiceServicer_to_server(Collector(), server)
print(f"port={server.add_insecure_port('127.0.0.1:0')}")
server.start()
server.wait_for_termination()
