"""A gRPC server of the shop, typed by the descriptor set whose path is the argument. Prints port=N once it listens."""

import sys
from concurrent import futures

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

pool = descriptor_pool.DescriptorPool()
files = descriptor_pb2.FileDescriptorSet()
with open(sys.argv[1], "rb") as file:
    files.ParseFromString(file.read())
for file in files.file:
    pool.Add(file)


def kind(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


Get, Create, Order, Status = map(
    kind, ["shop.v1.GetRequest", "shop.v1.CreateRequest", "shop.v1.Order", "google.rpc.Status"]
)


def get(request, context):
    sent = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-order", request.name),))
    lines = [str(state) for state in request.states] + ([request.page and str(request.page.size)])
    return Order(name=request.name, total_cents=2**53 + 1, state=1, lines=lines, labels={"who": sent.get("x-who", "")})


def create(request, context):
    order = request.order
    order.name = f"{request.shelf}/{order.name}" + ("?" if request.dry_run else "")
    return order


def watch(request, context):
    for n in range(3):
        yield Order(name=request.name, total_cents=n)
    if request.full:
        context.abort(grpc.StatusCode.DATA_LOSS, "no more")


def fail(request, context):
    status = Status(code=9, message="sold out")
    detail = any_pb2.Any()
    detail.type_url = "type.googleapis.com/shop.v1.Order"
    detail.value = Order(name=request.name).SerializeToString()
    status.details.add().ParseFromString(detail.SerializeToString())
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "sold out")


def typed(handler, method, request):
    return handler(method, request_deserializer=request.FromString, response_serializer=Order.SerializeToString)


kinds = {
    "Get": typed(grpc.unary_unary_rpc_method_handler, get, Get),
    "Create": typed(grpc.unary_unary_rpc_method_handler, create, Create),
    "Watch": typed(grpc.unary_stream_rpc_method_handler, watch, Get),
    "Fail": typed(grpc.unary_unary_rpc_method_handler, fail, Get),
}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.v1.Shop", kinds),))
print(f"port={server.add_insecure_port('127.0.0.1:0')}")
server.start()
server.wait_for_termination()
